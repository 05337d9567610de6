"""Images and labels in NumPy's .npz: uint8, or other numbers with a range; read without pickle.

Shape suffixes: N images, H height, W width, C channels.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.folder import stamp_of
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.numbered import as_labels, listings
from stitchgrid.datasets.pixels import Bounds, from_array
from stitchgrid.datasets.sources import Decoded, Position, Unreadable, unreadable
from stitchgrid.errors import InputError, nearest
from stitchgrid.limits import TooMuchError, check_unpacked
from stitchgrid.paths import is_file
from stitchgrid.records import DEFAULT_LIMITS, Limits, digest

RULE = (
    "A folder holds SPLIT.npz with `images` and `labels`; a file holds SPLIT_images and SPLIT_labels, or `images` and "
    "`labels` where fit and eval name the same split"
)
CHANNELS = ((1, 3), (4,))  # grey and RGB, before RGB and alpha: four pixels are a side as well
CLASS_NAMES = "class_names"
HARMLESS_BYTES = 1_000_000_000  # of an archive, unpacked into memory


class ArraysSource:
    """The splits of an .npz, or of a folder with an .npz per split."""

    def __init__(
        self,
        root: Path,
        splits: Sequence[str],
        *,
        bounds: Bounds | None = None,
        named: Sequence[str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ):
        self._root, self._bounds, self._named, self._limits = root, bounds, named, limits
        self._splits = tuple(dict.fromkeys(splits))

    def signature(self) -> str:
        """Return a digest over path and stamp of the files."""
        paths = sorted({path for path, _ in self._places.values()})
        lines = [f"{path.resolve()}\0{stamp_of(path.stat())}" for path in paths]
        return digest("arrays", *self._splits, *(self._named or ()), *lines)

    def listing(self, split: str) -> Listing:
        """Return what the split holds."""
        return self._listings[split]

    def names(self, split: str) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: its images have no names."""
        return ()

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, one split after the other."""
        for split in self._splits:
            indices = [index for name, index in wanted if name == split]
            if not indices:
                continue
            images = self._images(split)
            for index in indices:
                yield (split, index), self._image(split, index, images[index])

    def _image(self, split: str, index: int, values: NDArray[Any]) -> Decoded | Unreadable:
        try:
            found = from_array(values, self._bounds)
        except ValueError as problem:
            return unreadable(f"{split}[{index}]", problem)
        return Decoded(pixels=found.pixels, label=int(self._labels[split][index]), depth=found.depth)

    @cached_property
    def _places(self) -> dict[str, tuple[Path, str]]:
        """Where the arrays of each split are: the file, and what comes before their names."""
        found = self._found()
        for path in {path for path, _ in found.values()}:
            with _opened(path) as arrays:
                try:
                    members = arrays.zip.infolist()  # type: ignore[attr-defined]
                    check_unpacked(path, members, self._limits, harmless=HARMLESS_BYTES)
                except TooMuchError as problem:
                    raise InputError(f"{problem}.") from problem
        return found

    def _found(self) -> dict[str, tuple[Path, str]]:
        root = self._root
        if not root.is_dir():
            return _places_in_file(root, self._splits)
        there = {path.stem: path for path in root.glob("*.npz") if is_file(path)}  # a pipe would be waited for
        for split in self._splits:
            if split not in there:
                raise InputError(f"{root} has no {split}.npz; {nearest(split, there)}. {RULE}.")
            _require(there[split], ("images", "labels"))
        return {split: (there[split], "") for split in self._splits}

    @cached_property
    def _labels(self) -> dict[str, NDArray[np.int64]]:
        return {
            split: as_labels(_array(path, f"{prefix}labels"), f"{path}, {prefix}labels")
            for split, (path, prefix) in self._places.items()
        }

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        for split in self._splits:
            self._check_number(split)
        return listings(self._labels, self._class_names(), self._named)

    def _class_names(self) -> tuple[str, ...] | None:
        """Return the names that the files give to the classes, None if they give none."""
        found: dict[tuple[str, ...], Path] = {}
        for path in dict.fromkeys(path for path, _ in self._places.values()):
            with _opened(path) as arrays:
                is_named = CLASS_NAMES in arrays
            if is_named:
                found[_texts(_array(path, CLASS_NAMES), path)] = path
        if len(found) > 1:
            one, other = found.values()
            raise InputError(f"{one} and {other} have different class_names; a label must mean the same in both.")
        return next(iter(found), None)

    def _check_number(self, split: str) -> None:
        path, prefix = self._places[split]
        (num, *_), _ = _header(path, f"{prefix}images")
        if num != len(self._labels[split]):
            raise InputError(f"{path}: {num} images and {len(self._labels[split])} labels in split {split!r}.")

    def _images(self, split: str) -> NDArray[Any]:
        """Return the images of a split as NHW or NCHW."""
        path, prefix = self._places[split]
        name = f"{prefix}images"
        shape, dtype = _header(path, name)
        if dtype == np.uint8 and self._bounds not in (None, (0, 255)):
            raise InputError(
                f"{path}, {name}: uint8 pixels are taken as they are, so that `range` under [data] means nothing to "
                "them; leave it out, or store the pixels as uint16."
            )
        axis = channel_axis(shape[1:])
        if axis is None:
            raise InputError(
                f"{path}, {name}: wanted shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels, got "
                f"{shape}."
            )
        images = _array(path, name)
        return images if axis <= 0 else np.moveaxis(images, 1 + axis, 1)


def _places_in_file(path: Path, splits: Sequence[str]) -> dict[str, tuple[Path, str]]:
    if not path.is_file():
        raise InputError(f"no folder or .npz {path}; set `root` under [data] to where the arrays are.")
    with _opened(path) as arrays:
        is_single = {"images", "labels"} <= set(arrays)
    if is_single and len(splits) == 1:
        return {splits[0]: (path, "")}
    for split in splits:
        _require(path, (f"{split}_images", f"{split}_labels"))
    return {split: (path, f"{split}_") for split in splits}


def _require(path: Path, wanted: Sequence[str]) -> None:
    with _opened(path) as arrays:
        names = sorted(arrays)
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{path} has no array {missing[0]!r}; it has {', '.join(names) or 'none'}. {RULE}.")


def channel_axis(shape: Sequence[int]) -> int | None:
    """Return which axis of an image holds its channels, -1 for (H, W); None if that cannot be told.

    >>> channel_axis((32, 32, 3)), channel_axis((3, 32, 32)), channel_axis((28, 28)), channel_axis((3, 32, 3))
    (2, 0, -1, None)
    """
    if len(shape) == 2:
        return -1
    for channels in CHANNELS if len(shape) == 3 else ():
        if (shape[0] in channels) != (shape[2] in channels):
            return 0 if shape[0] in channels else 2
        if shape[0] in channels:
            return None
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open an .npz; whatever is wrong with it becomes an InputError."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("a single array, or something else")
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, ZlibError) as problem:
        raise InputError(
            f"cannot read {path} as an .npz ({type(problem).__name__}: {problem}); arrays of Python objects, such as "
            "images of different sizes, are not read: save those as an image folder."
        ) from problem


def _texts(values: NDArray[Any], path: Path) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in values.ravel())
    except (ValueError, SystemError) as problem:  # numpy does not look at the characters that a file holds
        raise InputError(f"{path}, {CLASS_NAMES}: a name has characters that do not exist ({problem}).") from problem


def _array(path: Path, name: str) -> NDArray[Any]:
    with _opened(path) as arrays:
        return np.asarray(arrays[name])


def _header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an array without reading it."""
    with _opened(path) as arrays, arrays.zip.open(f"{name}.npy") as file:  # type: ignore[attr-defined]
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if not shape or dtype.hasobject:
        raise InputError(
            f"{path}, {name}: one array of numbers was wanted, got {dtype} of shape {shape}; images of different sizes "
            "are read from an image folder."
        )
    return shape, dtype
