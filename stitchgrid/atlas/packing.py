"""Pack arrays of numbers for a page into one compressed text, which a browser reads as typed arrays."""

import base64
import gzip
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

FEW = 50_000  # up to so many numbers are kept exactly
DIGITS = 6  # digits that are kept if there are more numbers
SMALLEST, LARGEST = 1e-30, 1e30  # range in which float32 holds that many digits
ALIGNED = 8  # bytes
TYPES = {"f8": "<f8", "f4": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4", "i4": "<i4"}


class Arrays:
    """Arrays of a page, each held once; `add` returns the number by which the page's data refer to an array."""

    def __init__(self) -> None:
        self._types: list[tuple[str, int]] = []
        self._bytes: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, array: npt.NDArray[Any]) -> int:
        """Add an array of one of `TYPES`; return its number, or that of an earlier array with the same content."""
        word = f"{array.dtype.kind}{array.dtype.itemsize}"
        data = array.astype(TYPES[word]).tobytes()
        key = hashlib.sha256(word.encode() + data).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self._types)
            self._types.append((word, len(array)))
            self._bytes.append(data + bytes(-len(data) % ALIGNED))
        return self._numbers[key]

    def add_codes(self, codes: npt.NDArray[Any]) -> int:
        """Add whole numbers from 0 on, in the smallest type that holds them; return the number of the array."""
        most = int(codes.max(initial=0))
        return self.add(codes.astype(np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.uint32))

    def add_numbers(self, values: npt.NDArray[np.float64], *, many: bool) -> int:
        """Add numbers, also NaN and infinite ones; `many` numbers become float32 with `DIGITS` digits if they fit."""
        return self.add(to_digits(values) if many and _fit_float32(values) else values.astype(np.float64))

    def content(self) -> dict[str, Any]:
        """Return types and lengths of the arrays, and their compressed bytes; each array starts at a multiple of 8."""
        packed = gzip.compress(b"".join(self._bytes), mtime=0)
        return {"arrays": self._types, "gzip": base64.b64encode(packed).decode()}


def to_digits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return numbers rounded to `DIGITS` decimal digits, as float32.

    >>> f"{to_digits(np.array([0.123456789]))[0]:.6g}"
    '0.123457'
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.floor(np.log10(np.abs(values)))
        factor = 10.0 ** (DIGITS - 1 - size)
        rounded = np.round(values * factor) / factor
    return np.where(np.isfinite(values) & (values != 0), rounded, values).astype(np.float32)


def _fit_float32(values: npt.NDArray[np.float64]) -> bool:
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    return bool(((size > SMALLEST) & (size < LARGEST)).all())
