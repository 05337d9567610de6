"""Checkpoints that are folders: one file of safetensors, or several with an index, as the Hugging Face hub has them."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from stitchgrid.errors import InputError
from stitchgrid.json_files import read_json
from stitchgrid.limits import raise_by
from stitchgrid.paths import is_file
from stitchgrid.printable import first_few
from stitchgrid.records import Limits

WHOLE, ADAPTER = "model.safetensors", "adapter_config.json"
INDEX = ".safetensors.index.json"
_NUM_SHOWN = 4


def load_folder(folder: Path, limits: Limits, load: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a folder's `*.safetensors`: those that its index lists, or of its only file.

    Args:
        folder: The folder, or the index in one.
        limits: How many bytes and tensors all files together may have.
        load: Reads one file.

    Raises:
        InputError: If there is no such file, several without an index, or one that does not match the index.
    """
    if folder.name.endswith(INDEX):
        return _load_shards(folder, limits, load)
    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder} is an adapter of a network, not its weights: name both, as in weights = {{ file = "
            f'"the network\'s checkpoint", adapter = "{folder.name}" }}; the file may be "pretrained" of a library.'
        )
    indices = sorted(path for path in folder.iterdir() if path.name.endswith(INDEX))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _load_shards(indices[0], limits, load)
    if (folder / WHOLE).is_file():
        return load(folder / WHOLE)
    if len(files) == 1:
        return load(files[0])
    found = [path.name for path in indices or files]
    several = f"several ({first_few(found, _NUM_SHOWN)}): name one of them"
    what = several if found else "none; folders are read from safetensors alone"
    raise InputError(
        f"{folder} is a folder; wanted one with a {WHOLE}, or with files and their {INDEX[1:]}, got {what}."
    )


def _load_shards(index: Path, limits: Limits, load: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    names = file_of_each(index)
    files = sorted(set(names.values()))
    paths = [index.parent / name for name in files]
    if missing := [path.name for path in paths if not is_file(path)]:
        raise InputError(
            f"{index} lists {missing[0][:80]!r} ({len(missing)} of {len(files)} files), which is not beside it."
        )
    if (size := sum(path.stat().st_size for path in paths)) > limits.checkpoint_bytes:
        raise InputError(
            f"the files of {index} have {size:,} bytes, more than the {limits.checkpoint_bytes:,} allowed of a "
            f"checkpoint; {raise_by('checkpoint_bytes')}."
        )
    if len(names) > limits.tensors:
        raise InputError(
            f"{index} lists {len(names):,} tensors, more than the {limits.tensors:,} allowed; {raise_by('tensors')}."
        )
    found: dict[str, Tensor] = {}
    for path in paths:
        held = load(path)
        wanted = [name for name, file in names.items() if file == path.name]
        if lost := [name for name in wanted if name not in held]:
            raise InputError(
                f"{path} does not hold {lost[0][:80]!r}, which {index.name} says it does: an interrupted copy?"
            )
        found |= {name: held[name] for name in wanted}
    return found


def file_of_each(index: Path) -> dict[str, str]:
    """Return the file name of every tensor of an index, by the tensor's name; the files lie beside the index.

    Raises:
        InputError: If the file is no index of safetensors.
    """
    names = read_json(index, "an index of safetensors").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(
            f"{index} cannot be read as an index of safetensors: it has no `weight_map`, the file of each tensor."
        )
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix != ".safetensors":
            raise InputError(f"{index} lists {str(name)[:80]!r}; wanted names of .safetensors files beside it.")
    return names
