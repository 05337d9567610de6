"""Files of a store by relative name: the few operations that a store needs, and a folder that offers them."""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stitchgrid.errors import StoreError
from stitchgrid.store import folder as below
from stitchgrid.store.layout import SET_ASIDE
from stitchgrid.store.limits import LONGEST_FILE
from stitchgrid.store.os_errors import no_room, unreadable, unwritable
from stitchgrid.store.root import Root


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of a file without reading it."""

    num_bytes: int
    age_seconds: float  # since it was written


class Files(Protocol):
    """Where a store is kept: files that are complete or not there at all, by names with `/` between folders.

    Every method raises a StoreError where the place cannot be reached or refuses access. Names that begin with a dot
    are never listed.
    """

    @property
    def uri(self) -> str:
        """The text that reopens the place in another process and names it in messages; it holds no secret."""

    def where(self, name: str) -> str:
        """Return the file's full name for people."""

    def exists(self, name: str) -> bool:
        """Return whether the file is there."""

    def read(self, name: str, longest: int = LONGEST_FILE) -> bytes:
        """Return what a file holds; a StoreError if it holds more than `longest` bytes, of which none are read."""

    def read_many(self, names: Iterable[str], longest: int = LONGEST_FILE) -> Iterator[bytes | StoreError]:
        """Yield what each file holds, in the order of the names, or the error that reading it raised."""

    def facts(self, name: str) -> "FileFacts | None":
        """Return how large a file is and when it was written; None if it is not there."""

    def names(self, folder: str) -> list[str]:
        """Return the sorted names (without the folder) of its complete files; none if there is no folder.

        Entries that are no regular files are among them, so that reading them raises an error that says why.
        """

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
        self._held = Root(root)

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """Return where the file of this name lies; a StoreError if that is not inside the store."""
        self._parts(name)
        return self.root / name

    def where(self, name: str) -> str:
        """Return the file's full name for people."""
        return str(self.path(name))

    def exists(self, name: str) -> bool:
        """Return whether the file is there; only regular files count."""
        self._parts(name)
        try:
            os.close(below.open_file(self._held, name))
        except (FileNotFoundError, NotADirectoryError, below.NotRegularError, ValueError):
            return False  # ValueError: the path of the root is invalid
        except OSError as problem:
            raise unreadable(self.root, name, problem) from problem
        return True

    def read(self, name: str, longest: int = LONGEST_FILE) -> bytes:
        """Return what a file holds.

        Raises:
            StoreError: If it cannot be read, is no regular file of the store, or is longer than `longest`.
        """
        self._parts(name)
        try:
            with os.fdopen(below.open_file(self._held, name), "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > longest:
                    raise too_long(self, name, size, longest)
                return file.read()
        except OSError as problem:
            raise unreadable(self.root, name, problem) from problem

    def read_many(self, names: Iterable[str], longest: int = LONGEST_FILE) -> Iterator[bytes | StoreError]:
        """Yield what each file holds, in the order of the names, or the error that reading it raised."""
        return (read_or_problem(self, name, longest) for name in names)

    def names(self, folder: str) -> list[str]:
        """Return the sorted names (without the folder) of its files, also of entries that are no regular files."""
        return sorted(name for name, is_folder in self._entries(folder) if not is_folder)

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders inside a folder; none if there is no folder."""
        return sorted(name for name, is_folder in self._entries(folder) if is_folder)

    def kind(self, name: str) -> int | None:
        """Return the kind of an entry of a store, one of `stat`'s, without following links; None if it is not there.

        Raises:
            StoreError: If the kind cannot be read.
        """
        *folders, last = self._parts(name)
        try:
            with below.opened(self._held, folders) as folder:
                return below.kind_of(folder, last)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise StoreError(
                f"cannot look at {name} in the store {self.root}: {problem.strerror or problem}"
            ) from problem

    def is_no_folder(self, folder: str) -> bool:
        """Return whether a link or a file is in the place of a folder; the folder then counts as empty."""
        try:
            with below.opened(self._held, self._parts(folder)):
                return False
        except (below.NotRegularError, NotADirectoryError):
            return True
        except OSError:
            return False

    def is_strange(self, name: str) -> bool:
        """Return whether the entry of this name is neither file nor folder, or is a folder in the place of a file."""
        *folders, last = self._parts(name)
        try:
            with below.opened(self._held, folders) as folder:
                kind = below.kind_of(folder, last)
        except OSError:
            return False
        return kind not in (None, stat.S_IFREG, stat.S_IFDIR) or (
            kind == stat.S_IFDIR and below.FILES.fullmatch(name.removeprefix(f"{SET_ASIDE}/")) is not None
        )

    def size(self, name: str) -> int:
        """Return the number of bytes of a regular file, 0 where there is none."""
        try:
            with os.fdopen(below.open_file(self._held, name), "rb") as file:
                return os.fstat(file.fileno()).st_size
        except OSError:
            return 0

    def facts(self, name: str) -> FileFacts | None:
        """Return how large something is and when it was written, without following links; None if it is not there."""
        *folders, last = self._parts(name)
        try:
            with below.opened(self._held, folders) as folder:
                found = os.stat(last, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return None
        return FileFacts(num_bytes=found.st_size, age_seconds=time.time() - found.st_mtime)

    def prune(self, folder: str) -> None:
        """Remove a folder and the folders inside it where they are empty, no deeper than a store's folders lie."""
        found = [folder]
        for one in found:  # which grows meanwhile
            if one.count("/") < below.DEEPEST:
                found += [f"{one}/{inner}" for inner in self.folders(one)]
        for one in reversed(found):
            *above, last = self._parts(one)
            with suppress(OSError), below.opened(self._held, above) as opened:
                os.rmdir(last, dir_fd=opened)

    def strangers(self) -> list[below.Stranger]:
        """Return all entries below the store that no store has, except those that were set aside."""
        return list(below.strangers(self._held, SET_ASIDE))

    def write_once(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether this call wrote it, so that the first writer wins.

        On a file system without hard links two writers within the same instant may both believe that they won.
        """
        if self.exists(name):
            return False
        *folders, last = self._parts(name)
        try:
            with below.opened(self._held, folders, make=True) as folder:
                partial = below.write_beside(folder, last, data)
                try:
                    won = below.link(folder, partial, last)
                    below.sync(folder)
                finally:
                    below.remove(folder, partial)
                if not won and below.kind_of(folder, last) not in (None, stat.S_IFREG):
                    os.close(below.open_file(self._held, name))  # raises the error if it cannot be read
        except OSError as problem:
            raise unwritable(self.root, name, problem) from problem
        return won

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whether or not it exists; readers see the old or the new one, never a mixture."""
        *folders, last = self._parts(name)
        try:
            with below.opened(self._held, folders, make=True) as folder:
                partial = below.write_beside(folder, last, data)
                try:
                    os.rename(partial, last, src_dir_fd=folder, dst_dir_fd=folder)
                    below.sync(folder)
                except BaseException:
                    below.remove(folder, partial)
                    raise
        except OSError as problem:
            raise unwritable(self.root, name, problem) from problem

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if it is not there."""
        *folders, last = self._parts(name)
        try:
            with below.opened(self._held, folders) as folder:
                os.unlink(last, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise unwritable(self.root, name, problem, what="delete") from problem

    def move(self, name: str, to: str) -> bool:
        """Rename an entry of a store, even a link or a pipe; return False if the new name is taken."""
        (*folders, last), (*new_folders, new) = self._parts(name), self._parts(to)
        try:
            with below.opened(self._held, folders) as old, below.opened(self._held, new_folders, make=True) as there:
                if below.kind_of(there, new) is not None:
                    return False
                os.rename(last, new, src_dir_fd=old, dst_dir_fd=there)
        except OSError as problem:
            raise unwritable(self.root, name, problem, what="move") from problem
        return True

    def check_writable(self) -> None:
        """Raise a StoreError if no file can be written."""
        try:
            with below.opened(self._held, ()) as folder:
                below.remove(folder, below.write_beside(folder, "writable", b"?"))
        except OSError as problem:
            raise unwritable(self.root, "writable", problem) from problem

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
            with suppress(OSError, StoreError):  # somebody else put something there, or it cannot be undone either
                if self.root in made:
                    self.delete(name)
                for folder in reversed(made):
                    folder.rmdir()
            if isinstance(problem, StoreError):
                raise
            reason, _ = no_room(self.root, problem)
            raise StoreError(
                f"cannot make a store at {self.root}: {reason}; check the path and its permissions, "
                "or name another store with --store."
            ) from problem

    def absence(self, name: str) -> str:
        """Return what to say about a folder where this file is missing."""
        return f"the folder is not a store (no {name})" if self.root.is_dir() else "there is no such folder"

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        """Return the entries of a folder, and whether each is a folder itself; a link never counts as one."""
        try:
            with below.opened(self._held, self._parts(folder)) as opened, os.scandir(opened) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError, below.NotRegularError):
            return []
        except OSError as problem:
            raise unreadable(self.root, folder, problem) from problem
        return [(name, is_folder) for name, is_folder in found if not name.startswith(".") and below.is_name(name)]

    def _parts(self, name: str) -> list[str]:
        """Return the folders of a name and its last part; a StoreError if it could lead out of the store."""
        parts = name.split("/") if name else []
        if not all(map(below.is_name, parts)):  # a damaged manifest may name anything
            raise StoreError(f"{name!r} is no file of the store {self.root}; run stitchgrid check.")
        return parts


def read_or_problem(files: Files, name: str, longest: int = LONGEST_FILE) -> bytes | StoreError:
    """Return what a file holds, or the error that reading it raised."""
    try:
        return files.read(name, longest)
    except StoreError as problem:
        return problem


def too_long(files: Files, name: str, size: int, longest: int) -> StoreError:
    """Return the error of a file that is longer than what a store keeps there."""
    return StoreError(
        f"cannot read {name} in the store {files.uri}: it has {size} bytes, and no such file has more than {longest}; "
        "run stitchgrid check."
    )


def write_next(files: Files, name_of: Callable[[int], str], data: bytes, *, after: int) -> int:
    """Write a numbered file under the first number above `after` that is free; return the number."""
    number = after + 1
    while not files.write_once(name_of(number), data):
        number += 1
    return number
