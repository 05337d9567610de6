"""FILE.py:function as a data set: the function returns a torch Dataset, or any sequence, of (image, label) for a split.

The file runs wherever images are opened: in launch, plan, resume and bench, and in workers, which need it at the same
path. The digests of its images, not its code, are part of the addresses of cells. Each process reads the images again,
because it is unknown what they depend on.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import cached_property
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.arrays import channel_axis, shape_problem
from stitchgrid.datasets.decoding import remarks_on, to_rgb
from stitchgrid.datasets.image_files import check_format, open_image
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.numeric_labels import as_labels, listings, unlabelled
from stitchgrid.datasets.pixels import Bounds, EightBits, from_array
from stitchgrid.datasets.registry import own_parts
from stitchgrid.datasets.sources import Decoded, Position, Unreadable, unreadable
from stitchgrid.errors import InputError, nearest
from stitchgrid.paths import is_file
from stitchgrid.records import DataSpec, digest

NUM_TWICE = 4  # images of a split that are read twice, to see that they stay the same

_held: dict[Path, bytes] = {}  # files that were compared with what was planned, as they were then


class OwnSource:
    """The data set that a user's function returns for each split."""

    def __init__(self, spec: DataSpec, splits: Sequence[str]):
        self._spec = spec
        self._splits = tuple(dict.fromkeys(splits))

    def signature(self) -> str | None:
        """Return None, because it is unknown what the images depend on."""
        return None

    def listing(self, split: str) -> Listing:
        """Return what the split holds."""
        return self._listings[split]

    def names(self, split: str) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: its images have no names."""
        return ()

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images."""
        for place, (split, index) in enumerate(wanted):
            found = self._read_one(split, index)
            if place < NUM_TWICE and not _same(found, self._read_one(split, index)):
                raise InputError(
                    f"{self._spec.dataset}, split {split!r}: image {index} is another one when it is read again; leave "
                    "random augmentation out, so that every network sees the same images."
                )
            yield (split, index), found

    def _read_one(self, split: str, index: int) -> Decoded | Unreadable:
        name = f"{split}[{index}]"
        try:
            with redirect_stdout(sys.stderr):
                image, label = self._item(split, index)
            found, remarks = pixels_of(image, self._spec)
            return Decoded(pixels=found.pixels, label=label, depth=found.depth, remarks=remarks)
        except InputError:
            raise
        except Exception as problem:  # the user's code may fail in any way
            return unreadable(name, problem)

    def _item(self, split: str, index: int) -> tuple[Any, int]:
        item = self._datasets[split][index]
        if not self._spec.has_labels:
            return (item[0] if isinstance(item, tuple | list) and len(item) else item), 0
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise InputError(
                f"{self._spec.dataset}, split {split!r}: an item is (image, label), got {type(item).__name__}."
            )
        label, where = np.asarray(item[1]), f"{self._spec.dataset}, {split}[{index}]"
        if label.size != 1:
            raise InputError(f"{where}: a label is one whole number, got shape {label.shape}.")
        return item[0], int(as_labels(label.reshape(1), where)[0])

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        function = load_function(self._spec)
        given = {} if self._spec.root is None else {"root": self._spec.root}
        found = {}
        for split in self._splits:
            try:
                with redirect_stdout(sys.stderr):
                    dataset = function(split, **given, **json.loads(self._spec.args))
            except (Exception, SystemExit) as problem:  # the user's code may fail in any way
                raise InputError(
                    f"{self._spec.dataset} cannot open split {split!r}: {type(problem).__name__}: {problem}."
                ) from problem
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise InputError(
                    f"{self._spec.dataset} has to return a data set with a length and items by position (image, label) "
                    f"for split {split!r}, got {type(dataset).__name__}."
                )
            found[split] = dataset
        return found

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        if not self._spec.has_labels:
            return unlabelled({split: len(self._datasets[split]) for split in self._splits})
        known = {tuple(map(str, names)) for one in self._datasets.values() if (names := _names(one))}
        if len(known) > 1:
            raise InputError(
                f"{self._spec.dataset}: the splits have different `classes`; a label must mean the same in both."
            )
        labels = {split: self._labels(split) for split in self._splits}
        return listings(labels, next(iter(known), None), self._spec.classes)

    def _labels(self, split: str) -> NDArray[np.int64]:
        """Return the label of every image: as the data set lists them, else from its items."""
        dataset = self._datasets[split]
        for attribute in ("targets", "labels"):
            listed = getattr(dataset, attribute, None)
            if listed is not None and not callable(listed) and np.shape(listed)[:1] == (len(dataset),):
                return as_labels(listed, f"{self._spec.dataset}, {attribute} of split {split!r}")
        with redirect_stdout(sys.stderr):
            return np.array([self._item(split, index)[1] for index in range(len(dataset))], dtype=np.int64)


def own_data_digest(spec: DataSpec) -> str | None:
    """Return a digest of the user's file behind the images, without running it; None where there is none."""
    parts = own_parts(spec.dataset)
    content = None if parts is None else own_content(Path(parts[0]))
    return None if parts is None or content is None else digest(parts[1], content)


def as_planned_now(spec: DataSpec) -> DataSpec:
    """Return the spec with the digest of the user's file, so that workers refuse to run any other code."""
    return replace(spec, code=own_data_digest(spec) or "")


def own_content(path: Path) -> bytes | None:
    """Return the content of a user's file (within `holding_files`, its content at the start); None without a file."""
    if path in _held:
        return _held[path]
    return path.read_bytes() if is_file(path) else None


@contextmanager
def holding_files(contents: Mapping[Path, bytes]) -> Iterator[None]:
    """Within the block, run these contents of files, even if the files change meanwhile."""
    new = {path: content for path, content in contents.items() if path not in _held}
    _held.update(new)
    try:
        yield
    finally:
        for path in new:
            del _held[path]


def load_function(spec: DataSpec) -> Callable[..., Any]:
    """Return the user's function; runs its file.

    Raises:
        InputError: If there is no such file or function, it is not what the sweep was planned with (and is not run),
            or it does not run.
    """
    parts = own_parts(spec.dataset)
    assert parts is not None, spec.dataset
    path, name = Path(parts[0]), parts[1]
    content = own_content(path)
    if content is None:
        raise InputError(f"data set {spec.dataset!r}: there is no file {path}; paths start at the job file.")
    if spec.code and (found := digest(name, content)) != spec.code:
        raise InputError(
            f"data set {spec.dataset!r}: {path} is not what the sweep was planned with (wanted {spec.code}, got "
            f"{found}), and was not run; launch the job again."
        )
    module = _load(path, content)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"data set {spec.dataset!r}: {path} has no function {name!r}; {nearest(name, own)}.")
    return function  # type: ignore[no-any-return]


class _Loader(SourceFileLoader):
    """Runs the bytes that were hashed, not Python's cached code, which only time and size of a file identify."""

    def __init__(self, name: str, path: Path, content: bytes):
        super().__init__(name, str(path))
        self._content = content

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002
        """Return the code of these bytes."""
        return self.source_to_code(self._content, self.path)


def _load(path: Path, content: bytes) -> ModuleType:
    """Return the file as a module, run once per path and content."""
    name = f"stitchgrid_data_{digest(str(path.resolve()), content)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _Loader(name, path, content)
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None, path
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up while it is run
    try:
        with redirect_stdout(sys.stderr):
            loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # the user's code may fail in any way
        del sys.modules[name]
        hint = " It has to be self-contained, or import what is installed." if isinstance(problem, ImportError) else ""
        raise InputError(f"{path} does not run: {type(problem).__name__}: {problem}.{hint}") from problem
    return module


def _names(dataset: Any) -> Sequence[Any]:
    names = getattr(dataset, "classes", None)
    return names if isinstance(names, list | tuple) else ()


def pixels_of(image: Any, spec: DataSpec) -> tuple[EightBits, tuple[str, ...]]:
    """Return an image with the channels that the job names, with what was passed over.

    Raises:
        ValueError: If it has other channels.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        return _of_array(np.asarray(image), spec.range, spec.channels, spec.axes), ()
    if spec.channels is not None:
        raise ValueError(f"a PIL image, where `channels` = {spec.channels} under [data]; give arrays or tensors")
    return as_rgb(image, spec.range)


def as_rgb(image: Any, bounds: Bounds | None) -> tuple[EightBits, tuple[str, ...]]:
    """Return a PIL image, a tensor or an array as RGB, with what was passed over."""
    from PIL import Image

    if isinstance(image, Image.Image):
        check_format(image)
        raw = _file_of(image)
        if raw is None:
            return to_rgb(image, bounds), remarks_on(image)
        with open_image(raw) as whole:
            return to_rgb(whole, bounds, raw), remarks_on(whole)
    values = np.asarray(image)
    if channel_axis(values.shape) is None:
        raise ValueError(f"shape {values.shape}; an image is (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels")
    return _of_array(values, bounds), ()


def _of_array(
    values: NDArray[Any], bounds: Bounds | None, channels: int | None = None, axes: str | None = None
) -> EightBits:
    axis = channel_axis(values.shape, channels, axes)
    if axis is None:
        raise ValueError(shape_problem(values.shape, channels, axes, has_many=False))
    return from_array(values if axis <= 0 else np.moveaxis(values, axis, 0), bounds, channels)


def _file_of(image: Any) -> bytes | None:
    """Return the file of a PIL image that was opened and not touched since: Pillow keeps not all of its bits."""
    path = Path(os.fsdecode(getattr(image, "filename", None) or ""))
    is_untouched = bool(getattr(image, "tile", ())) and image.tell() == 0
    return path.read_bytes() if is_untouched and is_file(path) else None


def _same(one: Decoded | Unreadable, other: Decoded | Unreadable) -> bool:
    if isinstance(one, Decoded) and isinstance(other, Decoded):
        return one.label == other.label and np.array_equal(one.pixels, other.pixels)
    return type(one) is type(other)
