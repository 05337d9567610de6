"""Draw images from a source in an order that a seed decides, and skip images that cannot be read."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.cache import map_pixels
from stitchgrid.datasets.images import ImagePool, Listing
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.ranges import Depths, range_is_needed
from stitchgrid.datasets.sources import Decoded, Source, Unreadable, Unscaled, permutation
from stitchgrid.errors import InputError

NUM_SHOWN = 5  # most bad images that a message names
ENOUGH_UNSCALED = 200  # images without a range after which reading stops with an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A request for the first images of a split's permutation."""

    split: str
    num: int | None  # how many are needed; None: all
    wish: int = 0  # how many are taken if there are as many

    @property
    def most(self) -> int | None:
        """The largest number that is taken; None: all."""
        return None if self.num is None else max(self.num, self.wish)


class Drawn:
    """Collects the images of one draw: they arrive in any order and are written to `sink`."""

    def __init__(self, draw: Draw, listing: Listing, seed: int, sink: BinaryIO):
        self.draw = draw
        self.bad: list[Unreadable] = []
        self.depths = Depths()
        self._remarks: Counter[str] = Counter()
        self._listing = listing
        self._order = permutation(draw.split, seed, listing.num)
        self._asked = 0  # how many positions of the order were requested so far
        self._found: dict[int, tuple[int, int, int, int]] = {}  # index -> offset, height, width, label
        self._channels = 3
        self._sink = sink
        self._written = 0

    def ask(self) -> list[int]:
        """Return the positions to read next: as many as are missing; empty if there are enough, or no more."""
        target = self._listing.num if self.draw.most is None else self.draw.most
        stop = self._asked + target - len(self._found)
        asked = self._order[self._asked : stop].tolist()
        self._asked += len(asked)
        return list(asked)

    def add(self, index: int, image: Decoded | Unreadable) -> None:
        """Store one image that was requested."""
        if isinstance(image, Unreadable):
            self.bad.append(image)
            return
        self._remarks.update(image.remarks)
        self.depths.take(image.depth)
        self._channels, height, width = image.pixels.shape  # the same of all images of a source
        self._sink.write(image.pixels.data)
        self._found[index] = (self._written, height, width, image.label)
        self._written += image.pixels.size

    def finish(self, bounds: Bounds | None) -> ImagePool:
        """Return the drawn images; `bounds` is the job's range.

        Raises:
            InputError: If too few images could be read, or the split changed meanwhile.
        """
        num = len(self._found)
        if num + len(self.bad) < self._asked:
            raise InputError(f"split {self.draw.split!r} changed while it was read; start again.")
        if num < min(self.draw.num or 1, self._asked):
            raise InputError(
                f"split {self.draw.split!r}: only {num} of {self._listing.num} images can be read, but at least "
                f"{self.draw.num or 1} are needed. {_describe(self.bad)}."
            )
        rows = [self._found[index] for index in self._order[: self._asked].tolist() if index in self._found]
        table = np.array(rows, dtype=np.int64).reshape(num, 4)
        return ImagePool(
            pixels=self._pixels(),
            offsets=table[:, 0].copy(),
            sizes=table[:, 1:3].copy(),
            labels=table[:, 3].copy(),
            listing=self._listing,
            num_bad=len(self.bad),
            channels=self._channels,
            remarks=self._described(bounds),
            measured=self.depths.measured,
            places=np.array([k for k in self._order[: self._asked].tolist() if k in self._found], dtype=np.int64),
        )

    def _described(self, bounds: Bounds | None) -> tuple[str, ...]:
        counted = [f"{count} image{'s' * (count != 1)} {what}" for what, count in sorted(self._remarks.items())]
        return (*counted, *self.depths.remarks(bounds, num=len(self._found)))

    def _pixels(self) -> NDArray[np.uint8]:
        if isinstance(self._sink, io.BytesIO):
            return np.frombuffer(self._sink.getbuffer(), dtype=np.uint8)
        self._sink.flush()
        return map_pixels(Path(self._sink.name))


def draw_images(
    source: Source,
    draws: Sequence[Draw],
    sinks: Sequence[BinaryIO],
    *,
    seed: int,
    skip_bad: bool,
    bounds: Bounds | None = None,
) -> dict[str, ImagePool]:
    """Return split -> images for draws of different splits, read in as few passes over the source as possible.

    Args:
        source: Where the images come from.
        draws: What to draw, at most one draw for each split.
        sinks: For each draw, the file into which pixels are written.
        seed: Decides the order.
        skip_bad: Whether images that cannot be read are replaced by the next ones.
        bounds: The job's range, for remarks.

    Raises:
        InputError: If an image cannot be read and `skip_bad` is off, if too few can be read, or if one needs a range.
    """
    drawn = {
        draw.split: Drawn(draw, source.listing(draw.split), seed, sink) for draw, sink in zip(draws, sinks, strict=True)
    }
    while wanted := [(split, index) for split, one in drawn.items() for index in one.ask()]:
        unscaled: list[Unscaled] = []
        for (split, index), image in source.read(wanted):
            drawn[split].add(index, image)
            unscaled += [image] if isinstance(image, Unscaled) else []
            if len(unscaled) == ENOUGH_UNSCALED:
                break
        if unscaled:
            raise InputError(range_is_needed(unscaled))
        bad = [image for one in drawn.values() for image in one.bad]
        if bad and not skip_bad:
            raise InputError(f'{_describe(bad)}. Repair or remove them, or set `on_bad_image = "skip"` under [data].')
    return {split: one.finish(bounds) for split, one in drawn.items()}


def _describe(bad: Sequence[Unreadable]) -> str:
    shown = "; ".join(f"{image.name} ({image.reason})" for image in bad[:NUM_SHOWN])
    more = f"; and {len(bad) - NUM_SHOWN} more" if len(bad) > NUM_SHOWN else ""
    return f"{len(bad)} unreadable image{'s' * (len(bad) != 1)}: {shown}{more}"
