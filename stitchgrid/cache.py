"""The cache on a machine's disk, which its processes share: decoded images and weights. It may be deleted at any time.

An entry appears complete or not at all, and is never changed. All that decides its content is part of its name. Without
a usable cache, processes only take more time and memory.
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
UNUSED_SECONDS = 30 * 86_400.0  # without use, after which `stitchgrid gc` deletes an entry
ABANDONED_SECONDS = 7 * 86_400.0  # without changes, after which a draft is taken as abandoned


def default_cache() -> Path:
    """Return $STITCHGRID_CACHE, else `stitchgrid` in the user's cache folder, which is made for this user only.

    Raises:
        InputError: If other users can write the latter.
    """
    if named := os.environ.get("STITCHGRID_CACHE"):
        return named_path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "stitchgrid" / "cache"
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    folder = Path(home) / "stitchgrid" if home else private_folder() / "cache"
    with suppress(OSError):  # without the folder, the process runs without a cache
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_own(folder)
    return folder


def _require_own(folder: Path) -> None:
    """Refuse a cache that other users can write; one that STITCHGRID_CACHE names is not checked.

    Raises:
        InputError: If it, or a folder around it, belongs to another user or is open to others.
    """
    found = folder.stat()
    is_shared = bool(found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != os.getegid() else 0)))
    if is_shared or any(is_open_to_others(one) for one in (folder, *folder.resolve().parents)):
        raise InputError(
            f"other users can write the cache {folder} (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}), "
            "or a folder around it, and so decide which images and weights are used; set STITCHGRID_CACHE to a folder "
            "of your own, or to this one if you trust them."
        )


@contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock among the processes of this machine; where locks do not work, some work may be done twice."""
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
    """Yield a new folder in `folder` in which to write an entry; what is still in it at the end is removed.

    Old drafts of killed writers are removed as well. The writer's umask decides who else can read an entry.

    Raises:
        OSError: If the cache cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("draft-*"):
        with suppress(OSError):  # another process removes it as well, or it is another user's
            if time() - max(path.stat().st_mtime for path in (left, *left.rglob("*"))) > ABANDONED_SECONDS:
                shutil.rmtree(left)
    outer = Path(tempfile.mkdtemp(prefix="draft-", dir=folder))
    try:
        inner = outer / "entry"  # `mkdtemp` lets only the owner enter the outer folder
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def note_use(entry: Path) -> None:
    """Set an entry's time of last use to now."""
    with suppress(OSError):  # another user's, or a cache that cannot be written
        os.utime(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Entries of the cache that no process has used for a long time."""

    entries: tuple[Path, ...]
    num_bytes: int


def unused(folder: Path, *, seconds: float = UNUSED_SECONDS) -> Unused:
    """Return the entries of a cache that no process has used for `seconds`."""
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
    """Delete entries; a process that has one open keeps its content, and others make it anew.

    Raises:
        OSError: If one cannot be deleted.
    """
    for entry in found.entries:
        gone = Path(tempfile.mkdtemp(prefix="draft-", dir=entry.parent))
        with suppress(FileNotFoundError):  # another process freed it
            entry.replace(gone / "entry")  # in one step, so that an entry is complete or not there
        shutil.rmtree(gone, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file to disk: after a power cut, a file of the right size might hold zeros."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
