"""Named arrays in files, which may be hostile: .npz, .npy, .safetensors and torch.save files, read without pickle."""

import math
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.natural_order import natural_order
from stitchgrid.datasets.numpy_files import DAMAGED, check_whole, next_numbers, npz_header, opened_npy
from stitchgrid.datasets.pickles import load_pickles
from stitchgrid.datasets.torch_files import check_shapes, is_expanded
from stitchgrid.errors import InputError, is_out_of_memory
from stitchgrid.limits import TooMuchError, check_unpacked, raise_by
from stitchgrid.paths import is_file
from stitchgrid.records import DEFAULT_LIMITS, Limits

Array = NDArray[Any]
TakeRows = Callable[[Sequence[int] | NDArray[np.int64]], Array]
SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")
HARMLESS_BYTES = 1_000_000_000  # unpacked size that is always allowed, since an archive is unpacked into memory
_SAFETENSORS = {  # safetensors' name of a type -> numpy's
    "BOOL": "bool",
    "BF16": "bfloat16",
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


class ArrayFile(ABC):
    """Arrays by name; each is read only when `read` is called."""

    def __init__(self, path: Path, limits: Limits):
        self.path, self.limits = path, limits

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of the arrays, in the order of the file if it has one, else in natural order."""

    @abstractmethod
    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return shape and type of an array without reading it.

        Raises:
            InputError: If it is not an array of numbers or texts.
        """

    @abstractmethod
    def read(self, name: str) -> Array:
        """Return an array; types that numpy lacks (bfloat16) become float32.

        Raises:
            InputError: If it cannot be read.
        """

    def rows(self, name: str) -> TakeRows:
        """Return a function that returns some rows of an array, given as positions: only these are read from an .npy.

        Raises:
            InputError: If the array cannot be read; the function raises it, too.
        """
        return self.read(name).__getitem__

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of the files that hold the arrays."""
        return (self.path,)


def open_arrays(path: Path, limits: Limits = DEFAULT_LIMITS) -> ArrayFile:
    """Return the arrays of a file, or of the .npy files of a folder, where the name of an array is that of its file.

    Raises:
        InputError: If the path is missing, damaged, of another kind, or holds more than the limits allow.
    """
    if path.is_dir():
        return _Folder(path, limits)
    if not is_file(path):  # reading a pipe would wait for ever
        raise InputError(f"there is no file {path}.")
    kinds: dict[str, type[ArrayFile]] = {".npy": _Npy, ".npz": _Npz, ".safetensors": _Safetensors}
    kind = kinds.get(path.suffix.lower(), _Torch if path.suffix.lower() in (".pt", ".pth") else None)
    if kind is None:
        kind = _Npz if zipfile.is_zipfile(path) else None
    if kind is None:
        raise InputError(f"cannot read {path} as arrays; wanted {', '.join(SUFFIXES)}, or a folder of .npy files.")
    return kind(path, limits)


class _Npz(ArrayFile):
    def __init__(self, path: Path, limits: Limits):
        super().__init__(path, limits)
        with self._opened() as arrays:
            self._names = tuple(arrays)
            members = arrays.zip.infolist()  # type: ignore[attr-defined]
        try:
            check_unpacked(path, members, limits, harmless=HARMLESS_BYTES)
        except TooMuchError as problem:
            raise InputError(f"{problem}.") from problem

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        with self._opened() as arrays:
            shape, dtype = npz_header(arrays.zip, name)  # type: ignore[attr-defined]
        return _checked(self.path, name, shape, dtype)

    def read(self, name: str) -> Array:
        self.header(name)
        with self._opened() as arrays:
            check_whole(arrays.zip, name)  # type: ignore[attr-defined]
            return np.asarray(arrays[name])

    @contextmanager
    def _opened(self) -> Iterator[Mapping[str, Any]]:
        """Open the file; errors within the block become an InputError."""
        try:
            if not zipfile.is_zipfile(self.path):
                raise ValueError("it is not a zip archive")
            with np.load(self.path, allow_pickle=False) as arrays:
                yield arrays
        except DAMAGED as problem:
            raise InputError(
                f"cannot read {self.path} as an .npz ({type(problem).__name__}: {problem}); arrays of Python objects, "
                "such as images of different sizes, are not supported: save such images as an image folder."
            ) from problem


class _Npy(ArrayFile):
    """An array whose rows are read from the file when they are wanted."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.path.stem,)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        with opened_npy(self.path) as (_, shape, _, dtype):
            return _checked(self.path, name, shape, dtype)

    def read(self, name: str) -> Array:
        with opened_npy(self.path) as (file, shape, is_fortran, dtype):
            _checked(self.path, name, shape, dtype)
            values = next_numbers(file, dtype, math.prod(shape))
            return values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape)

    def rows(self, name: str) -> TakeRows:
        with opened_npy(self.path) as (_, shape, is_fortran, _):
            if is_fortran or not shape:  # the numbers of a row lie apart
                return self.read(name).__getitem__
        return self._take

    def _take(self, positions: Sequence[int] | NDArray[np.int64]) -> Array:
        with opened_npy(self.path) as (file, shape, _, dtype):
            width = math.prod(shape[1:])
            start, taken = file.tell(), np.empty((len(positions), *shape[1:]), dtype)
            for place, position in enumerate(np.asarray(positions).tolist()):
                file.seek(start + position * width * dtype.itemsize)
                taken[place] = next_numbers(file, dtype, width).reshape(shape[1:])
            return taken


class _Folder(ArrayFile):
    def __init__(self, path: Path, limits: Limits):
        super().__init__(path, limits)
        found = sorted(file for file in path.glob("*.npy") if is_file(file))
        self._files = {file.stem: _Npy(file, limits) for file in found}

    @property
    def names(self) -> tuple[str, ...]:
        names = list(self._files)
        return tuple(names[position] for position in natural_order(names))

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        return self._files[name].header(name)

    def read(self, name: str) -> Array:
        return self._files[name].read(name)

    def rows(self, name: str) -> TakeRows:
        return self._files[name].rows(name)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self._files[name].path for name in self.names)


class _Safetensors(ArrayFile):
    @property
    def names(self) -> tuple[str, ...]:
        with self._opened() as file:
            names = list(file.keys())
        return tuple(names[position] for position in natural_order(names))

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        with self._opened() as file:
            part = file.get_slice(name)
            return tuple(part.get_shape()), _SAFETENSORS.get(part.get_dtype(), part.get_dtype())

    def read(self, name: str) -> Array:
        with self._opened() as file:
            return _as_array(file.get_tensor(name), self.path, name)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError, TypeError, ValueError, OverflowError) as problem:
            raise InputError(
                f"cannot read {self.path} as safetensors ({type(problem).__name__}: {problem})."
            ) from problem


class _Torch(ArrayFile):
    """A dictionary of tensors that torch.save wrote; tensors in a list or tuple are named by their position."""

    def __init__(self, path: Path, limits: Limits):
        super().__init__(path, limits)
        found = _load_torch(path, limits)
        if isinstance(found, list | tuple):
            found = {str(position): value for position, value in enumerate(found)}
        if not isinstance(found, Mapping) or not all(_is_tensor(value) for value in found.values()):
            raise InputError(
                f"{path} holds {type(found).__name__}; wanted tensors by name, "
                'as torch.save({"images": images, "labels": labels}, ...) writes them.'
            )
        if some := [name for name, value in found.items() if is_expanded(value)]:
            raise InputError(
                f"{path}, {some[0]}: a tensor of shape {tuple(found[some[0]].shape)}, but the file holds fewer numbers "
                "(an expanded tensor); call .contiguous() before saving it."
            )
        self._tensors = {str(name): value for name, value in found.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        tensor = self._tensors[name]
        return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def read(self, name: str) -> Array:
        return _as_array(self._tensors[name], self.path, name)


def _load_torch(path: Path, limits: Limits) -> Any:
    if path.stat().st_size > limits.checkpoint_bytes:
        raise InputError(f"{path} is larger than {limits.checkpoint_bytes:,} bytes; {raise_by('checkpoint_bytes')}.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_unpacked(path, archive.infolist(), limits, harmless=HARMLESS_BYTES)
        found = load_pickles(path, limits)
        check_shapes(path, found, limits, harmless=HARMLESS_BYTES)
        return found
    except TooMuchError as problem:
        raise InputError(f"{problem}.") from problem
    except InputError:
        raise
    except pickle.UnpicklingError as problem:
        raise InputError(
            f"{path} holds more than tensors and plain values: reading it could run code, so it is not read; save it "
            'by torch.save({"images": images, "labels": labels}, ...), where both are tensors.'
        ) from problem
    except Exception as problem:  # torch reports damage by many types
        if is_out_of_memory(problem):
            raise
        raise InputError(f"{path} is damaged, or torch.save did not write it ({type(problem).__name__}).") from problem


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _as_array(tensor: Any, path: Path, name: str) -> Array:
    import torch

    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        raise InputError(
            f"{path}, {name}: wanted a dense array of real numbers, got {tensor.layout} {tensor.dtype}"
            f"{' without values' if tensor.is_meta else ''}."
        )
    try:
        try:
            return np.asarray(tensor.detach().resolve_neg().numpy())
        except TypeError:  # bfloat16 and smaller ones
            return np.asarray(tensor.detach().float().numpy())
    except (ValueError, NotImplementedError) as problem:
        raise InputError(f"{path}, {name}: no array has the shape or type of this tensor ({problem}).") from problem


def _checked(path: Path, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> tuple[tuple[int, ...], str]:
    if dtype.hasobject or dtype.kind == "V":
        raise InputError(
            f"{path}, {name}: wanted one array of numbers, got {dtype} of shape {shape}; save images of different "
            "sizes as an image folder."
        )
    return shape, str(dtype)
