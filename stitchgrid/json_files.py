"""Reads JSON that others wrote: from regular files alone, of limited size and depth, each read once."""

import os
import stat
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from stitchgrid.errors import InputError, one_line

MOST_BYTES = 64_000_000  # an index of 100,000 tensors has ten


def read_json(path: Path, wanted: str, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file; `wanted` names in the error what the file should be.

    The parser refuses objects that are nested more than a few hundred levels deep.

    Raises:
        InputError: If it is no regular file, has more than `most` bytes, or holds no JSON object.
    """
    try:
        found = from_json(_content(path, most), cache_strings="keys")
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"{path} cannot be read as {wanted} ({one_line(problem)}).") from problem
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read as {wanted}: it holds a {type(found).__name__}, wanted an object.")
    return found


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of which a JSON decoder gives the pairs (`object_pairs_hook`).

    Raises:
        ValueError: If it has a key twice: readers differ in which of the two they take.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _content(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file; never wait for a pipe."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file, but a pipe, a device or a folder")
        if len(content := file.read(most + 1)) > most:
            raise ValueError(f"more than {most:,} bytes")
    return content
