"""Files of a store by relative name: the little that a store asks of a file system, and a folder that gives it."""

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from stitchgrid.errors import StoreError

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Files(Protocol):
    """Where a store is kept: files that are complete or not there at all, by names with `/` between folders.

    Every method raises a StoreError where the place cannot be reached or refuses. Names that begin with a dot are
    never listed.
    """

    @property
    def uri(self) -> str:
        """What reopens the place in another process, and names it in messages; holds no secret."""

    def where(self, name: str) -> str:
        """Return the file's full name for people."""

    def exists(self, name: str) -> bool:
        """Return whether the file is there."""

    def read(self, name: str) -> bytes:
        """Return what a file holds."""

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | StoreError]:
        """Yield what each file holds, in the order of the names, or the error that reading it raised."""

    def names(self, folder: str) -> list[str]:
        """Return the sorted names (without the folder) of its complete files; none if there is no folder."""

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders inside a folder; none if there is no folder."""

    def write_once(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether this call wrote it, so that the first writer wins."""

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whether or not it exists; readers see the old or the new one, never a mixture."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if it is not there."""

    def check_writable(self) -> None:
        """Raise a StoreError if no file can be written."""

    def create(self, name: str, data: bytes) -> None:
        """Make the place ready and writable, with this file in it unless it exists; or leave nothing behind."""

    def absence(self, name: str) -> str:
        """Return what to say about a place where this file, which makes it a store, is missing."""


class LocalFiles:
    """Files below a folder of this machine or of a network mount."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """Return where the file of this name lies; a StoreError if that is not inside the store."""
        if name.startswith("/") or ".." in name.split("/"):  # a damaged manifest may name anything
            raise StoreError(f"{name!r} is no file of the store {self.root}; run stitchgrid check.")
        return self.root / name

    def where(self, name: str) -> str:
        """Return the file's full name for people."""
        return str(self.path(name))

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

    def read_many(self, names: Iterable[str]) -> Iterator[bytes | StoreError]:
        """Yield what each file holds, in the order of the names, or the error that reading it raised."""
        return (read_or_problem(self, name) for name in names)

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
        """Remove a file; nothing happens if it is not there."""
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as problem:
            raise self._unwritable(name, problem, what="delete") from problem

    def leftovers(self) -> list[str]:
        """Return the sorted names of what interrupted writers left below the store: no reader ever sees them."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob(".*.partial"))

    def check_writable(self) -> None:
        """Raise a StoreError if no file can be written."""
        self._write_beside(self.root / "writable", b"?").unlink(missing_ok=True)

    def create(self, name: str, data: bytes) -> None:
        """Make the folder, writable and with this file in it unless it exists; or leave nothing behind."""
        made: list[Path] = []
        try:
            for folder in (*reversed(self.root.parents), self.root):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
            self.write_once(name, data)
            self.check_writable()
        except (OSError, StoreError) as problem:
            with suppress(OSError):  # somebody else put something there, or it cannot be undone either
                if self.root in made:
                    self.path(name).unlink(missing_ok=True)
                for folder in reversed(made):
                    folder.rmdir()
            if isinstance(problem, StoreError):
                raise
            raise StoreError(
                f"cannot make a store at {self.root}: {_reason(problem)}; check the path and its permissions, "
                "or name another store with --store."
            ) from problem

    def absence(self, name: str) -> str:
        """Return what to say about a folder where this file is missing."""
        return f"the folder is not a store (no {name})" if self.root.is_dir() else "there is no such folder"

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

    def _unwritable(self, name: str, problem: OSError, what: str = "write") -> StoreError:
        return StoreError(
            f"cannot {what} {name} in the store {self.root}: {_reason(problem)}; "
            "check free space and permissions there, or name another store with --store."
        )


def read_or_problem(files: Files, name: str) -> bytes | StoreError:
    """Return what a file holds, or the error that reading it raised."""
    try:
        return files.read(name)
    except StoreError as problem:
        return problem


def write_next(files: Files, name_of: Callable[[int], str], data: bytes, *, after: int) -> int:
    """Write a numbered file under the first number above `after` that is free; return the number."""
    number = after + 1
    while not files.write_once(name_of(number), data):
        number += 1
    return number


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
