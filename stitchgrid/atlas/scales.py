"""Colour scales: one per matcher and metric of a sweep, so that its heat maps can be compared."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stitchgrid.matchers.metrics import Ends

LARGEST = 1e300  # larger values are drawn at the ends, because differences between them overflow
TAIL = 2.0  # per cent of the values that may lie beyond an end that comes from the data
STRETCH = 1.5  # an end is the last value, unless that makes the scale longer by more than this factor
SKEW = 10.0  # if the median is this many times smaller than the upper end, the scale is logarithmic
DECADES = 3.0  # most decades of a logarithmic scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to positions between 0 (lowest) and 1 (highest)."""

    low: float
    high: float
    is_log: bool = False
    clips_low: bool = False  # some value lies below `low`
    clips_high: bool = False  # some value lies above `high`

    def position(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return positions in [0, 1], NaN for NaN; values beyond an end get the position of that end."""
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        clipped = np.clip(values, self.low, self.high)
        return np.asarray(((np.log(clipped) if self.is_log else clipped) - low) / (high - low))


def choose_scale(ends: Ends, values: npt.NDArray[np.float64]) -> Scale:
    """Return the scale of a metric with these ends; an end that is None is computed robustly from the values.

    Positive values with a long upper tail get a logarithmic scale. NaN and infinite values are ignored.
    """
    low_anchor, high_anchor = ends
    finite = np.clip(values[np.isfinite(values)], -LARGEST, LARGEST)
    if not finite.size:
        finite = np.array([low_anchor or 0.0])
    tail_low, tail_high = (float(end) for end in np.percentile(finite, [TAIL, 100 - TAIL]))
    low = _reach(tail_low, float(finite.min()), tail_high) if low_anchor is None else low_anchor
    high = _reach(tail_high, float(finite.max()), low) if high_anchor is None else high_anchor
    is_log = high_anchor is None and low >= 0 and 0 < float(np.median(finite)) < high / SKEW
    if is_log:
        low = max(tail_low, high / 10**DECADES)
    if not high > low:
        high = low + (abs(low) or 1.0)
    return Scale(
        low=low,
        high=high,
        is_log=is_log,
        clips_low=bool((values < low).any()),
        clips_high=bool((values > high).any()),
    )


def _reach(end: float, last: float, other: float) -> float:
    """Return the last value if that makes a scale from `other` at most `STRETCH` times as long, else the robust end."""
    return last if abs(last - other) <= STRETCH * abs(end - other) else end
