"""The folder of a local Ray cluster's object store: in shared memory, or on the disk if shared memory is too small."""

import os
from pathlib import Path

from stitchgrid.errors import ClusterError

SHARED_MEMORY = Path("/dev/shm")
SHOWN = 1_000_000  # bytes in an MB


def object_store_folder(session: Path, num_bytes: int) -> tuple[Path, str | None]:
    """Return a folder with room for the object store, and a note if it is not in shared memory (else None).

    Containers often have only 64 MB of shared memory. A run sends little data through the object store, so the disk is
    as fast.

    Args:
        session: Folder of the cluster on the disk.
        num_bytes: Size of the object store.

    Raises:
        ClusterError: If neither has enough room.
    """
    shared, disk = free_bytes(SHARED_MEMORY), free_bytes(session)
    if shared >= num_bytes:
        return SHARED_MEMORY, None
    if disk >= num_bytes:
        return session, (
            f"{SHARED_MEMORY} has {shared // SHOWN} MB free, fewer than the {num_bytes // SHOWN} MB of Ray's object "
            f"store, so the object store is kept in {session} instead; that has no disadvantage."
        )
    raise ClusterError(
        f"Ray needs {num_bytes // SHOWN} MB for its object store; {SHARED_MEMORY} has {shared // SHOWN} MB free, and "
        f"{session} {disk // SHOWN} MB. Give the container more shared memory (docker run --shm-size=256m), set "
        "RAY_TMPDIR to a folder with more room, or work without Ray (--address none)."
    )


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user can still write in a folder; 0 if it does not exist or cannot be written."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize if os.access(folder, os.W_OK) else 0
