"""Pixels of any depth -> uint8, as RGB or with the channels that a job names.

Pixels of eight bits per channel do not change. Deeper pixels (9 to 64 bits, signed, floating-point) need a range: the
values of black and white. No value is clipped, and no range is guessed: without a range an image is refused.

Shape suffixes: C channels, H height, W width.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bounds: TypeAlias = tuple[float, float]  # the values of black and white

SIXTEEN_BITS: Bounds = (0, 65_535)
EXACT_SPAN = 1 << 40  # ranges of whole numbers below this span are scaled without rounding errors


class NeedsRangeError(ValueError):
    """Deep pixels have no known range."""

    def __init__(self, what: str, low: float, high: float):
        self.what, self.low, self.high = what, low, high
        super().__init__(f"{what} pixels from {low:.10g} to {high:.10g}, whose range is unknown")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Deep:
    """Pixels that do not have eight bits, with the range that their file gives."""

    values: NDArray[Any]  # (H, W) or (C, H, W): no alpha
    what: str  # such as "16-bit"
    told: Bounds | None = None  # the range that the file gives
    is_fixed: bool = False  # the decoder has scaled them to `told`, so the job's range does not apply
    is_measured: bool = False  # `told` comes from tags in which some programs write the extremes of this one image
    is_inverted: bool = False  # its smallest value is white
    is_upper: bool = False  # only the upper eight of sixteen bits could be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How the deep pixels of one image were read."""

    low: float  # smallest and largest value in the image
    high: float
    bounds: Bounds  # black and white
    is_measured: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EightBits:
    """One image with eight bits a channel."""

    pixels: NDArray[np.uint8]  # (3, H, W) as red, green, blue; (C, H, W) where the job names C other channels
    depth: Depth | None = None  # None: it had eight bits


def spread(values: NDArray[Any], bounds: Bounds) -> NDArray[np.uint8]:
    """Return values as uint8: black 0, white 255. Of whole numbers at least 8 bits wide, the upper eight bits.

    >>> spread(np.array([0, 0x1234, 0xFFFF], dtype=np.uint16), (0, 65535)).tolist()
    [0, 18, 255]
    >>> spread(np.array([0.0, 0.5, 1.0]), (0, 1)).tolist()
    [0, 128, 255]

    Raises:
        ValueError: If a value lies outside.
    """
    low, high = bounds
    if not values.size:
        return np.zeros(values.shape, np.uint8)
    if np.isnan(values.min()):
        raise ValueError("NaN among the values")
    if not (low <= values.min() and values.max() <= high):
        raise ValueError(
            f"values from {values.min():.10g} to {values.max():.10g}, outside of the range [{low:.10g}, {high:.10g}]"
        )
    span = high - low
    is_whole = values.dtype.kind in "biu" and float(low).is_integer() and float(high).is_integer()
    if is_whole and 255 <= span < EXACT_SPAN:
        return ((values.astype(np.int64) - int(low)) * 256 // (int(span) + 1)).astype(np.uint8)
    return np.rint((values.astype(np.float64) - low) * (255 / span)).astype(np.uint8)


def as_rgb(deep: Deep, bounds: Bounds | None) -> EightBits:
    """Return deep pixels as RGB, scaled by the job's range, else by the file's.

    Raises:
        NeedsRangeError: If there is no range.
        ValueError: If a value lies outside the range.
    """
    found = scaled(deep, bounds)
    return replace(found, pixels=three_channels(found.pixels))


def scaled(deep: Deep, bounds: Bounds | None) -> EightBits:
    """Return deep pixels with eight bits and the channels that they have, scaled by the job's range or the file's.

    Raises:
        NeedsRangeError: If there is no range.
        ValueError: If a value lies outside the range.
    """
    chosen = deep.told if deep.is_fixed or bounds is None else bounds
    low, high = (float(deep.values.min()), float(deep.values.max())) if deep.values.size else (0.0, 0.0)
    if deep.is_upper:
        low, high = 256 * low, 256 * high + 255
        if chosen != SIXTEEN_BITS:
            raise ValueError(
                f"{deep.what} with values from {low:.10g} to {high:.10g}, of which only the upper eight bits can be "
                "read: set `range = [0, 65535]` under [data] if that is black and white, else save it as PNG"
            )
        pixels = deep.values.astype(np.uint8)
    elif chosen is None:
        raise NeedsRangeError(deep.what, low, high)
    else:
        pixels = spread(deep.values, chosen)
    pixels = 255 - pixels if deep.is_inverted else pixels
    return EightBits(pixels=pixels, depth=Depth(low=low, high=high, bounds=chosen, is_measured=deep.is_measured))


def three_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) or (C, H, W) as (3, H, W): grey repeated, alpha dropped."""
    if pixels.ndim == 2 or len(pixels) < 3:
        grey_HW = pixels if pixels.ndim == 2 else pixels[0]
        return np.repeat(grey_HW[None], 3, axis=0)
    return np.ascontiguousarray(pixels[:3])


def is_rgb(channels: int | None) -> bool:
    """Return whether images of so many channels are red, green, blue, with alpha, or grey; None: by their shape.

    >>> is_rgb(None), is_rgb(1), is_rgb(4)
    (True, True, False)
    """
    return channels in {None, 1, 3}


def from_array(values: NDArray[Any], bounds: Bounds | None, channels: int | None = None) -> EightBits:
    """Return an array (H, W) or (C, H, W) as RGB; with all of its `channels` where the job names another number.

    Raises:
        NeedsRangeError: If it is not uint8 or boolean, and no range is given.
        ValueError: If it holds no real numbers, none at all, or values outside of the range.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"pixels of type {values.dtype}; uint8, whole or floating-point numbers are wanted")
    if not values.size:
        raise ValueError(f"no pixels: its shape is {values.shape}")
    of_rgb = is_rgb(channels)
    if values.dtype == np.uint8:
        return EightBits(pixels=three_channels(values) if of_rgb else np.ascontiguousarray(values))
    is_mask = values.dtype.kind == "b"
    values = values[:3] if values.ndim == 3 and of_rgb else np.ascontiguousarray(values)
    deep = Deep(values=values, what=str(values.dtype), told=(0, 1) if is_mask else None, is_fixed=is_mask)
    return as_rgb(deep, bounds) if of_rgb else scaled(deep, bounds)
