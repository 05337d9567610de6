"""Where a local cluster of Ray keeps its object store: in shared memory, or where that is too small, on the disk."""

import os
from pathlib import Path

from stitchgrid.errors import ClusterError

SHARED_MEMORY = Path("/dev/shm")
SHOWN = 1_000_000  # bytes in an MB


def object_store_folder(session: Path, num_bytes: int) -> tuple[Path, str | None]:
    """Return a folder with room for so many bytes, and what to say where it is not in shared memory.

    Containers often have 64 MB of it. What a run sends through the object store is small, so the disk costs no time.

    Args:
        session: Folder of the cluster on the disk.
        num_bytes: Size of the object store.

    Raises:
        ClusterError: If neither has the room.
    """
    shared, disk = free_bytes(SHARED_MEMORY), free_bytes(session)
    if shared >= num_bytes:
        return SHARED_MEMORY, None
    if disk >= num_bytes:
        return session, (
            f"{SHARED_MEMORY} has {shared // SHOWN} MB free, fewer than the {num_bytes // SHOWN} MB of Ray's object "
            f"store, which is kept in {session} instead; nothing is lost by that."
        )
    raise ClusterError(
        f"Ray needs {num_bytes // SHOWN} MB for its object store; {SHARED_MEMORY} has {shared // SHOWN} MB free, and "
        f"{session} {disk // SHOWN} MB. Give the container more shared memory (docker run --shm-size=256m), set "
        "RAY_TMPDIR to a folder with more room, or work without Ray (--address none)."
    )


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user can still write in a folder, 0 where it is none, or not to be written."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize if os.access(folder, os.W_OK) else 0
