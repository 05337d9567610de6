"""Checks and remarks on the range of pixels over many images."""

import math
from collections.abc import Iterable, Sequence

from stitchgrid.datasets.pixels import Bounds, Depth
from stitchgrid.datasets.sources import Unscaled
from stitchgrid.errors import InputError

SMALL_SHARE = 1 / 8  # if the drawn images use a smaller share of the range, a remark says so


class Depths:
    """Collects the ranges of the deep images of a draw."""

    def __init__(self) -> None:
        self._num = 0
        self._used: dict[Bounds, tuple[float, float]] = {}  # black and white -> smallest and largest value met
        self._measured: set[Bounds] = set()

    def take(self, depth: Depth | None) -> None:
        """Count one image."""
        if depth is None:
            return
        self._num += 1
        low, high = self._used.get(depth.bounds, (depth.low, depth.high))
        self._used[depth.bounds] = (min(low, depth.low), max(high, depth.high))
        if depth.is_measured:
            self._measured.add(depth.bounds)

    @property
    def measured(self) -> tuple[Bounds, ...]:
        """The ranges from tags in which some programs write the extremes of one image."""
        return tuple(sorted(self._measured))

    def remarks(self, bounds: Bounds | None, *, num: int) -> list[str]:
        """Return remarks on a draw of `num` images; `bounds` is the job's range."""
        found = []
        if bounds is not None and bounds not in self._used:
            found.append(f"`range` = {_shown(bounds)} was not used: none of the {num} images drawn needs it")
        for (low, high), (least, most) in sorted(self._used.items()):
            if most - least < SMALL_SHARE * (high - low):
                found.append(
                    f"pixels run only from {least:.10g} to {most:.10g} of {_shown((low, high))}: few levels of grey "
                    "are left; give another `range` under [data] if that is not what they are"
                )
        return found


def check_measured(measured: Iterable[Bounds]) -> None:
    """Refuse images that would be scaled by different ranges, so that one value gave different levels of grey.

    Raises:
        InputError: If tags give more than one range.
    """
    told = sorted(set(measured))
    if len(told) > 1:
        raise InputError(
            f"the tags of some files say that black and white are {_shown(told[0])}, those of others "
            f"{_shown(told[1])}: the same value would be two levels of grey; give one range for all, "
            "`range = [LOW, HIGH]` under [data]."
        )


def range_is_needed(images: Sequence[Unscaled]) -> str:
    """Return the message about images without a known range, with the line to add to the job."""
    low, high = min(image.low for image in images), max(image.high for image in images)
    others = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return (
        f"{images[0].name}{others}: {images[0].what} pixels, and no word on which values are black and white; the "
        f"smallest value seen is {low:.10g}, the largest {high:.10g}. Set `range = {_guess(low, high)}` under [data], "
        "or what the camera or program has written."
    )


def _guess(low: float, high: float) -> str:
    """Return a likely range for values, as text for a job file.

    >>> _guess(3, 3900), _guess(0, 0.9), _guess(-7, 900)
    ('[0, 4095]', '[0, 1]', '[-7, 900]')
    """
    if math.isnan(low) or math.isnan(high):
        return "[LOW, HIGH]"
    if low >= 0 and high <= 1:
        return "[0, 1]"
    if low >= 0 and float(low).is_integer() and float(high).is_integer():
        return f"[0, {2 ** max(8, int(high).bit_length()) - 1}]"
    return f"[{low:.10g}, {high:.10g}]"


def _shown(bounds: Bounds) -> str:
    return f"[{bounds[0]:.10g}, {bounds[1]:.10g}]"
