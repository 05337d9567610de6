"""Paths that users name, which may be no paths at all."""

from pathlib import Path

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
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"no user has the home that {text[:60]!r} starts with") from None
    return text


def is_file(path: Path) -> bool:
    """Return whether there is such a file; there is none of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
