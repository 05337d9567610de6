"""Second moments of the fit images for closed-form maps: of all images, or of groups, where a kind divides them."""

from collections.abc import Sequence
from typing import Any

from stitchgrid.engine.groups import GroupedGatherer
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.low_rank import Reductions
from stitchgrid.engine.pair_moments import MomentGatherer
from stitchgrid.engine.shuffles import ShuffledGatherer
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.protocol import ClosedForm, Folds
from stitchgrid.moments import Merger, PairMoments
from stitchgrid.records import Cell
from stitchgrid.statistics.moments import GroupedMoments
from stitchgrid.statistics.planner import fit_moments, fit_shuffles


class FitMoments:
    """The moments of the fit images that closed-form kinds read, from one pass."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Sequence[Cell]):
        self.work, self.ledger = work, ledger
        asked = work.asked(cells)
        self.kinds: dict[int, ClosedForm[Any]] = {
            one.needs.position: one.needs.closed for one in asked if one.needs.closed is not None
        }
        self._gatherers = {
            key: GroupedGatherer(work, one) if isinstance(one, GroupedMoments) else MomentGatherer(work, one)
            for key, one in fit_moments(work.geometry, asked).items()
        }
        self._merger = Merger()
        self._shuffled = {
            count: ShuffledGatherer(work, one) for count, one in fit_shuffles(work.geometry, asked).items()
        }

    @property
    def num_images(self) -> int:
        """How many images have to pass."""
        return max((count for count, _ in self._gatherers), default=0)

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        for gatherer in self._gatherers.values():
            gatherer.take(batch)
        for shuffled in self._shuffled.values():
            shuffled.take(batch)

    def find_axes(self) -> None:
        """Find the principal axes of all sources together, unless their moments are gathered by group."""
        for gatherer in self._gatherers.values():
            if isinstance(gatherer, MomentGatherer):
                gatherer.find_axes()

    def of(self, cell: Cell, reductions: Reductions) -> tuple[PairMoments, Folds]:
        """Return the moments of a cell's layer pair, and those of the folds that its kind asks for.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        parts = [reductions.of_moments(cell, part) for part in self._parts(cell)]
        if not self.kinds[cell.matcher].num_folds:
            return parts[0], ()
        return self._merger(parts), self._merger.folds(parts)

    def _parts(self, cell: Cell) -> list[PairMoments]:
        needs, pair = self.work.needs[cell.matcher], (self.work.space(cell), cell.source_key, cell.target_key)
        gatherer = self._gatherers[needs.num_fit, needs.num_folds]
        return gatherer.parts(*pair) if isinstance(gatherer, GroupedGatherer) else [gatherer.pair(*pair)]

    def shuffled(self, cell: Cell, reductions: Reductions) -> list[PairMoments]:
        """Return the moments of a cell's layer pair in each draw of shuffled images that it asks for."""
        if not self.work.needs[cell.matcher].is_shuffled:
            return []
        parts = self._parts(cell)
        draws = self._shuffled[self.work.needs[cell.matcher].num_fit].of(
            self.work.space(cell),
            cell.source_key,
            cell.target_key,
            self._merger(parts) if len(parts) > 1 else parts[0],
        )
        return [reductions.of_moments(cell, draw) for draw in draws]
