"""Sources of images: the interface that all of them have, and the smallest source, the digits."""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.pixels import Depth, NeedsRangeError
from stitchgrid.datasets.registry import DIGITS_SPLITS
from stitchgrid.errors import InputError, nearest
from stitchgrid.records import digest

Position: TypeAlias = tuple[str, int]  # a split, and a position in its sorted listing

NUM_DIGITS_TRAIN = 1_297
DIGITS_FILE = Path("datasets/data/digits.csv.gz")  # in scikit-learn


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Decoded:
    """One readable image."""

    pixels: NDArray[np.uint8]  # (C, H, W), of as many channels as all images of its source
    label: int
    depth: Depth | None = None  # None: it had eight bits
    remarks: tuple[str, ...] = ()  # what was passed over: a rotation, further frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """One image that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscaled(Unreadable):
    """One image that cannot be used until the job says which values are black and white."""

    what: str
    low: float
    high: float


def unreadable(name: str, problem: Exception) -> Unreadable:
    """Return the record of an image that could not be read."""
    if isinstance(problem, NeedsRangeError):
        return Unscaled(name=name, reason=str(problem), what=problem.what, low=problem.low, high=problem.high)
    kind = "" if type(problem) is ValueError else f"{type(problem).__name__}: "
    return Unreadable(name=name, reason=f"{kind}{problem}")


class Source(Protocol):
    """A data set whose splits can be listed, and whose images can be read in any number by position."""

    def signature(self) -> str | None:
        """Return what changes when the files change; None where decoding is too cheap to be cached."""

    def listing(self, split: str) -> Listing:
        """Return what the split holds, in sorted order."""

    def names(self, split: str) -> Sequence[str]:
        """Return the name of each image of the split, in sorted order; empty if images have only positions."""

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield each wanted image once, in an order that depends on the files alone."""


class Unlabelled:
    """A source without labels, around a source that has labels."""

    def __init__(self, source: Source):
        self._source = source

    def signature(self) -> str | None:
        """Return what changes when the files change."""
        found = self._source.signature()
        return None if found is None else digest("unlabelled", found)

    def listing(self, split: str) -> Listing:
        """Return what the split holds, without classes."""
        return replace(self._source.listing(split), class_names=(), absent=(), is_numbered=False)

    def names(self, split: str) -> Sequence[str]:
        """Return how each image of the split is called."""
        return self._source.names(split)

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, all of label 0."""
        for position, found in self._source.read(wanted):
            yield position, replace(found, label=0) if isinstance(found, Decoded) else found


class DigitsSource:
    """The 1,797 handwritten digits that ship with scikit-learn, 8x8 grey, as RGB.

    The split is fixed: images permuted by seed 0, the first 1,297 are `train`, the other 500 `test`. Grey levels 0..16
    become 0..255.
    """

    def signature(self) -> str | None:
        """Return None: they are decoded already."""
        return None

    def listing(self, split: str) -> Listing:
        """Return what the split holds."""
        return Listing(num=len(self._rows(split)), class_names=tuple("0123456789"))

    def names(self, split: str) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: its images have no names."""
        return ()

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images."""
        images_NHW, labels_N = _digits()
        pixels_NHW = np.rint(images_NHW * (255 / 16)).astype(np.uint8)
        for split, index in wanted:
            row = self._rows(split)[index]
            pixels = np.repeat(pixels_NHW[row][None], 3, axis=0)
            yield (split, index), Decoded(pixels=pixels, label=int(labels_N[row]))

    def _rows(self, split: str) -> NDArray[np.int64]:
        if split not in DIGITS_SPLITS:
            raise InputError(f"digits has no split {split!r}; {nearest(split, DIGITS_SPLITS)}.")
        return self._order[:NUM_DIGITS_TRAIN] if split == "train" else self._order[NUM_DIGITS_TRAIN:]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return permutation("digits", 0, 1_797)


def open_digits(_root: Path | None, _splits: Sequence[str], *, has_labels: bool = True, **_how: object) -> Source:
    """Return the digits; they have no root, and need no limits."""
    return DigitsSource() if has_labels else Unlabelled(DigitsSource())


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return grey levels (N, 8, 8) and labels (N,), from the file of scikit-learn, whose import takes seconds."""
    found = find_spec("sklearn")
    places = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
    file = next((path for place in places if (path := place / DIGITS_FILE).is_file()), None)
    if file is None:  # a release that keeps it elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target.astype(np.int64)
    with gzip.open(file, "rt", encoding="ascii") as opened:
        table = np.loadtxt(opened, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def permutation(name: str, seed: int, num: int) -> NDArray[np.int64]:
    """Return the order in which a split of `num` images is drawn: a function of name and seed alone.

    It sorts raw 64-bit draws, the one output that numpy promises never to change: the images of a stored cell must not
    depend on numpy's version.

    >>> sorted(permutation("train", 0, 4).tolist())
    [0, 1, 2, 3]
    """
    bits = np.random.PCG64([seed, *name.encode()])
    return np.argsort(bits.random_raw(num), kind="stable")
