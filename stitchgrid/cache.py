"""What the processes of one machine find on its disk: decoded images, weights. All of it may be deleted at any time.

An entry appears complete or not at all, under a name that says what decides its content, and is never changed. A cache
that cannot be used only costs time and memory.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def default_cache() -> Path:
    """Return $STITCHGRID_CACHE, else `stitchgrid` in the user's cache folder."""
    if named := os.environ.get("STITCHGRID_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "stitchgrid" / "cache"
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', tempfile.gettempdir())}/.cache")
        / "stitchgrid"
    )


@contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock among the processes of this machine; where there are none, work is done twice at worst."""
    if sys.platform == "win32":
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{name}.lock").open("w")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync(path: Path) -> None:
    """Force a file to disk: after a power cut, a file of the right size might hold zeros."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
