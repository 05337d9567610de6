"""Headers and numbers of .npy and .npz files, which may be hostile: nothing is read before its size is known."""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, BinaryIO
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from stitchgrid.errors import InputError

DAMAGED = (  # what numpy and zipfile raise of damaged files
    *(OSError, ValueError, EOFError, KeyError, MemoryError, OverflowError, zipfile.BadZipFile, ZlibError),
    *(TypeError, AttributeError, IndexError, SyntaxError, TokenError, RuntimeError),  # of headers that are no Python
)


def npz_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Return shape and type of an array in an .npz without reading it.

    Raises:
        ValueError: If it is damaged; or another type of DAMAGED.
    """
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = _npy_header(file)
    return shape, dtype


def check_whole(archive: zipfile.ZipFile, name: str) -> None:
    """Refuse an array of an .npz that is shorter than its shape says: numpy allocates memory before it reads.

    Raises:
        ValueError: With the shape.
    """
    shape, dtype = npz_header(archive, name)
    if math.prod(shape) * dtype.itemsize > archive.getinfo(f"{name}.npy").file_size:
        raise ValueError(f"{name} holds fewer bytes than its shape {shape} needs")


@contextmanager
def opened_npy(path: Path) -> Iterator[tuple[BinaryIO, tuple[int, ...], bool, "np.dtype[Any]"]]:
    """Open an .npy at its first number, with its shape, whether columns come first, and its type.

    It is not memory-mapped: if another process shortens a mapped file, the operating system ends the process.

    Raises:
        InputError: If it is damaged or shorter than its shape says, or if reading fails within the block.
    """
    try:
        with path.open("rb") as file:
            shape, is_fortran, dtype = _npy_header(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
                raise ValueError(f"it holds fewer bytes than its shape {shape} needs")
            yield file, shape, is_fortran, dtype
    except DAMAGED as problem:
        raise InputError(
            f"cannot read {path} as an .npy ({type(problem).__name__}: {problem}); arrays of Python objects are not "
            "supported."
        ) from problem


def _npy_header(file: "IO[bytes]") -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Return shape, whether columns come first, and type from the header of an .npy."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def next_numbers(file: BinaryIO, dtype: "np.dtype[Any]", num: int) -> NDArray[Any]:
    """Return the next numbers of a file.

    Raises:
        ValueError: If the file ends before.
    """
    found = np.fromfile(file, dtype, num)
    if len(found) < num:
        raise ValueError("it became shorter while it was read")
    return found
