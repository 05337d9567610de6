"""Weights of Google's vision networks in .npz files (big_vision and vit_jax), which timm reads into its own networks.

timm would resize, leave out or keep as drawn what does not fit. Here a file has to give each parameter of the network,
and nothing besides: so many numbers as the network has, of which timm leaves none as it was.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, cast
from zlib import error as ZlibError

import numpy as np
import torch
from torch import nn

from stitchgrid.datasets.numpy_files import check_whole, npz_header
from stitchgrid.errors import InputError, is_out_of_memory, one_line
from stitchgrid.printable import first_few

SUFFIX = ".npz"
_PREFIXES = ("opt/target/", "params/img/", "params/")  # below which the network lies, where a file holds more
_NUM_SHOWN = 4


def load_jax_file(module: nn.Module, path: Path) -> None:
    """Let timm load an .npz of big_vision or vit_jax into a network of its own.

    Raises:
        InputError: If the network is not of timm, or timm cannot load such files into it; or if the file does not hold
            exactly its parameters.
        ValueError: If the file is damaged; or another type of `numpy_files.DAMAGED`.
    """
    kind = type(module).__name__
    if type(module).__module__.partition(".")[0] != "timm" or not hasattr(module, "load_pretrained"):
        raise InputError(
            f"checkpoint {path} is an .npz, in which Google's vision networks are published; timm reads these into its "
            f"vision transformers, mixers and BiT-ResNets, and {kind} is none of them: name the network as "
            'architecture = "timm:NAME", or save its state_dict() as .safetensors.'
        )
    prefix, shapes = _outline(path)
    held, wanted = sum(map(math.prod, shapes.values())), sum(value.numel() for value in module.parameters())
    if held != wanted:
        below = f" below {prefix!r}" if prefix else ""
        raise _misfit(
            path,
            kind,
            f"it holds {held:,} numbers in {len(shapes):,} arrays{below}, and the network has {wanted:,}, so something "
            f"would be resized, left out or missing; the file has {_told(shapes, prefix)}",
        )
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(torch.nan)
    try:
        cast("Any", module).load_pretrained(str(path))
    except (OSError, EOFError, zipfile.BadZipFile, ZlibError):
        raise
    except Exception as problem:  # timm has no error of its own for what it does not find or what does not fit
        if is_out_of_memory(problem):
            raise
        raise _misfit(path, kind, f"timm cannot load it ({one_line(problem)})") from problem
    if unset := [name for name, value in module.named_parameters() if bool(torch.isnan(value).all())]:
        raise _misfit(path, kind, f"it does not give {len(unset)} of the parameters: {first_few(unset, _NUM_SHOWN)}")


def _outline(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """Return where in a file the network lies, and the shapes of its arrays there; only their headers are read."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive")
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        prefix = next((one for one in _PREFIXES if any(name.startswith(one) for name in names)), "")
        found = {}
        for name in names:
            shape, dtype = npz_header(arrays.zip, name)
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects")
            check_whole(arrays.zip, name)
            if not name.startswith(prefix):
                continue
            if dtype.kind != "f":
                raise InputError(
                    f"{path}, {name}: wanted floating-point numbers, got {dtype}; bfloat16, which numpy does not have "
                    "and writes as V2, has to be saved as float32."
                )
            found[name.removeprefix(prefix)] = shape
    return prefix, found


def _told(shapes: dict[str, tuple[int, ...]], prefix: str) -> str:
    """Return the shapes that say most of a vision transformer, where a file has them, else those of some arrays."""
    words = ("embedding/kernel", "pos_embedding", "cls", "head/kernel", "pre_logits/kernel")
    found = {name: shape for name, shape in shapes.items() if name in words or name.endswith("/pos_embedding")}
    return first_few([f"{prefix}{name} {shape}" for name, shape in (found or shapes).items()], len(words))


def _misfit(path: Path, kind: str, what: str) -> InputError:
    return InputError(
        f"checkpoint {path} belongs to another architecture than {kind}: {what}. Check `architecture` and `args`, such "
        "as `img_size`, `num_classes` and `in_chans`."
    )
