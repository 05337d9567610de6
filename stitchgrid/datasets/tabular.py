"""Images whose names and classes come from a table: lists, Parquet files, WebDataset."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stitchgrid.datasets.encoded import Encoded, decode_all
from stitchgrid.datasets.folder import stamp_of
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.numeric_labels import as_labels, listings, unlabelled
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.sources import Decoded, Position, Unreadable
from stitchgrid.errors import InputError
from stitchgrid.limits import raise_by
from stitchgrid.records import DEFAULT_LIMITS, Limits, canonical, digest


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One image of a split."""

    name: str  # "" if it has none
    label: str | int | None  # None: no labels are read
    place: Any  # by which the source finds the image again


class TableSource(ABC):
    """Images in the order of their classes, then of their names, as in a sorted image folder."""

    kind: str

    def __init__(
        self,
        root: Path,
        splits: Sequence[str],
        *,
        bounds: Bounds | None = None,
        named: Sequence[str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        keys: Mapping[str, str] | None = None,
        has_labels: bool = True,
    ):
        self.root, self.limits, self.keys, self.has_labels = root, limits, dict(keys or {}), has_labels
        self.splits = tuple(dict.fromkeys(splits))
        self._bounds, self._named = bounds, named

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Return the files on which everything depends."""

    @abstractmethod
    def rows(self, split: str) -> list[TableRow]:
        """Return the images of a split, in the order of the files.

        Raises:
            InputError: If there is no such split, or it cannot be read.
        """

    @abstractmethod
    def contents(self, wanted: Sequence[tuple[Position, TableRow]]) -> Iterator[tuple[Position, TableRow, bytes | str]]:
        """Yield the content of images' files, or why one cannot be read, in an order that the files decide."""

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of classes that are numbers, None where the files give none."""
        return None

    def signature(self) -> str | None:
        """Return a digest over path and stamp of the files."""
        lines = [f"{path.resolve()}\0{stamp_of(path.stat())}" for path in sorted(self.files())]
        how = canonical([self.keys, self.has_labels, self.splits, self._named])
        return digest(self.kind, how, *lines)

    def listing(self, split: str) -> Listing:
        """Return what the split holds."""
        return self._listings[split]

    def names(self, split: str) -> Sequence[str]:
        """Return the name of each image; empty if some have no name, or two have the same."""
        names = [row.name for row in self._sorted[split]]
        return names if all(names) and len(set(names)) == len(names) else ()

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, decoded by a few threads."""
        rows = [((split, index), self._sorted[split][index]) for split, index in wanted]
        encoded = (
            Encoded(
                position=position,
                name=row.name or f"{position[0]}[{position[1]}]",
                label=self._label(row),
                raw=raw,
            )
            for position, row, raw in self.contents(rows)
        )
        yield from decode_all(encoded, self._bounds, self.limits)

    def check_number(self, num: int) -> None:
        """Refuse more images than the limits allow."""
        if num > self.limits.members:
            raise InputError(f"{self.root} lists more than {self.limits.members:,} images; {raise_by('members')}.")

    @cached_property
    def _rows(self) -> dict[str, list[TableRow]]:
        found = {split: self.rows(split) for split in self.splits}
        if empty := [split for split, rows in found.items() if not rows]:
            raise InputError(f"{self.root}: split {empty[0]!r} lists no image.")
        return found

    @cached_property
    def _is_numbered(self) -> bool:
        return all(isinstance(row.label, int) for rows in self._rows.values() for row in rows)

    @cached_property
    def _classes(self) -> dict[str, int]:
        """Return the label of each class that is a text."""
        names = sorted({str(row.label) for rows in self._rows.values() for row in rows})
        return {name: label for label, name in enumerate(names)}

    def _label(self, row: TableRow) -> int:
        if not self.has_labels:
            return 0
        return int(row.label or 0) if self._is_numbered else self._classes[str(row.label)]

    @cached_property
    def _sorted(self) -> dict[str, list[TableRow]]:
        return {split: sorted(rows, key=lambda row: (self._label(row), row.name)) for split, rows in self._rows.items()}

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        if not self.has_labels:
            return unlabelled({split: len(rows) for split, rows in self._rows.items()})
        known = self.class_names() if self._is_numbered else tuple(self._classes)
        labels = {
            split: as_labels([self._label(row) for row in rows], f"{self.root}, split {split!r}")
            for split, rows in self._sorted.items()
        }
        return listings(labels, known, self._named)


def find_files(root: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a split below a folder: SPLIT.x, SPLIT-00000-of-00004.x, SPLIT_0.x, SPLIT/*.x, in order.

    The Hugging Face hub keeps them in a folder `data`, which is looked into as well.
    """
    found: list[Path] = []
    for folder in (root, root / "data"):
        for suffix in suffixes:
            found += [folder / f"{split}{suffix}"] if (folder / f"{split}{suffix}").is_file() else []
            for form in (f"{split}-*{suffix}", f"{split}_*{suffix}", f"{split}/*{suffix}"):
                found += sorted(path for path in folder.glob(form) if path.is_file())
        if found:
            break
    return list(dict.fromkeys(found))
