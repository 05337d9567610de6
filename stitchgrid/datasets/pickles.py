"""Check the instructions of a pickle before it is loaded.

`torch.load` runs no code of a checkpoint, but a few bytes of a file can make it allocate any amount of memory, and it
hashes every key of the file.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stitchgrid.datasets.pickle_walk import PickleWalk, RefusedPickleError
from stitchgrid.datasets.torch_files import check_directory
from stitchgrid.errors import InputError
from stitchgrid.records import DEFAULT_LIMITS, Limits

# In a row, in files of torch before 1.6: a number, a version, the system, the content, keys of storages.
_NUM_PICKLES = 5


def check_pickles(path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse a file of torch.save's that makes what the file does not hold, or has keys that take for ever.

    Raises:
        InputError: If one of its pickles does, or an archive may be read in two ways.
        Exception: Of zipfile's, if it is an archive that cannot be read; torch may read more of one than zipfile does.
            Of any type, if the instructions of a pickle do not fit each other.
    """
    walk = PickleWalk(limits.tensors)
    try:
        for number, file in enumerate(_pickles(path), start=1):
            found = walk.follow(file)
            if number == _NUM_PICKLES and isinstance(found, list | tuple):
                walk.check_keys(found)
                if lost := walk.stored.difference(map(str, found)):
                    raise RefusedPickleError(f"has {len(lost)} tensors without their numbers")
    except RefusedPickleError as problem:
        raise InputError(
            f"{path} {problem}, so that it is not read; save the model's state_dict() with torch.save, or as "
            ".safetensors."
        ) from problem


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
