"""Limits on what is read, such as for archives that unpack to many times their size; they are checked beforehand."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from stitchgrid.records import Limits


class TooMuchError(ValueError):
    """A file holds more than is read; the message says which limit a job can raise."""


def raise_by(key: str) -> str:
    """Return text for the end of a message that says how a job raises a limit."""
    return f"if it is sound, raise `{key}` under [limits] in the job file"


def check_unpacked(path: Path, members: Iterable[zipfile.ZipInfo], limits: Limits, *, harmless: int) -> None:
    """Refuse a zip archive that unpacks to many times its size, and to more than `harmless` bytes.

    Raises:
        TooMuchError: With both sizes.
    """
    check_growth(path, sum(member.file_size for member in members), limits, harmless=harmless)


def check_growth(path: Path, num_bytes: int, limits: Limits, *, harmless: int) -> None:
    """Refuse an archive that unpacks to `num_bytes` bytes, if these are too many for its size.

    Raises:
        TooMuchError: With both sizes.
    """
    size = path.stat().st_size
    if num_bytes > max(harmless, limits.unpacking * size):
        raise TooMuchError(
            f"{path} is an archive of {size / 1e6:,.1f} MB that unpacks to {num_bytes / 1e6:,.0f} MB, more than "
            f"{limits.unpacking} times its size; {raise_by('unpacking')}"
        )
