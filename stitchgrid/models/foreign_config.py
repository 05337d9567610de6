"""Configurations that others wrote: they name no files or code, which a library would open, and no absurd sizes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stitchgrid.datasets.numeric_labels import MOST_CLASSES
from stitchgrid.errors import InputError
from stitchgrid.json_files import read_json
from stitchgrid.models.sharded import ADAPTER, INDEX, file_of_each

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
DOCUMENTS = ("config.json", "generation_config.json", ADAPTER, *PROCESSORS)  # files that libraries read in a folder
_FILES = ("checkpoint_path", "cache_dir", "file", "class_info_file", "repo_path")  # keys under which libraries open one
_NETWORKS = ("architecture", "backbone")  # keys of a network of timm, which takes `local-dir:FOLDER` and `hf-hub:NAME`
_WEIGHTS = ("transformers_weights",)  # keys of the file of the weights, beside the configuration
_LAYERS, _MOST_LAYERS = ("layer", "depth", "block", "stage"), 10_000  # words in keys of how many there are
_KERNELS = "_implementation"  # ends keys whose value may name a repository with compiled code
_NEVER_OPENED = {"_name_or_path", "_commit_hash", "auto_map", "id2label", "label2id", "label_names", "architectures"}
_STARTS = ("/", "~", "./", "../", "\\", "file:")  # beginnings of texts that can only be paths
_LARGEST_SIDE = 4_096  # pixels; networks take 1,024 at most
_LEAST_SHARE = 0.1  # of a resized image that is cropped
_SAFE = (".safetensors", ".safetensors.index.json")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that names files, folders or code, or more layers or classes than any network has.

    Args:
        config: The configuration.
        where: Its file, for the error.

    Raises:
        InputError: With the key and its value.
    """
    for key, value in _values(config, ""):
        if isinstance(value, int | float):
            if value > (most := _most_of(key.rpartition(".")[2].lower())):
                raise InputError(
                    f"{where} asks for {key} = {str(value)[:40]}, more than the {most:,.0f} of any network."
                )
            continue
        if (what := _named(key.rpartition(".")[2], value)) is not None:
            raise InputError(
                f"{where} names {what} ({key} = {value[:80]!r}), which is not opened, since others may have written "
                "it; delete that key, or name the weights in the job file."
            )


def check_files(folder: Path) -> None:
    """Refuse a folder in which a library would find pipes, devices or endless JSON, or weights beyond the folder.

    Raises:
        InputError: With the file.
    """
    for path in sorted(folder.iterdir()):
        if path.name.endswith(INDEX):
            file_of_each(path)
        elif path.name in DOCUMENTS:
            read_json(path, "JSON of a network")
        elif path.suffix == ".safetensors" and not path.is_file():
            raise InputError(f"{path} is no regular file; wanted weights as safetensors.")


@contextmanager
def limited(where: str, num_tensors: int, num_bytes: int) -> Iterator[None]:
    """Within a block, stop the making of a network as soon as it has more parameters, or larger ones, than that.

    Raises:
        InputError: If it has.
    """
    sizes: dict[tuple[int, str], int] = {}  # by module and name: libraries register some parameters again
    total = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None:
            return
        size = parameter.numel() * parameter.element_size()
        total += size - sizes.get((id(module), name), 0)
        sizes[id(module), name] = size
        if len(sizes) > num_tensors or total > num_bytes:
            raise InputError(
                f"the configuration of {where} asks for a network of more than {num_tensors:,} tensors or "
                f"{num_bytes / 1e6:,.0f} MB, which is not made; if it is sound, raise `tensors`, `checkpoint_bytes` or "
                "`unpacking` under [limits] in the job file."
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_sides(config: Any) -> None:
    """Refuse an image processor that makes images of far more pixels than networks take.

    Raises:
        ValueError: With the number.
    """
    if isinstance(config, Mapping):
        if (share := config.get("crop_pct")) is not None and not float(share) >= _LEAST_SHARE:
            raise ValueError(f"crop_pct = {share}, wanted at least {_LEAST_SHARE}")
        config = list(config.values())
    if isinstance(config, int | float) and config > _LARGEST_SIDE:
        raise ValueError(f"{str(config)[:40]} pixels, wanted at most {_LARGEST_SIDE:,}")
    for inner in config if isinstance(config, list | tuple) else ():
        check_sides(inner)


def _most_of(key: str) -> float:
    """Return the largest number that a key of this name may have: libraries make as many objects before they fail."""
    if key in ("num_labels", "num_classes"):
        return MOST_CLASSES
    return _MOST_LAYERS if any(word in key for word in _LAYERS) else float("inf")


def _values(value: Any, key: str) -> Iterator[tuple[str, str | int | float]]:
    """Yield all texts and numbers of a configuration, each with the keys that lead to it."""
    if isinstance(value, str | int | float):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _NEVER_OPENED:
                yield from _values(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner, key)


def _named(key: str, value: str) -> str | None:
    """Return what kind of forbidden thing a text names, None if it is harmless."""
    if not value:
        return None
    if key in _NETWORKS and ":" in value:
        return "a folder or a repository of a network"
    if key in _WEIGHTS and ("/" in value or not value.endswith(_SAFE)):
        return "a file of weights that is no safetensors beside it"
    if key.endswith(_KERNELS) and "/" in value:
        return "a repository of compiled code"
    is_path = key in _FILES or value.startswith(_STARTS) or "/../" in value
    return "a path" if is_path else None
