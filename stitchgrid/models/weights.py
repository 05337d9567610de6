"""Weights in and out: checkpoints of others, read without running code in them, and stitchgrid's own artefacts."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stitchgrid.datasets.numpy_files import DAMAGED
from stitchgrid.datasets.pickles import load_pickles
from stitchgrid.datasets.torch_files import check_shapes
from stitchgrid.errors import InputError, is_out_of_memory
from stitchgrid.limits import TooMuchError, check_unpacked, raise_by
from stitchgrid.models.adapters import merge_adapter
from stitchgrid.models.choosing import choose_tensors, misfit_words
from stitchgrid.models.jax_files import SUFFIX, load_jax_file
from stitchgrid.models.memory import memory_told
from stitchgrid.models.readings import UNTRACKED, Outline
from stitchgrid.models.sharded import INDEX, load_folder
from stitchgrid.printable import first_few
from stitchgrid.records import DEFAULT_LIMITS, Limits

_PICKLE_STARTS = (b"PK", b"\x80")  # torch.save's archive since 1.6, and a bare pickle
_NUM_SHOWN = 4
_SAVE = "torch.save never writes one: save the model's state_dict() with it, or as .safetensors"
_NUM_TOLD = 300  # characters of torch's message, in errors
_SMALL = 100_000_000  # bytes; a file that unpacks to less does no harm


def load_checkpoint(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return what a checkpoint holds, on the CPU: safetensors, a folder of them, or what torch.save wrote.

    A pickle that holds anything but tensors and plain values is refused, never unpickled.

    Raises:
        InputError: If the file is missing, damaged, not a checkpoint, or holds more than the limits allow.
    """
    path = Path(path)
    if path.is_dir() or path.name.endswith(INDEX):
        return load_folder(path, limits, lambda file: load_checkpoint(file, limits))
    _check_file(path, limits)
    load = _load_safetensors if path.suffix == ".safetensors" else _load_torch
    with memory_told(f"checkpoint {path}", device=torch.device("cpu"), count=lambda: path.stat().st_size):
        try:
            return load(path, limits)
        except OSError as problem:
            raise _damaged(path, problem) from problem


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    word: str = "",
    key: str | None = None,
    strip: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Load the tensors of a checkpoint into `module`, however they are wrapped; `key` and `strip` say which.

    `word` is the file as the job names it, for messages.

    Raises:
        InputError: If the file is no checkpoint, or does not hold exactly one set of weights that fits.
    """
    path = Path(path)
    if path.suffix.lower() == SUFFIX:
        _load_npz(module, path, limits, is_chosen=key is not None or strip is not None)
        return
    tensors = choose_tensors(load_checkpoint(path, limits), module, path, word=word or path.name, key=key, strip=strip)
    load_into(module, tensors, origin=f"checkpoint {path}")


def load_adapter(module: nn.Module, folder: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Merge a LoRA or DoRA adapter, a folder as PEFT saves one, into the weights of its network.

    Raises:
        InputError: If there is no such folder, or it does not fit the network.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no adapter {folder}; relative paths start at the job file's folder.")
    merge_adapter(module, folder, lambda file: load_checkpoint(file, limits))


def check_finite(module: nn.Module, *, origin: str) -> None:
    """Refuse weights with which no network can compute; a buffer may hold infinities, as masks do.

    Raises:
        InputError: If a parameter or a buffer holds NaN, or a parameter an infinity; the error names it.
    """
    wrong = []
    parameters = {id(value) for value in module.parameters()}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_meta or not (value.is_floating_point() or value.is_complex()):
            continue
        seen = value.detach() if value.element_size() > 1 else value.detach().float()
        is_bad = ~torch.isfinite(seen) if id(value) in parameters else torch.isnan(seen)
        if is_bad.any():
            what = "NaN" if torch.isnan(seen).any() else "infinity"
            wrong.append(f"{name} ({what} in {int(is_bad.sum())} of {value.numel()} values)")
    if wrong:
        shown = first_few(wrong, _NUM_SHOWN)
        raise InputError(f"{origin} is not finite: {shown}; take a checkpoint of an earlier step.")


def _check_file(path: Path, limits: Limits) -> None:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; relative paths start at the job file's folder.")
    if (size := path.stat().st_size) > limits.checkpoint_bytes:
        raise InputError(
            f"{path} has {size:,} bytes, more than the {limits.checkpoint_bytes:,} allowed of a checkpoint; "
            f"{raise_by('checkpoint_bytes')}."
        )


def _load_npz(module: nn.Module, path: Path, limits: Limits, *, is_chosen: bool) -> None:
    _check_file(path, limits)
    if is_chosen:
        raise InputError(f"{path} is an .npz, of which timm knows where the weights are; leave out `key` and `strip`.")
    _check_unpacked(path, limits, remedy="Save its arrays with numpy.savez")
    with memory_told(f"checkpoint {path}", device=torch.device("cpu"), count=lambda: path.stat().st_size):
        try:
            load_jax_file(module, path)
        except InputError:
            raise
        except DAMAGED as problem:
            if is_out_of_memory(problem):
                raise
            raise _damaged(path, problem) from problem


def _load_safetensors(path: Path, limits: Limits) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:  # reads names and shapes alone
            _check_number(path, len(file.keys()), limits)
        state: dict[str, Tensor] = safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError, TypeError, ValueError, OverflowError) as problem:  # shapes that torch has not
        raise _damaged(path, problem) from problem
    return state


def _check_number(path: Path, num_tensors: int, limits: Limits) -> None:
    if num_tensors > limits.tensors:
        raise InputError(
            f"{path} holds {num_tensors:,} tensors, more than the {limits.tensors:,} allowed; {raise_by('tensors')}."
        )


def _load_torch(path: Path, limits: Limits) -> Any:
    _check_unpacked(path, limits, remedy=_SAVE)
    try:
        found = load_pickles(path, limits)
        check_shapes(path, found, limits, harmless=_SMALL)
        return found
    except TooMuchError as problem:
        raise InputError(f"{problem}, by views that repeat a few numbers; call .contiguous() on its tensors.") from None
    except pickle.UnpicklingError as problem:
        if _head(path).startswith(_PICKLE_STARTS):
            raise InputError(
                f"{path} is a pickle but not a plain checkpoint: reading it could run code, so it is not read; save "
                "the model's state_dict() with torch.save, or as .safetensors."
            ) from problem
        raise _damaged(path, problem) from problem
    except InputError:
        raise
    except Exception as problem:  # torch reports damage by many types: RuntimeError, EOFError, KeyError, ...
        if is_out_of_memory(problem):
            raise
        raise _damaged(path, problem) from problem


def _check_unpacked(path: Path, limits: Limits, *, remedy: str) -> None:
    """Refuse an archive of too many tensors, or that unpacks to far more than it is, before anything is unpacked."""
    if not zipfile.is_zipfile(path) and _head(path) != b"PK":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        check_unpacked(path, entries, limits, harmless=_SMALL)
    except TooMuchError as problem:
        raise InputError(f"{problem}. {remedy}.") from problem
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise _damaged(path, problem) from problem
    _check_number(path, len(entries), limits)
    if (num_bytes := sum(entry.file_size for entry in entries)) > limits.checkpoint_bytes:
        raise InputError(
            f"{path} unpacks to {num_bytes:,} bytes, more than the {limits.checkpoint_bytes:,} allowed of a "
            f"checkpoint; {raise_by('checkpoint_bytes')}."
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _damaged(path: Path, problem: Exception) -> InputError:
    cause = str(problem).strip().split(". ")[0].splitlines()[:1]
    what = ": ".join([type(problem).__name__, *cause])[:_NUM_TOLD]
    return InputError(f"{path} ({path.stat().st_size} bytes) is damaged, truncated or no checkpoint ({what}).")


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load every tensor of `state` into `module`; `origin` names the state in errors.

    Raises:
        InputError: If the state belongs to another architecture; the error names the keys that do not fit.
    """
    outline = Outline(module)
    reading = outline.read("", "", state)
    if not reading.fits:
        raise InputError(
            f"{origin} belongs to another architecture than {outline.kind}: of {len(outline.shapes)} tensors "
            f"{misfit_words(reading)}. Check `architecture` and `args`."
        )
    _check_types(module, state, origin)
    try:
        module.load_state_dict(dict(state), strict=False)
    except (RuntimeError, NotImplementedError, TypeError) as problem:  # types that torch cannot turn into the network's
        if is_out_of_memory(problem):
            raise
        cause = " ".join(str(problem).split())[:_NUM_TOLD]
        raise InputError(f"{origin} cannot be copied into {outline.kind} ({cause}); save it as float32.") from problem


def _check_types(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors whose values the types of the network cannot hold."""
    held = module.state_dict(keep_vars=True)
    given = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if some := [name for name, value in given.items() if value.is_quantized]:
        raise InputError(
            f"{origin} holds {len(some)} quantized tensors, such as {some[0]}; save the state_dict() of the model as "
            "it is before it is quantized, or its tensors dequantized."
        )
    real = {name for name, value in held.items() if isinstance(value, Tensor) and not value.is_complex()}
    if some := [name for name, value in given.items() if value.is_complex() and name in real]:
        raise InputError(
            f"{origin} holds {len(some)} complex tensors, such as {some[0]} ({given[some[0]].dtype}), where the "
            "network has real ones, which cannot take the imaginary part; save real tensors."
        )


def tracked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state that outputs depend on: all but batch norm's counters of batches."""
    return {name: value for name, value in state.items() if not name.endswith(UNTRACKED)}


def as_bytes(value: Tensor) -> Tensor:
    """Return the bytes of a tensor, uint8 (B): its own memory where it is contiguous and on the CPU."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def state_digest(state: nn.Module | Mapping[str, Tensor]) -> str:
    """Return 32 hex digits of the SHA-256 over names, types, shapes and bytes of parameters and buffers.

    Batch norm's counters of batches are left out, and so is anything that is not part of the state dict.
    """
    sha = hashlib.sha256()
    tensors = tracked(state.state_dict() if isinstance(state, nn.Module) else state)
    for name, value in sorted(tensors.items()):
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(as_bytes(value).numpy().data)
    return sha.hexdigest()[:32]


def save_state(module: nn.Module) -> bytes:
    """Return the state dict as the content of a .safetensors file; equal states give equal bytes."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    return bytes(safetensors.torch.save(state))


def load_state(content: bytes) -> dict[str, Tensor]:
    """Return what `save_state` saved.

    Raises:
        InputError: If the bytes are not such a file.
    """
    try:
        state: dict[str, Tensor] = safetensors.torch.load(content)
    except SafetensorError as problem:
        raise InputError(f"saved weights ({len(content)} bytes) are truncated or damaged ({problem}).") from problem
    return state
