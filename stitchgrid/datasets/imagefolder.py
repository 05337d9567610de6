"""Image folders, SPLIT/CLASS/FILE below a root: the code that folders and archives share.

The same files give the same listing, whether they are in a folder or in an archive.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from stitchgrid.datasets.encoded import Encoded, decode_all
from stitchgrid.datasets.image_files import IMAGE_SUFFIXES
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.sources import Decoded, Position, Unreadable
from stitchgrid.errors import InputError, nearest
from stitchgrid.limits import raise_by
from stitchgrid.printable import first_few, printable
from stitchgrid.records import DEFAULT_LIMITS, Limits

OUTSIDE = "image outside of the class folders"
SHOWN = 5  # names of empty class folders in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One image file below the root."""

    split: str
    class_name: str
    name: str  # path below the class folder; without labels, below the folder of the split
    place: int  # position by which the source finds the file again

    @property
    def path(self) -> str:
        """Its path below the root."""
        return f"{self.split}/{self.class_name}/{self.name}" if self.class_name else f"{self.split}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The content of an image folder."""

    classes: dict[str, set[str]]  # split -> names of its class folders, also of empty ones
    files: tuple[File, ...]  # in any order
    left_out: dict[str, Counter[str]] = field(default_factory=dict)  # split -> kind of file -> how many are not read


class ImageFolderSource(ABC):
    """The base class of folders and archives of images."""

    def __init__(
        self,
        root: Path,
        splits: Sequence[str],
        *,
        bounds: Bounds | None = None,
        named: Iterable[str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        has_labels: bool = True,
    ):
        self.root, self.has_labels = root, has_labels
        self._splits = tuple(dict.fromkeys(splits))
        self._bounds = bounds
        self._named = frozenset(named or ())  # classes that may have no images in any split
        self.limits = limits

    @abstractmethod
    def signature(self) -> str:
        """Return a digest that changes when the files change."""

    @abstractmethod
    def _tree(self) -> Tree:
        """Return the content below the root."""

    @abstractmethod
    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | str]]:
        """Yield the content of each file, or as text the reason why it cannot be read."""

    def listing(self, split: str) -> Listing:
        """Return the listing of a split: its number of images, and its classes.

        The classes are those of all splits in use, so that a label means the same in each. Without labels, an image may
        lie anywhere in the folder of its split.

        Raises:
            InputError: If there is no such split, it has no class or no image, or a class has no image in any split.
        """
        tree = self._tree_once
        if split not in tree.classes:
            raise InputError(
                f"{self.root} has no split {split!r}: it needs a folder of that name that holds one folder "
                f"per class; {nearest(split, tree.classes)}."
            )
        if not self.has_labels:
            return self._unlabelled(split)
        if not tree.classes[split]:
            raise InputError(f"{self.root}: split {split!r} has no class folder; put images in SPLIT/CLASS/FILE.")
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

    def _unlabelled(self, split: str) -> Listing:
        if not self._files(split):
            raise InputError(f"{self.root}: split {split!r} holds no image; {_what_counts()}.")
        left_out = tuple(sorted(self._tree_once.left_out.get(split, {}).items()))
        return Listing(num=len(self._files(split)), class_names=(), left_out=left_out)

    def names(self, split: str) -> Sequence[str]:
        """Return the path of each image below the root."""
        return [file.path for file in self._files(split)]

    def _refuse_empty_classes(self) -> None:
        """Refuse class folders without an image in any split: they may not be classes, and would shift the labels."""
        filled = {file.class_name for split in self._splits for file in self._files(split)}
        if empty := [name for name in self._class_names if name not in filled | self._named]:
            shown = first_few(list(map(printable, empty)), SHOWN)
            splits = " or ".join(repr(split) for split in self._splits)
            raise InputError(
                f"{self.root}: no image in {len(empty)} of {len(self._class_names)} class folders, in split {splits}: "
                f"{shown}. Remove the empty folders, or fill them ({_what_counts()}); to keep a class without images, "
                "name it in `classes` under [data]."
            )

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, decoded by a few threads; large images are decoded one at a time."""
        labels = {name: label for label, name in enumerate(self._class_names)}
        files = [((split, index), self._files(split)[index]) for split, index in wanted]
        encoded = (
            Encoded(position=position, name=file.path, label=labels.get(file.class_name, 0), raw=raw)
            for position, file, raw in self._bytes(files)
        )
        yield from decode_all(encoded, self._bounds, self.limits)

    def check_number(self, num: int) -> None:
        """Check the number of files and folders.

        Raises:
            InputError: If there are more than the limits allow; the message names the limit.
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
