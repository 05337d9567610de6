"""Shuffles the source's images against the target's: values without any correspondence, as a null distribution.

Whole images are shuffled, within blocks of consecutive ones, so that sums can be taken while images pass. The draws
depend only on the number of images. So cells with the same number of images are shuffled alike, in every sweep, and the
best of several layers can be compared with the best of each draw.

Shape suffixes: K draws, N images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from stitchgrid.engine.pair_moments import CrossRows, FrameRows, chunk_bytes, resampling_of, row_readers
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.moments import PairMoments
from stitchgrid.records import digest
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.moments import ShuffledMoments
from stitchgrid.statistics.rows import RowSpace

BLOCK_IMAGES = 64  # in a block, or more in the last one


@lru_cache(maxsize=16)
def shuffled_orders(num_images: int, num_draws: int, device: torch.device | None = None) -> Tensor:
    """Return, for each draw, which image of the source goes with each of the target: (K, N) positions.

    The first draws are the same for any number of draws.
    """
    generator = torch.Generator().manual_seed(int(digest("shuffled", str(num_images))[:15], 16))
    ends = [*block_ends(num_images)]
    blocks = list(zip([0, *ends], ends, strict=False))
    draws = [
        torch.cat([start + torch.randperm(end - start, generator=generator) for start, end in blocks])
        for _ in range(num_draws)
    ]
    return torch.stack(draws).to(device)


def block_ends(num_images: int) -> Iterator[int]:
    """Yield where blocks end: each has `BLOCK_IMAGES`, and the last one takes the rest as well.

    >>> list(block_ends(150)), list(block_ends(10))
    ([64, 150], [10])
    """
    yield from range(BLOCK_IMAGES, num_images - BLOCK_IMAGES + 1, BLOCK_IMAGES)
    yield num_images


class ShuffledGatherer:
    """Second moments of layer pairs with the source's images shuffled, which changes only their products."""

    def __init__(self, work: Workspace, moments: ShuffledMoments):
        self.work, self.moments = work, moments
        self._orders_KN = shuffled_orders(moments.num_images, moments.num_draws, work.device)
        self._ends = list(block_ends(moments.num_images))
        self._frames = row_readers(work, moments.products, with_sums=False)
        self._crosses = {
            cross.space: CrossRows(
                cross=cross,
                source=self._frames[id(cross.source)],
                target=self._frames[id(cross.target)],
                resampling=resampling_of(work, cross.space),
            )
            for cross in moments.products.crosses
        }
        shapes = {space: (one.cross.source.width, one.cross.target.width) for space, one in self._crosses.items()}
        self._products = {
            space: torch.zeros(moments.num_draws, *shape, dtype=torch.float64, device=work.device)
            for space, shape in shapes.items()
        }
        self._held: dict[LayerKey, Tensor] = {}  # activations of a block that is not complete yet
        self._start = 0  # position of its first image

    def take(self, batch: Batch) -> None:
        """Add the rows of the blocks that a batch completes."""
        count = batch.count_below(self.moments.num_images)
        if not count:
            return
        taken = {key: batch.activations[key][:count] for key in sorted(self.moments.layers)}
        if self._held:
            taken = {key: torch.cat([self._held[key], a]) for key, a in taken.items()}
        stop = batch.start + count
        end = max((end for end in self._ends if end <= stop), default=0)
        if end > self._start:
            num = end - self._start
            self._add({key: a[:num] for key, a in taken.items()}, self._orders_KN[:, self._start : end] - self._start)
            taken = {key: a[num:] for key, a in taken.items()}
            self._start = end
        self._held = {key: a.clone() for key, a in taken.items()} if stop > self._start else {}

    def _add(self, activations: Mapping[LayerKey, Tensor], orders_KN: Tensor) -> None:
        """Add the rows of whole blocks, a few images of the target at a time so that memory stays bounded.

        If all rows may be held at once, they are read once and shuffled; else they are read again for each draw.
        """
        frames, sources = self._frames, {id(one.source): one.source for one in self._crosses.values()}
        num = orders_KN.shape[1]
        step = max(1, self.work.halved(chunk_bytes(self.work.device)) // self.moments.products.bytes_per_image)
        whole = self._read(frames, activations, slice(None)) if num <= step else {}
        for start in range(0, num, step):
            part = slice(start, start + step)
            read = whole or self._read(frames, activations, part)
            rows_y = {
                space: one.target_rows(read[id(one.cross.target)]).flatten(0, -2)
                for space, one in self._crosses.items()
            }
            for draw, order_N in enumerate(orders_KN[:, part]):
                shuffled = {
                    id(one.frame): whole[id(one.frame)].index_select(0, order_N)
                    if whole
                    else one.read(self.work, activations, order_N)
                    for one in sources.values()
                }
                for space, one in self._crosses.items():
                    rows_x = one.source_rows(shuffled[id(one.cross.source)]).flatten(0, -2)
                    self._products[space][draw].addmm_(rows_x.mT, rows_y[space])

    def _read(
        self, frames: Mapping[int, FrameRows], activations: Mapping[LayerKey, Tensor], part: slice
    ) -> dict[int, Tensor]:
        return {frame: one.read(self.work, activations, part) for frame, one in frames.items()}

    def of(self, space: RowSpace, source: LayerKey, target: LayerKey, whole: PairMoments) -> list[PairMoments]:
        """Return the moments of one layer pair in each draw; `whole` are those of images that are not shuffled."""
        one = self._crosses[space]
        columns_x = one.source.rows.slices[one.cross.source.keys.index(source)]
        columns_y = one.target.rows.slices[one.cross.target.keys.index(target)]
        shift_D = whole.mean_x_D - one.source.rows.pivot_X[columns_x]
        shift_E = whole.mean_y_E - one.target.rows.pivot_X[columns_y]
        shift_DE = whole.num_rows * torch.outer(shift_D, shift_E)
        return [replace(whole, xy_DE=xy_DE - shift_DE) for xy_DE in self._products[space][:, columns_x, columns_y]]
