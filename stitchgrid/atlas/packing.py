"""Numbers for a page: arrays -> one compressed text, so that a browser reads them as typed arrays."""

import base64
import gzip
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

FEW = 50_000  # so many numbers are kept to the last bit
DIGITS = 6  # that are kept of more
SMALLEST, LARGEST = 1e-30, 1e30  # within which float32 holds that many digits
ALIGNED = 8  # bytes
TYPES = {"f8": "<f8", "f4": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4", "i4": "<i4"}


class Arrays:
    """Arrays that a page holds once each; `add` gives the number by which its data name one."""

    def __init__(self) -> None:
        self._types: list[tuple[str, int]] = []
        self._bytes: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, array: npt.NDArray[Any]) -> int:
        """Keep an array of one of `TYPES`; return its number, an earlier one's if it holds the same."""
        word = f"{array.dtype.kind}{array.dtype.itemsize}"
        data = array.astype(TYPES[word]).tobytes()
        key = hashlib.sha256(word.encode() + data).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self._types)
            self._types.append((word, len(array)))
            self._bytes.append(data + bytes(-len(data) % ALIGNED))
        return self._numbers[key]

    def add_codes(self, codes: npt.NDArray[Any]) -> int:
        """Keep whole numbers from 0 in the smallest type that holds them."""
        most = int(codes.max(initial=0))
        return self.add(codes.astype(np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.uint32))

    def add_numbers(self, values: npt.NDArray[np.float64], *, many: bool) -> int:
        """Keep numbers, NaN and infinite ones included; of `many`, `DIGITS` digits in half the room where they fit."""
        return self.add(to_digits(values) if many and _fit_float32(values) else values.astype(np.float64))

    def content(self) -> dict[str, Any]:
        """Return what a page's data hold: types and lengths in order, and the bytes, each array at a multiple of 8."""
        packed = gzip.compress(b"".join(self._bytes), mtime=0)
        return {"arrays": self._types, "gzip": base64.b64encode(packed).decode()}


def to_digits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return numbers whose first `DIGITS` digits in decimal are those of the given ones.

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
