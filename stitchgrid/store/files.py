"""Files of a store by relative name: the little that a store asks of a file system.

Another place to keep stores (an object store) is another class with these methods.
"""

import errno
import os
import uuid
from pathlib import Path

from stitchgrid.errors import StoreError

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalFiles:
    """Files below a folder of this machine or of a network mount: complete or not there at all."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        """Return where the file of this name lies."""
        return self.root / name

    def exists(self, name: str) -> bool:
        """Return whether the file is there."""
        try:
            return self.path(name).is_file()
        except OSError as problem:
            raise self._unreadable(name, problem) from problem

    def read(self, name: str) -> bytes:
        """Return what a file holds.

        Raises:
            StoreError: If it cannot be read.
        """
        try:
            return self.path(name).read_bytes()
        except OSError as problem:
            raise self._unreadable(name, problem) from problem

    def names(self, folder: str) -> list[str]:
        """Return the sorted names (without the folder) of its complete files; none if there is no folder."""
        return sorted(entry.name for entry in self._entries(folder) if entry.is_file())

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders inside a folder; none if there is no folder."""
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def write_once(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether this call wrote it, so that the first writer wins.

        On a file system without hard links two writers within the same instant may both believe that they won.
        """
        if self.exists(name):
            return False
        target = self.path(name)
        partial = self._write_beside(target, data)
        try:
            won = _link(partial, target)
            _sync_folder(target.parent)
        except OSError as problem:
            raise self._unwritable(name, problem) from problem
        finally:
            partial.unlink(missing_ok=True)
        return won

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whether or not it exists; readers see the old or the new one, never a mixture."""
        target = self.path(name)
        partial = self._write_beside(target, data)
        try:
            partial.replace(target)
            _sync_folder(target.parent)
        except OSError as problem:
            partial.unlink(missing_ok=True)
            raise self._unwritable(name, problem) from problem

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as problem:
            raise self._unwritable(name, problem) from problem

    def leftovers(self) -> list[str]:
        """Return the sorted names of what interrupted writers left below the store: no reader ever sees them."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob(".*.partial"))

    def check_writable(self) -> None:
        """Raise a StoreError if no file can be written."""
        self._write_beside(self.root / "writable", b"?").unlink(missing_ok=True)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path(folder)) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise self._unreadable(folder, problem) from problem

    def _write_beside(self, target: Path, data: bytes) -> Path:
        # The temporary name must not end in the target's suffix: DuckDB's globs match hidden files too.
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            if not self.root.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the store's folder is gone")
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as problem:
            if partial.exists():
                partial.unlink()
            if isinstance(problem, OSError):
                raise self._unwritable(target.name, problem) from problem
            raise
        return partial

    def _unreadable(self, name: str, problem: OSError) -> StoreError:
        return StoreError(
            f"cannot read {name} in the store {self.root}: {_reason(problem)}; "
            "check that the store is complete and readable from this machine."
        )

    def _unwritable(self, name: str, problem: OSError) -> StoreError:
        return StoreError(
            f"cannot write {name} to the store {self.root}: {_reason(problem)}; "
            "check free space and permissions there, or name another store with --store."
        )


def _link(partial: Path, target: Path) -> bool:
    """Give a complete file its name unless the name is taken."""
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in NO_HARD_LINKS:
            raise
        if target.exists():
            return False
        partial.replace(target)
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)
