"""What the processes of one machine find on its disk: decoded images, weights. All of it may be deleted at any time.

An entry appears complete or not at all, under a name that says what decides its content, and is never changed. A cache
that cannot be used only costs time and memory.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import time

from stitchgrid.errors import InputError
from stitchgrid.paths import named_path
from stitchgrid.private_folder import is_open_to_others, private_folder

if sys.platform != "win32":
    import fcntl

KINDS = ("images", "weights")  # folders of entries
UNUSED_SECONDS = 30 * 86_400.0  # after which an entry goes with `stitchgrid gc`
ABANDONED_SECONDS = 7 * 86_400.0  # after which nobody works on a draft any more


def default_cache() -> Path:
    """Return $STITCHGRID_CACHE, else `stitchgrid` in the user's cache folder, which is made for the user alone.

    Raises:
        InputError: If the latter can be written by other users.
    """
    if named := os.environ.get("STITCHGRID_CACHE"):
        return named_path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "stitchgrid" / "cache"
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    folder = Path(home) / "stitchgrid" if home else private_folder() / "cache"
    with suppress(OSError):  # whoever cannot make it does without
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_own(folder)
    return folder


def _require_own(folder: Path) -> None:
    """Refuse a cache that others can write, unless it was named.

    Raises:
        InputError: If it is somebody else's, or open to everybody.
    """
    found = folder.stat()
    is_shared = bool(found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != os.getegid() else 0)))
    if is_shared or any(is_open_to_others(one) for one in (folder, *folder.resolve().parents)):
        raise InputError(
            f"other users can write the cache {folder} (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}), "
            "or a folder around it, and so decide which images and weights are looked at; set STITCHGRID_CACHE to a "
            "folder of your own, or to this one if you trust them."
        )


@contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock among the processes of this machine; where there are none, work is done twice at worst."""
    if sys.platform == "win32":
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link, no pipe
        file = os.fdopen(os.open(folder / f"{name}.lock", flags, 0o666), "rb+", buffering=0)
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Give a new folder in `folder` to write an entry in; what is still there at the end is removed.

    So is what writers that were killed have left there long ago. An entry is as readable to others as the writer's
    umask lets new files be.

    Raises:
        OSError: If the cache cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("draft-*"):
        with suppress(OSError):  # another process removes it, too, or it is another user's
            if time() - max(path.stat().st_mtime for path in (left, *left.rglob("*"))) > ABANDONED_SECONDS:
                shutil.rmtree(left)
    outer = Path(tempfile.mkdtemp(prefix="draft-", dir=folder))
    try:
        inner = outer / "entry"  # the outer one is its owner's alone
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def note_use(entry: Path) -> None:
    """Note that an entry is used now."""
    with suppress(OSError):  # another user's, or a cache that cannot be written
        os.utime(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Entries of the cache that nobody has used for long."""

    entries: tuple[Path, ...]
    num_bytes: int


def unused(folder: Path, *, seconds: float = UNUSED_SECONDS) -> Unused:
    """Return the entries of a cache that no process has used for so long."""
    found: dict[Path, int] = {}
    for kind in KINDS:
        for entry in sorted((folder / kind).glob("*")):
            if entry.is_symlink() or entry.name.endswith(".lock") or entry.name.startswith("draft-"):
                continue
            with suppress(OSError):  # gone meanwhile
                if time() - entry.stat().st_mtime > seconds:
                    files = [entry, *entry.rglob("*")] if entry.is_dir() else [entry]
                    found[entry] = sum(one.stat().st_size for one in files if one.is_file())
    return Unused(entries=tuple(found), num_bytes=sum(found.values()))


def free(found: Unused) -> None:
    """Delete entries; who has one open keeps what is in it, and others make it anew.

    Raises:
        OSError: If one cannot be deleted.
    """
    for entry in found.entries:
        gone = Path(tempfile.mkdtemp(prefix="draft-", dir=entry.parent))
        with suppress(FileNotFoundError):  # somebody else freed it
            entry.replace(gone / "entry")  # at once: an entry is complete or not there
        shutil.rmtree(gone, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file to disk: after a power cut, a file of the right size might hold zeros."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
