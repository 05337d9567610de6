"""Check the instructions of a pickle before it is loaded.

`torch.load` runs no code of a checkpoint, but a few bytes of a file can make it allocate a `bytearray` of any size.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from stitchgrid.datasets.torch_files import check_directory
from stitchgrid.errors import InputError

_NUM_PICKLES = (
    5  # in a row, in files of torch before 1.6: a number, a version, the system, the content, keys of storages
)


def check_pickles(path: Path) -> None:
    """Refuse a file of torch.save's that makes a bytearray, which tensors never need.

    Raises:
        InputError: If one of its pickles names the type, or an archive may be read in two ways.
        Exception: Of zipfile's, if it is an archive that cannot be read; torch may read more of one than zipfile does.
    """
    for file in _pickles(path):
        with suppress(ValueError):  # no pickle, or one that ends early: torch reads no further, either
            if any(name == "GLOBAL" and names.endswith("bytearray") for name, names in _instructions(file)):
                raise InputError(
                    f"{path} makes a bytearray, which may take any amount of memory, so that it is not read; save the "
                    "model's state_dict() with torch.save, or as .safetensors."
                )


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield an open file at the start of each of its pickles; the caller reads each pickle to its end."""
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
        file.seek(0)
        if not is_archive:
            for _ in range(_NUM_PICKLES):
                yield file
            return
        check_directory(path)
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith(".pkl"):  # torch does not tell small letters from capitals
                    with archive.open(member) as inner:
                        yield inner


def _instructions(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    return ((instruction.name, str(argument)) for instruction, argument, _ in pickletools.genops(file))
