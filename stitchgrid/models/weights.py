"""Weights in and out: checkpoints of others, read without running any code of theirs, and our own artefacts."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stitchgrid.errors import InputError, is_out_of_memory
from stitchgrid.models.memory import memory_told

_NESTED = ("state_dict", "model")  # where training scripts put the weights
_UNTRACKED = "num_batches_tracked"  # a counter of batch norm that no output depends on
_PICKLE_STARTS = (b"PK", b"\x80")  # torch.save's archive since 1.6, and a bare pickle
_NUM_SHOWN = 4


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU, without a `module.` prefix.

    Reads safetensors, plain state dicts and dictionaries that hold one under `state_dict` or `model`. A pickle that
    holds anything but tensors and plain values is refused, never unpickled.

    Raises:
        InputError: If the file is missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; relative paths start at the job file's folder.")
    load = _load_safetensors if path.suffix == ".safetensors" else _load_torch
    with memory_told(f"checkpoint {path}", device=torch.device("cpu"), count=lambda: path.stat().st_size):
        content = load(path)
    return _without_prefix(_find_tensors(content, path))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError) as problem:
        raise _damaged(path, problem) from problem
    return state


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old storage formats: nothing a user can act on
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        if _head(path).startswith(_PICKLE_STARTS):
            raise InputError(
                f"{path} is a pickle but not a plain checkpoint: reading it could run code, so it is not read; save "
                "the model's state_dict() with torch.save, or as .safetensors."
            ) from problem
        raise _damaged(path, problem) from problem
    except Exception as problem:  # torch reports damage by many types: RuntimeError, EOFError, KeyError, ...
        if is_out_of_memory(problem):
            raise
        raise _damaged(path, problem) from problem


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _damaged(path: Path, problem: Exception) -> InputError:
    cause = str(problem).strip().split(". ")[0].splitlines()[:1]
    what = ": ".join([type(problem).__name__, *cause])
    return InputError(f"{path} ({path.stat().st_size} bytes) is damaged, truncated or no checkpoint ({what}).")


def _find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in _NESTED:
            if isinstance(content.get(key), Mapping):
                return _find_tensors(content[key], path)
        if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
            return dict(content)
        held = "entries " + ", ".join(map(repr, list(content)[:_NUM_SHOWN])) if content else "nothing"
    else:
        held = f"a {type(content).__name__}"
    raise InputError(
        f"{path} holds {held}; wanted a state dict (tensors by name), or one under 'state_dict' or 'model'."
    )


def _without_prefix(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Return the state as it was before the network was wrapped for data parallel training."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load every tensor of `state` into `module`; `origin` names the state in errors.

    Raises:
        InputError: If the state belongs to another architecture: names the keys that do not fit.
    """
    own, given = tracked(module.state_dict()), tracked(state)
    misfits = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} where the network has {tuple(value.shape)}"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ],
    }
    problems = [f"{len(names)} {what}: {_shown(names)}" for what, names in misfits.items() if names]
    if problems:
        raise InputError(
            f"{origin} belongs to another architecture than {type(module).__name__}: of {len(own)} tensors "
            f"{'; '.join(problems)}. Check `architecture` and `args`."
        )
    module.load_state_dict(dict(state), strict=False)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")


def tracked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what outputs depend on: all of a state but batch norm's counters of batches."""
    return {name: value for name, value in state.items() if not name.endswith(_UNTRACKED)}


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
