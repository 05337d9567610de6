"""Images and labels as arrays, in the files that `array_files` reads: uint8, or other numbers that need a range.

Shape suffixes: N images, H height, W width, C channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.array_files import SUFFIXES, ArrayFile, TakeRows, open_arrays
from stitchgrid.datasets.folder import stamp_of
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.numeric_labels import as_labels, listings, unlabelled
from stitchgrid.datasets.pixels import Bounds, from_array
from stitchgrid.datasets.sources import Decoded, Position, Unreadable, unreadable
from stitchgrid.errors import InputError, nearest
from stitchgrid.paths import is_file
from stitchgrid.records import DEFAULT_LIMITS, Limits, canonical, digest

RULE = (
    "A folder holds SPLIT.npz with `images` and `labels` (or SPLIT.pt, SPLIT.safetensors, or a folder SPLIT of .npy "
    "files); a file holds SPLIT_images and SPLIT_labels, or `images` and `labels` if fit and eval are the same split. "
    'Give other names of arrays as keys = { images = "...", labels = "..." } under [data]'
)
WORDS = {  # usual names of arrays; "0" and "1" are positions in a tuple that torch.save wrote
    "images": ("images", "image", "x", "X", "data", "imgs", "pixels", "inputs", "0"),
    "labels": ("labels", "label", "y", "Y", "targets", "target", "1"),
}
CHANNELS = ((1, 3), (4,))  # grey and RGB first; then RGB with alpha, since 4 may also be a height or width
AXES = {"NCHW": 0, "NHWC": 2}  # words of a job -> axis of an image that holds its channels
_FIRST, _LAST = "C, H, W", "H, W, C"
ALPHA = "with a fourth channel, taken for alpha and left out (`channels = 4` under [data] keeps it)"
CLASS_NAMES = "class_names"
AT_A_TIME = 16  # images read from a file together
FORMS = ("{split}_{name}", "{name}_{split}", "{split}/{name}", "{split}.{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPlace:
    """The file of a split, and the names of its arrays."""

    file: ArrayFile
    images: str
    labels: str | None  # None: no labels are read

    def where(self, name: str) -> str:
        """Return an array's file and name, for messages."""
        return f"{self.file.path}, {name}"


class ArraysSource:
    """The splits of a file of arrays, or of a folder with a file per split."""

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
        channels: int | None = None,
        axes: str | None = None,
    ):
        self._root, self._bounds, self._named, self._limits = root, bounds, named, limits
        self._splits = tuple(dict.fromkeys(splits))
        self._keys, self._has_labels = dict(keys or {}), has_labels
        self._channels, self._axes = channels, axes

    def signature(self) -> str:
        """Return a digest over path and stamp of the files."""
        paths = sorted({path for place in self._places.values() for path in place.file.paths})
        lines = [f"{path.resolve()}\0{stamp_of(path.stat())}" for path in paths]
        keys = [canonical(self._keys)] if self._keys else []
        how = [canonical([self._channels, self._axes])] if self._channels or self._axes else []
        return digest("arrays", *self._splits, *(self._named or ()), str(self._has_labels), *keys, *how, *lines)

    def listing(self, split: str) -> Listing:
        """Return the listing of a split: its number of images, and its classes."""
        return self._listings[split]

    def names(self, split: str) -> Sequence[str]:  # noqa: ARG002
        """Return an empty sequence, because these images have no names."""
        return ()

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images, one split after the other."""
        for split in self._splits:
            indices = [index for name, index in wanted if name == split]
            if not indices:
                continue
            take, axis = self._images(split)
            for start in range(0, len(indices), AT_A_TIME):
                some = indices[start : start + AT_A_TIME]
                for index, values in zip(some, take(some), strict=True):
                    image = values if axis <= 0 else np.moveaxis(values, axis, 0)
                    yield (split, index), self._image(split, index, image)

    def _image(self, split: str, index: int, values: NDArray[Any]) -> Decoded | Unreadable:
        try:
            found = from_array(values, self._bounds, self._channels)
        except ValueError as problem:
            return unreadable(f"{split}[{index}]", problem)
        has_alpha = self._channels is None and values.ndim == 3 and len(values) == 4
        return Decoded(
            pixels=found.pixels,
            label=int(self._labels[split][index]) if self._has_labels else 0,
            depth=found.depth,
            remarks=(ALPHA,) if has_alpha else (),
        )

    @cached_property
    def _places(self) -> dict[str, ArrayPlace]:
        root = self._root
        if root.is_dir():
            return {split: self._place_in_folder(split) for split in self._splits}
        if not root.is_file():
            raise InputError(f"there is no folder or file {root}; set `root` under [data] to that of the arrays.")
        file = open_arrays(root, self._limits)
        return {split: self._place(file, split, is_only=len(self._splits) == 1) for split in self._splits}

    def _place_in_folder(self, split: str) -> ArrayPlace:
        there = {path.stem: path for path in self._root.iterdir() if is_file(path) and path.suffix in SUFFIXES}
        there |= {path.name: path for path in self._root.iterdir() if path.is_dir() and any(path.glob("*.npy"))}
        if split in there:
            return self._place(open_arrays(there[split], self._limits), split, is_only=True)
        if any(path.suffix == ".npy" for path in there.values()):
            return self._place(open_arrays(self._root, self._limits), split, is_only=len(self._splits) == 1)
        raise InputError(f"{self._root} has no {split}.npz; {nearest(split, there)}. {RULE}.")

    def _place(self, file: ArrayFile, split: str, *, is_only: bool) -> ArrayPlace:
        images = self._key(file, "images", split, is_only=is_only)
        labels = self._key(file, "labels", split, is_only=is_only) if self._has_labels else None
        return ArrayPlace(file=file, images=images, labels=labels)

    def _key(self, file: ArrayFile, role: str, split: str, *, is_only: bool) -> str:
        """Return the name of a split's array of images or labels (`role`): as the job says, else a usual name."""
        if role in self._keys:
            names = [self._keys[role].replace("{split}", split)]
            is_only |= "{split}" in self._keys[role]
        else:
            names = list(WORDS[role])
        of_split = [form.format(split=split, name=name) for name in names for form in FORMS]
        wanted = names + of_split if is_only else of_split
        found = [name for name in dict.fromkeys(wanted) if name in file.names]
        if not found:
            first = names[0] if is_only else f"{split}_{names[0]}"
            raise InputError(
                f"{file.path} has no array {first!r}; it has {', '.join(sorted(file.names)) or 'none'}. {RULE}."
            )
        if len(found) > 1 and found[0] != role and found[0] != f"{split}_{role}":
            raise InputError(
                f"{file.path}: {' and '.join(found)} may both be the {role} of split {split!r}; choose one, such as "
                f'keys = {{ {role} = "{found[0]}" }} under [data].'
            )
        return found[0]

    @cached_property
    def _labels(self) -> dict[str, NDArray[np.int64]]:
        return {
            split: as_labels(place.file.read(place.labels), place.where(place.labels))
            for split, place in self._places.items()
            if place.labels is not None
        }

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        counts = {split: self._count(split) for split in self._splits}
        if not self._has_labels:
            return unlabelled(counts)
        return listings(self._labels, self._class_names(), self._named)

    def _class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes in the files; None if there are none."""
        found: dict[tuple[str, ...], Path] = {}
        for file in {place.file.path: place.file for place in self._places.values()}.values():
            if CLASS_NAMES in file.names:
                found[_texts(file.read(CLASS_NAMES), file.path)] = file.path
        if len(found) > 1:
            one, other = found.values()
            raise InputError(f"{one} and {other} have different class_names; a label must mean the same in both.")
        return next(iter(found), None)

    def _count(self, split: str) -> int:
        """Return the number of images of a split; refuse a different number of labels, if labels are read."""
        place = self._places[split]
        shape, _ = self._header(place, place.images)
        if place.labels is not None and shape[0] != len(self._labels[split]):
            raise InputError(
                f"{place.file.path}: {shape[0]} images and {len(self._labels[split])} labels in split {split!r}."
            )
        return shape[0]

    def _header(self, place: ArrayPlace, name: str) -> tuple[tuple[int, ...], str]:
        shape, dtype = place.file.header(name)
        if not shape:
            raise InputError(
                f"{place.where(name)}: wanted one array of numbers, got {dtype} of shape {shape}; save images of "
                "different sizes as an image folder."
            )
        return shape, dtype

    def _images(self, split: str) -> tuple[TakeRows, int]:
        """Return what reads images of a split, and the axis of an image that holds its channels; -1 if none does.

        Raises:
            InputError: If they have other axes or channels than the job says, or it has to say them.
        """
        place = self._places[split]
        shape, dtype = self._header(place, place.images)
        if dtype == "uint8" and self._bounds not in (None, (0, 255)):
            raise InputError(
                f"{place.where(place.images)}: uint8 pixels always range from 0 to 255, so `range` under [data] does "
                "not apply; leave it out, or store the pixels as uint16."
            )
        axis = channel_axis(shape[1:], self._channels, self._axes)
        if axis is None:
            problem = shape_problem(shape, self._channels, self._axes, has_many=True)
            raise InputError(f"{place.where(place.images)}: {problem}.")
        return place.file.rows(place.images), axis


def channel_axis(shape: Sequence[int], wanted: int | None = None, axes: str | None = None) -> int | None:
    """Return the axis of an image that holds its channels; -1 for shape (H, W); None if the shape does not show it.

    Args:
        shape: Of one image.
        wanted: How many channels the job says that images have; None: grey, RGB, or RGB with alpha.
        axes: Where the job says that they are, a word of AXES.

    >>> channel_axis((32, 32, 3)), channel_axis((3, 32, 32)), channel_axis((28, 28)), channel_axis((3, 32, 3))
    (2, 0, -1, None)
    >>> channel_axis((12, 32, 32)), channel_axis((12, 32, 32), 12), channel_axis((12, 32, 12), 12, "NHWC")
    (None, 0, 2)
    """
    if len(shape) == 2:
        return -1 if wanted in {None, 1} else None
    if len(shape) != 3:
        return None
    known = _known(wanted)
    if axes is not None:
        return AXES[axes] if any(shape[AXES[axes]] in channels for channels in known) else None
    for channels in known:
        if (shape[0] in channels) != (shape[2] in channels):
            return 0 if shape[0] in channels else 2
        if shape[0] in channels:
            return None
    return None


def shape_problem(shape: Sequence[int], wanted: int | None, axes: str | None, *, has_many: bool) -> str:
    """Return why `channel_axis` is None and what to write; of many images, `shape` begins with their number.

    >>> shape_problem((12, 32, 12), 12, None, has_many=False)
    'shape (12, 32, 12): its first and its last axis may be channels; say which, axes = "NCHW" or "NHWC" under [data]'
    """
    own, known = tuple(shape[1:] if has_many else shape), _known(wanted)
    if axes is None and len(own) == 3 and any({own[0], own[2]} <= {*channels} for channels in known):
        which = "second" if has_many else "first"
        told = f"its {which} and its last axis may be channels"
        return f'shape {tuple(shape)}: {told}; say which, axes = "NCHW" or "NHWC" under [data]'
    first = "N, " if has_many else ""
    forms = [f"({first}{form})" for form, word in ((_LAST, "NHWC"), (_FIRST, "NCHW")) if axes in {None, word}]
    if wanted in {None, 1}:
        forms.insert(0, f"({first}H, W)")
    number = "1, 3 or 4 channels" if wanted is None else f"the {wanted} `channels` of [data]"
    said = (
        f"wanted shape {', '.join(forms[:-1])}{' or ' * (len(forms) > 1)}{forms[-1]} with {number}, got {tuple(shape)}"
    )
    if wanted is not None or len(own) != 3:
        return said
    counts = sorted({own[0], own[2]} if axes is None else {own[AXES[axes]]})
    return f"{said}; all channels are taken as they are with channels = {' or '.join(map(str, counts))} under [data]"


def _known(wanted: int | None) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of channels that images may have, the more likely first."""
    return CHANNELS if wanted is None else ((wanted,),)


def _texts(values: NDArray[Any], path: Path) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in values.ravel())
    except (ValueError, SystemError) as problem:  # numpy does not check the characters when it reads a file
        raise InputError(f"{path}, {CLASS_NAMES}: a name has invalid characters ({problem}).") from problem
