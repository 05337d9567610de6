"""Image folders: ROOT/SPLIT/CLASS/FILE on disk, or the same inside a tar archive, which is read member by member.

Nothing is ever extracted: a member's name only says to which split and class its bytes belong, so that a hostile name
or a link can reach no file. The same files give the same listing, in a folder and in any archive of it.
"""

import os
import tarfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import TypeVar
from zlib import error as ZlibError

from stitchgrid.datasets.sources import Decoded, Listing, Position, Unreadable, decode
from stitchgrid.errors import InputError, nearest
from stitchgrid.records import digest

T = TypeVar("T")
R = TypeVar("R")

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
DECODE_THREADS = min(8, os.cpu_count() or 1)
DECODE_CHUNK = 64  # files a thread takes at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One image file, by where it lies below the root."""

    split: str
    class_name: str
    name: str  # below the class folder
    place: int  # a source's own way to find it again

    @property
    def path(self) -> str:
        """Its path below the root."""
        return f"{self.split}/{self.class_name}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Everything an image folder holds: classes by split (empty ones too), and files in any order."""

    classes: dict[str, set[str]]
    files: tuple[File, ...]


class ImageFolderSource(ABC):
    """What a folder and an archive have in common once their files are known."""

    def __init__(self, root: Path, splits: Sequence[str]):
        self.root = root
        self._splits = tuple(dict.fromkeys(splits))

    @abstractmethod
    def signature(self) -> str:
        """Return what changes when the files change."""

    @abstractmethod
    def _tree(self) -> Tree:
        """Return what there is below the root."""

    @abstractmethod
    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | None]]:
        """Yield the content of the files, None where it cannot be read."""

    def listing(self, split: str) -> Listing:
        """Return what the split holds; a split without classes, and a class without images, are refused."""
        classes = self._tree_once.classes
        if split not in classes:
            raise InputError(
                f"{self.root} has no split {split!r}: it needs a folder of that name that holds one folder "
                f"per class; {nearest(split, classes)}."
            )
        files = self._files(split)
        if empty := sorted(classes[split] - {file.class_name for file in files}):
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise InputError(
                f"{self.root}: no image in {len(empty)} of {len(classes[split])} class folders of split "
                f"{split!r}: {shown}. Remove the empty folders, or fill them "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})."
            )
        if not files:
            raise InputError(f"{self.root}: split {split!r} holds no class folder; images lie in SPLIT/CLASS/FILE.")
        return Listing(num=len(files), class_names=tuple(sorted(classes[split])))

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, decoded by a few threads."""
        labels = {
            (s, name): i for s in self._splits for i, name in enumerate(sorted(self._tree_once.classes.get(s, ())))
        }
        files = [((split, index), self._files(split)[index]) for split, index in wanted]

        def decode_one(item: tuple[Position, File, bytes | None]) -> tuple[Position, Decoded | Unreadable]:
            position, file, raw = item
            if raw is None:
                return position, Unreadable(name=file.path, reason="cannot be read, or is a link")
            return position, decode(raw, file.path, labels[file.split, file.class_name])

        return in_threads(decode_one, self._bytes(files))

    @cached_property
    def _tree_once(self) -> Tree:
        return self._tree()

    @cached_property
    def _sorted(self) -> dict[str, list[File]]:
        by_split: dict[str, list[File]] = {}
        for file in sorted(self._tree_once.files, key=lambda file: (file.class_name, file.name)):
            by_split.setdefault(file.split, []).append(file)
        return by_split

    def _files(self, split: str) -> list[File]:
        return self._sorted.get(split, [])


class FolderSource(ImageFolderSource):
    """A folder on disk."""

    def signature(self) -> str:
        """Return a digest over path, size and time of every file of the splits in use."""
        lines = sorted(f"{file.path}\0{stamp}" for file, stamp in zip(self._tree_once.files, self._stamps, strict=True))
        return digest("folder", str(self.root.resolve()), *lines)

    def _tree(self) -> Tree:
        self._stamps: list[str] = []
        classes: dict[str, set[str]] = {}
        files: list[File] = []
        for split in _folders(self.root):
            classes[split.name] = set()
            if split.name not in self._splits:
                continue
            for class_folder in _folders(split):
                classes[split.name].add(class_folder.name)
                for path, stamp in _images_below(class_folder):
                    name = path.relative_to(class_folder).as_posix()
                    files.append(File(split=split.name, class_name=class_folder.name, name=name, place=len(files)))
                    self._stamps.append(stamp)
        return Tree(classes=classes, files=tuple(files))

    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | None]]:
        for position, file in sorted(files, key=lambda item: item[1].place):
            try:
                yield position, file, (self.root / file.path).read_bytes()
            except OSError:
                yield position, file, None


class ArchiveSource(ImageFolderSource):
    """A .tar, .tar.xz, .tar.gz or .tar.bz2; one folder around the splits (as most archives have) is looked through."""

    def signature(self) -> str:
        """Return a digest over path, size and time of the archive."""
        stat = self.root.stat()
        return digest("archive", str(self.root.resolve()), str(stat.st_size), str(stat.st_mtime_ns), *self._splits)

    def _tree(self) -> Tree:
        with self._opened() as tar:
            listed = [
                (parts, place, member.isdir()) for place, member in _members(tar) if (parts := _parts(member.name))
            ]
        tops = {parts[0] for parts, _, _ in listed}
        if len(tops) == 1 and not tops & set(self._splits):
            listed = [(parts[1:], place, is_folder) for parts, place, is_folder in listed if len(parts) > 1]
        classes: dict[str, set[str]] = {}
        files: dict[str, File] = {}  # by path: the last member of a name wins, as when a tar is unpacked
        for parts, place, is_folder in listed:
            if not is_folder and (len(parts) < 3 or not _is_image(parts[-1])):
                continue
            found = classes.setdefault(parts[0], set())
            if len(parts) > 1:
                found.add(parts[1])
            if not is_folder:
                file = File(split=parts[0], class_name=parts[1], name="/".join(parts[2:]), place=place)
                files[file.path] = file
        return Tree(classes=classes, files=tuple(files.values()))

    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | None]]:
        wanted = {file.place: (position, file) for position, file in files}
        with self._opened() as tar:
            for place, member in _members(tar):
                if place in wanted:
                    content = tar.extractfile(member) if member.isreg() else None
                    yield *wanted.pop(place), content.read() if content else None
                if not wanted:
                    return

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        """Open the archive for one pass from its beginning; whatever is wrong with it becomes an InputError."""
        try:
            # A compressed stream must never be sought backwards in: that would unpack it again from the start.
            with tarfile.open(self.root, "r:" if _is_plain(self.root) else "r|*") as tar:
                yield tar
        except (tarfile.TarError, EOFError, LZMAError, ZlibError, OSError) as problem:
            raise InputError(
                f"cannot read {self.root} as a tar archive ({type(problem).__name__}: {problem}); give a "
                "folder or a complete .tar, .tar.gz, .tar.bz2 or .tar.xz."
            ) from problem


def open_image_folder(root: Path, splits: Sequence[str]) -> ImageFolderSource:
    """Return the source for a folder or an archive."""
    if root.is_dir():
        return FolderSource(root, splits)
    if root.is_file():
        return ArchiveSource(root, splits)
    raise InputError(f"no folder or archive {root}; set `root` under [data] to where the images are.")


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _members(tar: tarfile.TarFile) -> Iterator[tuple[int, tarfile.TarInfo]]:
    place = 0
    while (member := tar.next()) is not None:
        yield place, member
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header of the archive
        place += 1


def _parts(name: str) -> tuple[str, ...] | None:
    """Return the folders and the file of a member, None for one that is hidden or points out of the archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts):
        return None
    return path.parts or None


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and stamp (size, time) of every image file below a folder, links followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _images_below(Path(entry.path))
            elif _is_image(entry.name):
                try:
                    stat = entry.stat()
                    yield Path(entry.path), f"{stat.st_size} {stat.st_mtime_ns}"
                except OSError:  # a dangling link: listed, and found unreadable when it is drawn
                    yield Path(entry.path), "unreadable"


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield function(item) in the items' order, from a few threads; only a few chunks are in memory at a time."""
    iterator = iter(items)
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        waiting: deque[Future[list[R]]] = deque()
        while chunk := list(islice(iterator, DECODE_CHUNK)):
            waiting.append(pool.submit(lambda part: [function(item) for item in part], chunk))
            if len(waiting) > 2 * DECODE_THREADS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
