"""Image folders: SPLIT/CLASS/FILE below a root, on disk or in an archive: what all of them have in common.

The same files give the same listing, in a folder and in any archive of it.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from stitchgrid.cpus import num_cpus
from stitchgrid.datasets.decoding import decode, is_large
from stitchgrid.datasets.image_files import IMAGE_SUFFIXES
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.sources import Decoded, Position, Unreadable
from stitchgrid.errors import InputError, nearest
from stitchgrid.limits import raise_by
from stitchgrid.printable import printable
from stitchgrid.records import DEFAULT_LIMITS, Limits

T = TypeVar("T")
R = TypeVar("R")
Found: TypeAlias = Decoded | Unreadable

MOST_DECODE_THREADS = 8
DECODE_CHUNK = 8  # files a thread takes at a time
HELD_BYTES = 256_000_000  # of files that were read and are not decoded yet
NO_FILE = "cannot be read, or is a link"
OUTSIDE = "image outside of the class folders"


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
    left_out: dict[str, Counter[str]] = field(default_factory=dict)  # by split: kind of file -> how many


class ImageFolderSource(ABC):
    """What a folder and an archive have in common once their files are known."""

    def __init__(
        self,
        root: Path,
        splits: Sequence[str],
        *,
        bounds: Bounds | None = None,
        named: Iterable[str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ):
        self.root = root
        self._splits = tuple(dict.fromkeys(splits))
        self._bounds = bounds
        self._named = frozenset(named or ())  # classes that may be without images everywhere
        self.limits = limits

    @abstractmethod
    def signature(self) -> str:
        """Return what changes when the files change."""

    @abstractmethod
    def _tree(self) -> Tree:
        """Return what there is below the root."""

    @abstractmethod
    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | str]]:
        """Yield the content of the files, or why one cannot be read."""

    def listing(self, split: str) -> Listing:
        """Return what the split holds; a split without classes, and a class without any image, are refused.

        The classes are those of all splits in use, so that a label means the same in each.
        """
        tree = self._tree_once
        if split not in tree.classes:
            raise InputError(
                f"{self.root} has no split {split!r}: it needs a folder of that name that holds one folder "
                f"per class; {nearest(split, tree.classes)}."
            )
        if not tree.classes[split]:
            raise InputError(f"{self.root}: split {split!r} holds no class folder; images lie in SPLIT/CLASS/FILE.")
        filled = {file.class_name for file in self._files(split)}
        if not filled:
            raise InputError(f"{self.root}: split {split!r} holds no image; {_what_counts()}.")
        self._refuse_empty_classes()
        return Listing(
            num=len(self._files(split)),
            class_names=self._class_names,
            absent=tuple(name for name in self._class_names if name not in filled),
            left_out=tuple(sorted(tree.left_out.get(split, {}).items())),
        )

    def names(self, split: str) -> Sequence[str]:
        """Return the path of each image below the root."""
        return [file.path for file in self._files(split)]

    def _refuse_empty_classes(self) -> None:
        """Refuse folders that hold no image in any split: they may be no classes, and would move the labels."""
        filled = {file.class_name for split in self._splits for file in self._files(split)}
        if empty := [name for name in self._class_names if name not in filled | self._named]:
            shown = ", ".join(map(printable, empty[:5])) + (", ..." if len(empty) > 5 else "")
            splits = " or ".join(repr(split) for split in self._splits)
            raise InputError(
                f"{self.root}: no image in {len(empty)} of {len(self._class_names)} class folders, in split {splits}: "
                f"{shown}. Remove the empty folders, or fill them ({_what_counts()}); a class that is to be there "
                "without images can be named in `classes` under [data]."
            )

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, decoded by a few threads; large ones when their turn comes, one at a time."""
        labels = {name: label for label, name in enumerate(self._class_names)}
        files = [((split, index), self._files(split)[index]) for split, index in wanted]

        def decode_one(item: tuple[Position, File, bytes | str]) -> tuple[Position, Found | Callable[[], Found]]:
            position, file, raw = item
            name = printable(file.path)  # names of files need not be text
            if isinstance(raw, str):
                return position, Unreadable(name=name, reason=raw)
            decoded = partial(decode, raw, name, labels[file.class_name], self._bounds, self.limits)
            return position, decoded if is_large(raw) else decoded()

        for position, found in in_threads(decode_one, self._bytes(files), weigh=lambda item: len(item[2])):
            yield position, found() if callable(found) else found

    def check_number(self, num: int) -> None:
        """Refuse more files and folders than the limits allow.

        Raises:
            InputError: Naming the limit.
        """
        if num > self.limits.members:
            raise InputError(
                f"{self.root} holds more than {self.limits.members:,} files and folders; {raise_by('members')}."
            )

    @cached_property
    def _tree_once(self) -> Tree:
        return self._tree()

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        return tuple(sorted(set().union(*(self._tree_once.classes.get(split, ()) for split in self._splits))))

    @cached_property
    def _sorted(self) -> dict[str, list[File]]:
        by_split: dict[str, list[File]] = {}
        for file in sorted(self._tree_once.files, key=lambda file: (file.class_name, file.name)):
            by_split.setdefault(file.split, []).append(file)
        return by_split

    def _files(self, split: str) -> list[File]:
        return self._sorted.get(split, [])


def _what_counts() -> str:
    return f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}"


def in_threads(function: Callable[[T], R], items: Iterable[T], *, weigh: Callable[[T], int]) -> Iterator[R]:
    """Yield function(item) in the items' order, from a few threads; only a few chunks are in memory at a time.

    `weigh` tells the bytes of an item: of several that weigh much, fewer are held at a time.
    """
    num_threads = min(MOST_DECODE_THREADS, num_cpus())
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[tuple[Future[list[R]], int]] = deque()
        held = 0
        for chunk, weight in _chunks(items, weigh):
            waiting.append((pool.submit(lambda part: [function(item) for item in part], chunk), weight))
            held += weight
            while waiting and (len(waiting) > 2 * num_threads or held > HELD_BYTES):
                first, its_weight = waiting.popleft()
                held -= its_weight
                yield from first.result()
        while waiting:
            yield from waiting.popleft()[0].result()


def _chunks(items: Iterable[T], weigh: Callable[[T], int]) -> Iterator[tuple[list[T], int]]:
    chunk: list[T] = []
    weight = 0
    for item in items:
        chunk.append(item)
        weight += weigh(item)
        if len(chunk) == DECODE_CHUNK or weight > HELD_BYTES // DECODE_CHUNK:
            yield chunk, weight
            chunk, weight = [], 0
    if chunk:
        yield chunk, weight


def too_large(limits: Limits) -> str:
    """Return why a file is not read, as the reason of an image that is unreadable."""
    return f"larger than {limits.file_bytes / 1e6:,g} MB; {raise_by('file_bytes')}"
