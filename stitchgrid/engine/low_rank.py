"""Projects sources of low rank on the principal axes of their own rows, found in one pass over the fit images."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.pair_moments import chunk_bytes
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.alignment import rows_of
from stitchgrid.matchers.low_rank import Reduction, reduction_to
from stitchgrid.moments import PairMoments, RowSums, Side, find_finite
from stitchgrid.records import Cell
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.layers import RowAxes
from stitchgrid.statistics.planner import row_axes


class AxesGatherer:
    """Principal axes of layers, each over the rows of a number of images of its own, prefix tokens included."""

    def __init__(self, work: Workspace, wanted: Sequence[RowAxes]):
        self.work, self.wanted = work, wanted
        self.sums = {(one.key, one.num_images): RowSums([one.width], device=work.device) for one in wanted}
        self._found: dict[tuple[LayerKey, int, int], Reduction] = {}

    @property
    def layers(self) -> list[LayerKey]:
        """The layers looked at."""
        return [one.key for one in self.wanted]

    @property
    def num_images(self) -> int:
        """How many images have to pass."""
        return max((one.num_images for one in self.wanted), default=0)

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch, a few images at a time so that memory stays bounded."""
        for one in self.wanted:
            layer, count, sums = self.work.layer(one.key), batch.count_below(one.num_images), self.sums_of(one)
            step = max(1, self.work.halved(chunk_bytes(self.work.device)) // (8 * one.num_rows * one.width))
            for start in range(0, count, step):
                part = slice(start, min(start + step, count))
                sums.add(sums.centre([rows_of(batch.activations[one.key][part], layer)]))

    def sums_of(self, one: RowAxes) -> RowSums:
        """Return the sums of a layer's rows."""
        return self.sums[one.key, one.num_images]

    def reduction(self, key: LayerKey, num_images: int, rank: int) -> Reduction:
        """Return the projection on a layer's top axes.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        wanted = key, num_images, rank
        if wanted not in self._found:
            find_finite(self.sums.values())
            self._found[wanted] = reduction_to(rank, self.sums[key, num_images].side(0))
        return self._found[wanted]


class Reductions:
    """The projections of a shard's cells; a source as wide as its rank or narrower is left as it is."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Iterable[Cell]):
        self.work, self.ledger = work, ledger
        self.cells = [cell for cell in cells if work.rank(cell) is not None]
        self.axes = AxesGatherer(work, row_axes(work.geometry, work.asked(self.cells)))
        self._found: dict[str, Reduction] = {}
        self._sides: dict[tuple[int, int], tuple[Side, Side]] = {}  # unreduced and reduced, which all targets share

    def find(self) -> None:
        """Find every projection, and flag its cell, once all images have passed."""
        for cell in self.cells:
            with self.ledger.failing([cell]):
                rank, entry = self.work.rank(cell), self.ledger[cell]
                assert rank is not None
                found = self.axes.reduction(cell.source_key, entry.num_fit or 0, rank)
                self._found[cell.cell_id] = found
                entry.flags |= {name for name, holds in _remarks(found).items() if holds}

    def get(self, cell: Cell) -> Reduction | None:
        """Return the projection of a cell's source, None if it is not projected."""
        return self._found.get(cell.cell_id)

    def of_moments(self, cell: Cell, moments: PairMoments) -> PairMoments:
        """Return the moments of a layer pair with the source projected as the cell asks."""
        if (reduction := self.get(cell)) is None:
            return moments
        key = id(reduction), id(moments.x)
        if key not in self._sides:
            self._sides[key] = moments.x, reduction.of_side(moments.x)
        return reduction.of_moments(moments, self._sides[key][1])


def _remarks(reduction: Reduction) -> Mapping[str, bool]:
    return {"rank_tied": reduction.is_tied, "rank_deficient": reduction.is_short}


def projected(a: Tensor, reduction: Reduction, feature_axis: int) -> Tensor:
    """Return a batch of activations projected, in their own shape and precision."""
    return reduction(a.movedim(feature_axis, -1)).movedim(-1, feature_axis)
