"""The folder of a store: it stays the same folder while the store is open, even if its path leads elsewhere later."""

import os
import weakref
from pathlib import Path

from stitchgrid.errors import NO_ANSWER, UnseenError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Root:
    """A folder by its path, opened again each time, and only if it is the folder that was opened first.

    A user who can rename a folder of the path could put another store in its place between two steps of a deletion. The
    first descriptor is kept open, so that no other folder gets the number of this one; nothing is read through it, so
    processes may share it. Only the path is sent to another process.
    """

    def __init__(self, path: Path):
        self.path = path
        self._first: tuple[int, int] | None = None  # device and number

    def __reduce__(self) -> tuple[type["Root"], tuple[Path]]:
        return Root, (self.path,)

    def open(self) -> int:
        """Return a new descriptor of the folder.

        Raises:
            UnseenError: If another folder is in its place, or it is gone.
            OSError: If it cannot be opened.
        """
        try:
            new = os.open(self.path, FOLDER)
        except (FileNotFoundError, NotADirectoryError) as problem:
            if self._first is None:
                raise
            raise self._lost(
                "the store's folder is gone: it was moved, removed, or is not mounted any more"
            ) from problem
        found = os.fstat(new)
        if self._first is None:
            self._first = found.st_dev, found.st_ino
            weakref.finalize(self, os.close, os.dup(new))
        if self._first != (found.st_dev, found.st_ino):
            os.close(new)
            raise self._lost("another folder is in its place")
        return new

    def _lost(self, what: str) -> UnseenError:
        return UnseenError(
            f"the store at {self.path} was replaced meanwhile: {what}; nothing more is read or written there: find "
            "out who can rename folders of this path, and begin again.",
            why=NO_ANSWER,
        )
