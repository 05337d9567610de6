"""An image folder on disk."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchgrid.datasets.imagefolder import (
    MAX_FILE_BYTES,
    NO_FILE,
    OUTSIDE,
    TOO_LARGE,
    File,
    ImageFolderSource,
    Tree,
    is_image,
    suffix_of,
)
from stitchgrid.datasets.sources import Position
from stitchgrid.records import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file below a class folder that is not hidden."""

    name: str  # its path below the class folder
    stamp: str  # changes whenever the file does


class FolderSource(ImageFolderSource):
    """A folder on disk."""

    def signature(self) -> str:
        """Return a digest over the path and the stamp of every image of the splits in use, and what is left out."""
        tree = self._tree_once
        lines = sorted(f"{file.path}\0{stamp}" for file, stamp in zip(tree.files, self._stamps, strict=True))
        lines += sorted(f"{split}/{name}" for split in self._splits for name in tree.classes.get(split, ()))
        lines += sorted(f"{split}\0{sorted(count.items())}" for split, count in tree.left_out.items())
        return digest("folder", str(self.root.resolve()), *lines)

    def _tree(self) -> Tree:
        self._stamps: list[str] = []
        classes: dict[str, set[str]] = {}
        files: list[File] = []
        left_out: dict[str, Counter[str]] = {}
        for split in _folders(self.root):
            classes[split.name] = set()
            if split.name not in self._splits:
                continue
            left_out[split.name] = Counter(
                OUTSIDE if is_image(entry.name) else suffix_of(entry.name)
                for entry in split.iterdir()
                if not entry.is_dir() and not entry.name.startswith(".")
            )
            for folder in _folders(split):
                classes[split.name].add(folder.name)
                for entry in _files_below(folder, "", ()):
                    if not is_image(entry.name.rpartition("/")[2]):
                        left_out[split.name][suffix_of(entry.name)] += 1
                        continue
                    files.append(
                        File(split=split.name, class_name=folder.name, name=entry.name, place=len(files)),
                    )
                    self._stamps.append(entry.stamp)
        return Tree(classes=classes, files=tuple(files), left_out=left_out)

    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | str]]:
        for position, file in sorted(files, key=lambda item: item[1].place):
            try:
                yield position, file, _content(self.root / file.path)
            except OSError:
                yield position, file, NO_FILE


def stamp_of(found: os.stat_result) -> str:
    """Return what changes whenever a file is written or replaced.

    Size and time of modification can be kept (cp -p, rsync -t, os.utime); the file system sets the time of change
    itself, and a file that took another's place has another number.
    """
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _content(path: Path) -> bytes | str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device may never end
        return "no regular file"
    return TOO_LARGE if found.st_size > MAX_FILE_BYTES else path.read_bytes()


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files_below(folder: Path, prefix: str, around: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Yield every file below a folder that is not hidden, links followed, but none to a folder that is around it."""
    here = folder.stat()
    if (here.st_dev, here.st_ino) in around:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            name = prefix + entry.name
            if entry.is_dir():
                yield from _files_below(Path(entry.path), f"{name}/", (*around, (here.st_dev, here.st_ino)))
                continue
            try:
                yield Entry(name=name, stamp=stamp_of(entry.stat()))
            except OSError:  # a dangling link: listed, and found unreadable when it is drawn
                yield Entry(name=name, stamp="unreadable")
