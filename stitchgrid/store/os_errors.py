"""Why a file of a folder cannot be read or written, and what users can do about it."""

import errno
import os
from pathlib import Path

from stitchgrid.errors import NO_ANSWER, NO_PERMISSION, StoreError, UnseenError
from stitchgrid.paths import user
from stitchgrid.store.folder import owner_of

FORBIDDEN = {errno.EACCES, errno.EPERM}
SILENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
USUAL = "check free space and permissions there"


def unreadable(root: Path, name: str, problem: OSError) -> StoreError:
    """Return the error of a file of a store that cannot be read: no permission, no answer, or something else."""
    if problem.errno in FORBIDDEN:
        what_to_do = squashed(root) or (
            "ask them to let others read it, or to give the store's folder to a group of yours"
        )
        return UnseenError(
            f"{NO_PERMISSION} to read {name} in the store {root}, which belongs to {owner_of(root, name)}; "
            f"{what_to_do}.",
            why=NO_PERMISSION,
        )
    if problem.errno in SILENT:
        return UnseenError(
            f"{NO_ANSWER} about {name} in the store {root}: {_reason(problem)}; its file system does not answer from "
            "this machine now, which says nothing of the file: try again.",
            why=NO_ANSWER,
        )
    return StoreError(
        f"cannot read {name} in the store {root}: {_reason(problem)}; "
        "check that the store is complete and readable from this machine."
    )


def unwritable(root: Path, name: str, problem: OSError, what: str = "write") -> StoreError:
    """Return the error of a file of a store that cannot be written, or deleted, or moved."""
    reason, what_to_do = no_room(root, problem)
    if problem.errno in FORBIDDEN:
        what_to_do = squashed(root) or what_to_do
    if not root.is_dir():
        reason, what_to_do = "the store's folder is gone", USUAL
    return StoreError(
        f"cannot {what} {name} in the store {root}: {reason}; {what_to_do}, or name another store with --store."
    )


def no_room(root: Path, problem: OSError) -> tuple[str, str]:
    """Return in words why a file could not be written below a folder, and what to do."""
    said = _reason(problem)
    if problem.errno == errno.EDQUOT:
        return f"{said}: the quota of {user(os.geteuid())} or of a group is used up, whatever space the disk has", (
            "delete files of yours there, free some with 'stitchgrid gc', or ask for a larger quota"
        )
    if problem.errno == errno.ENOSPC and has_no_inodes(root):
        return "no free inodes: its file system can hold no more files, whatever space it has", (
            "delete files there, or have many small ones merged with 'stitchgrid compact'"
        )
    return said, USUAL


def has_no_inodes(root: Path) -> bool:
    """Return whether the file system of a folder has room for bytes, but not for another file."""
    while not root.exists() and root != root.parent:
        root = root.parent
    try:
        found = os.statvfs(root)
    except OSError:
        return False
    counts_files = found.f_files > 0  # some file systems do not: 0 of 0
    return counts_files and found.f_favail == 0 and found.f_bavail > 0


def squashed(root: Path) -> str | None:
    """Return what to do where a file server gives root no rights; None for any other user."""
    if os.geteuid() != 0:
        return None
    try:
        owner = user(root.stat().st_uid)
    except OSError:
        owner = "its owner"
    return (
        "this process is root, and the file server gives root no rights there (root_squash): run stitchgrid as a user "
        f"who has some, such as {owner}"
    )


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)
