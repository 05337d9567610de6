"""Gathers second moments of layer pairs while images pass; `statistics.moments` decides of which.

Shape suffixes: N images, P rows of a source, Q of a target, X features of all sources side by side, Y of all targets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stitchgrid.engine.resampling import Resampling, resampling
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.alignment import pooled, rows_of
from stitchgrid.moments import CrossSums, PairMoments, PivotedRows, RowSums, find_axes, find_finite
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.moments import Cross, Frame, Moments, Products
from stitchgrid.statistics.rows import RowSpace

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # of float64 rows of layers multiplied at a time


def chunk_bytes(device: torch.device) -> int:
    """Return the bytes of float64 rows that are multiplied at a time, unless a single image has more."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])


@dataclass(kw_only=True, eq=False)
class FrameRows:
    """Layers of one layout, read side by side about a pivot."""

    frame: Frame
    rows: PivotedRows

    def read(self, work: Workspace, activations: Mapping[LayerKey, Tensor], part: slice | Tensor) -> Tensor:
        """Return the rows of some images, (N, P, X), about their pivot."""
        layers = [(activations[key][part], work.layer(key)) for key in self.frame.keys]
        if self.frame.pools:
            return self.rows.centre([pooled(a, layer).unsqueeze(1) for a, layer in layers])
        return self.rows.centre([rows_of(a, layer) for a, layer in layers])


@dataclass(kw_only=True, eq=False)
class CrossRows:
    """Rows of a frame of sources as they are multiplied with those of a frame of targets."""

    cross: Cross
    source: FrameRows
    target: FrameRows
    resampling: Resampling | None  # None: rows are compared as they are

    def source_rows(self, x_NPX: Tensor) -> Tensor:
        """Return a source's rows, about their pivot, as they are multiplied."""
        if self.resampling is None or self.cross.brings_back:
            return x_NPX
        pivot_X = 0.0 if self.resampling.keeps_means else self.source.rows.pivot_X
        return self.resampling.matvec(x_NPX + pivot_X) - pivot_X

    def target_rows(self, y_NQY: Tensor) -> Tensor:
        """Return a target's rows, about their pivot, as they are multiplied."""
        return self.resampling.rmatvec(y_NQY) if self.resampling is not None and self.cross.brings_back else y_NQY


@dataclass(kw_only=True, eq=False)
class GatheredCross(CrossRows):
    """The products of a frame of sources with a frame of targets, and the sums of the sources' rows as multiplied.

    The sums are the frame's own if its rows are not resampled.
    """

    laid: RowSums
    products: CrossSums = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.target.rows, RowSums)
        blocks = self.cross.blocks if self.cross.is_mirrored else None
        self.products = CrossSums(self.laid, self.target.rows, blocks=blocks)

    def add(self, x_NPX: Tensor, y_NQY: Tensor) -> None:
        """Add the rows of a few images, about their pivots."""
        rows_x = self.source_rows(x_NPX)
        self.products.add(rows_x, self.target_rows(y_NQY))
        if self.resampling is None:
            return
        self.laid.pivot_X = self.source.rows.pivot_X
        if self.cross.brings_back:
            partners_NPX = self.resampling.normal(x_NPX)
            self.laid.add(x_NPX, partners=partners_NPX, num_rows=y_NQY.shape[0] * y_NQY.shape[1])
        else:
            self.laid.add(rows_x)

    def pair(self, source: LayerKey, target: LayerKey) -> PairMoments:
        """Return the moments of a layer pair."""
        return self.products.pair(self.cross.source.keys.index(source), self.cross.target.keys.index(target))


def row_readers(work: Workspace, products: Products, *, with_sums: bool) -> dict[int, FrameRows]:
    """Return a reader of each frame, by the frame's id; `with_sums` lets those add up sums whose frame needs them."""
    return {
        id(frame): FrameRows(
            frame=frame,
            rows=(RowSums if with_sums and frame.needs_sums else PivotedRows)(frame.widths, device=work.device),
        )
        for frame in products.frames
    }


def resampling_of(work: Workspace, space: RowSpace) -> Resampling | None:
    """Return the operator that resamples a source's rows to a target's, None if they are compared as they are."""
    return None if space.rules is None else resampling(space.source, space.target, space.rules, work.device)


class MomentGatherer:
    """Second moments of all layer pairs of a statistic."""

    def __init__(self, work: Workspace, moments: Moments):
        self.work, self.moments = work, moments
        self.frames = list(row_readers(work, moments.products, with_sums=True).values())
        by_frame = {id(one.frame): one for one in self.frames}
        self.crosses = {
            cross.space: self._gathered(cross, by_frame[id(cross.source)], by_frame[id(cross.target)])
            for cross in moments.products.crosses
        }

    def _gathered(self, cross: Cross, source: FrameRows, target: FrameRows) -> GatheredCross:
        laid = RowSums(cross.source.widths, device=self.work.device) if cross.is_laid else source.rows
        assert isinstance(laid, RowSums)
        return GatheredCross(
            cross=cross, source=source, target=target, resampling=resampling_of(self.work, cross.space), laid=laid
        )

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch, a few images at a time so that memory stays bounded."""
        count, group = batch.count_below(self.moments.num_images), self.moments.group
        budget = self.work.halved(chunk_bytes(self.work.device))
        step = group.of * max(1, budget // self.moments.products.bytes_per_image)
        for start in range((group.number - batch.start) % group.of, count, step):
            self._add(batch, slice(start, min(start + step, count), group.of))

    def _add(self, batch: Batch, part: slice) -> None:
        rows = {frame: frame.read(self.work, batch.activations, part) for frame in self.frames}
        for cross in self.crosses.values():
            cross.add(rows[cross.source], rows[cross.target])
        for frame in self.frames:
            if isinstance(frame.rows, RowSums):
                frame.rows.add(rows[frame])

    def find_finite(self) -> None:
        """Find out which layers had only finite activations, for all layers together."""
        own = (frame.rows for frame in self.frames if isinstance(frame.rows, RowSums))
        find_finite([*own, *self._laid(self.crosses.values())])

    def find_axes(self) -> None:
        """Find together the principal axes of all sources that need them, of their rows as they are multiplied."""
        self.find_finite()
        asked = (cross for cross in self.crosses.values() if "source" in cross.cross.axes)
        find_axes(side for sums in self._laid(asked) for side in sums.finite_sides())

    @staticmethod
    def _laid(crosses: Iterable[GatheredCross]) -> list[RowSums]:
        return [cross.laid for cross in crosses]

    def pair(self, space: RowSpace, source: LayerKey, target: LayerKey) -> PairMoments:
        """Return the moments of one layer pair.

        Raises:
            ValueError: If no image was taken, or an activation was infinite or NaN.
        """
        return self.crosses[space].pair(source, target)
