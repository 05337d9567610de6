"""Paths that users name, which may be no paths at all, and files that are written there whole or not at all."""

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from stitchgrid.errors import InputError

LONGEST_NAME = 255  # bytes of a file's name that file systems take
LONGEST_PATH = 4095


def check_path(text: str) -> str:
    """Return the text if a file could be there.

    Raises:
        ValueError: If it is too long, has control characters, or starts at the home of a user who is not there.
    """
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"a path has no control characters, got {text[:60]!r}")
    if len(text.encode(errors="replace")) > LONGEST_PATH or any(
        len(part.encode(errors="replace")) > LONGEST_NAME for part in text.split("/")
    ):
        raise ValueError(f"too long for a path: {text[:60]!r}...")
    with_home(text)
    return text


def with_home(text: str) -> Path:
    """Return a path with the home that a `~` at its beginning stands for.

    Raises:
        ValueError: If it is that of a user who is not there.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"no user has the home that {text[:60]!r} starts with") from None


def named_path(text: str) -> Path:
    """Return the path that a text names, in which the shell may have left `~` and $VARIABLES as they are.

    Raises:
        InputError: If it starts at the home of a user who is not there.
    """
    try:
        return with_home(os.path.expandvars(text))
    except ValueError as problem:
        raise InputError(f"{problem}; name another path.") from None


def is_file(path: Path) -> bool:
    """Return whether there is such a file; there is none of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it holds all of the data, or what it held before.

    What is no regular file (a pipe, a device) is written as it is; so is one in a folder where no other can be made.

    Raises:
        OSError: If that cannot be done; then nothing has changed.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    before = target.stat() if target.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        target.write_bytes(data)
        return
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            partial.chmod(stat.S_IMODE(before.st_mode))
        partial.replace(target)
    except PermissionError as problem:
        partial.unlink(missing_ok=True)
        if before is None:
            problem.filename = str(path)
            raise
        target.write_bytes(data)
    except BaseException as problem:
        if isinstance(problem, OSError):
            problem.filename = str(path)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
