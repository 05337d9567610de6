"""An image folder on disk."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchgrid.datasets.encoded import NO_FILE, too_large
from stitchgrid.datasets.image_files import is_image, suffix_of
from stitchgrid.datasets.imagefolder import (
    OUTSIDE,
    File,
    ImageFolderSource,
    Tree,
)
from stitchgrid.datasets.sources import Position
from stitchgrid.errors import InputError
from stitchgrid.records import Limits, digest

DEEPEST = 200  # most levels of folders


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEntry:
    """A file below a class folder; hidden files are left out."""

    name: str  # its path below the class folder
    stamp: str  # changes whenever the file does


class FolderSource(ImageFolderSource):
    """A folder on disk."""

    def signature(self) -> str:
        """Return a digest over path and stamp of every image of the splits in use, and counts of files left out."""
        tree = self._tree_once
        lines = sorted(f"{file.path}\0{stamp}" for file, stamp in zip(tree.files, self._stamps, strict=True))
        lines += sorted(f"{split}/{name}" for split in self._splits for name in tree.classes.get(split, ()))
        lines += sorted(f"{split}\0{sorted(count.items())}" for split, count in tree.left_out.items())
        return digest("folder", str(self.has_labels), str(self.root.resolve()), *lines)

    def _tree(self) -> Tree:
        try:
            return self._walked()
        except OSError as problem:
            raise InputError(f"cannot read {problem.filename or self.root}: {problem.strerror}.") from problem

    def _walked(self) -> Tree:
        self._stamps: list[str] = []
        self._num_seen = 0
        classes: dict[str, set[str]] = {}
        files: list[File] = []
        left_out: dict[str, Counter[str]] = {}
        for split in _folders(self.root):
            classes[split.name] = set()
            if split.name not in self._splits:
                continue
            if not self.has_labels:
                left_out[split.name] = self._add_below(split, split.name, "", files)
                continue
            left_out[split.name] = Counter(
                OUTSIDE if is_image(entry.name) else suffix_of(entry.name)
                for entry in split.iterdir()
                if not entry.is_dir() and not entry.name.startswith(".")
            )
            for folder in _folders(split):
                classes[split.name].add(folder.name)
                left_out[split.name] += self._add_below(folder, split.name, folder.name, files)
        return Tree(classes=classes, files=tuple(files), left_out=left_out)

    def _add_below(self, folder: Path, split: str, class_name: str, files: list[File]) -> Counter[str]:
        """Append the images below a folder to `files`; return suffix -> number of files that are not images."""
        left_out: Counter[str] = Counter()
        for entry in _files_below(folder, "", (), self._count):
            if not is_image(entry.name.rpartition("/")[2]):
                left_out[suffix_of(entry.name)] += 1
                continue
            files.append(File(split=split, class_name=class_name, name=entry.name, place=len(files)))
            self._stamps.append(entry.stamp)
        return left_out

    def _count(self) -> None:
        self._num_seen += 1
        self.check_number(self._num_seen)

    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | str]]:
        for position, file in sorted(files, key=lambda item: item[1].place):
            try:
                yield position, file, content_of(self.root / file.path, self.limits)
            except OSError:
                yield position, file, NO_FILE


def stamp_of(found: os.stat_result) -> str:
    """Return a text that changes whenever a file is written or replaced: size, mtime, ctime and inode.

    Tools can keep size and mtime (cp -p, rsync -t, os.utime). The file system sets ctime itself, and a file that
    replaces another has another inode.
    """
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def content_of(path: Path, limits: Limits) -> bytes | str:
    """Return the content of a regular file, or as text the reason why it is not read."""
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or device may never end
        return "not a regular file"
    with path.open("rb") as file:
        content = file.read(limits.file_bytes + 1)
    return too_large(limits) if len(content) > limits.file_bytes else content


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files_below(
    folder: Path, prefix: str, around: tuple[tuple[int, int], ...], count: Callable[[], None]
) -> Iterator[FolderEntry]:
    """Yield every file below a folder that is not hidden; links are followed, except to a folder that contains them.

    `count` is called for every file and folder, so that it can stop the walk: many links may lead to one folder.
    """
    here = folder.stat()
    if (here.st_dev, here.st_ino) in around:
        return
    if len(around) >= DEEPEST:
        raise InputError(f"{folder} has more than {DEEPEST} levels of folders; move the images up.")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            count()
            name = prefix + entry.name
            if _is_folder(entry):
                yield from _files_below(Path(entry.path), f"{name}/", (*around, (here.st_dev, here.st_ino)), count)
                continue
            try:
                yield FolderEntry(name=name, stamp=stamp_of(entry.stat()))
            except OSError:  # a dangling link: it is listed, and reading it gives an error
                yield FolderEntry(name=name, stamp="unreadable")
