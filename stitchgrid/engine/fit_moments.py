"""Second moments of the fit images for closed-form maps: of all images, or of groups, where a kind divides them."""

from collections.abc import Sequence
from typing import Any

from stitchgrid.engine.gather import ALL, Group, MomentGatherer, gatherers_by_count, stitch_space
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.low_rank import Reductions
from stitchgrid.engine.shuffles import shuffled_by_count
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.protocol import ClosedForm, Folds
from stitchgrid.matchers.registry import implementation, is_shuffled
from stitchgrid.matchers.stitchers.direct import Direct, DirectParams
from stitchgrid.moments import Merger, PairMoments
from stitchgrid.records import Cell


class FitMoments:
    """What closed-form kinds read of the fit images, from one pass."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Sequence[Cell]):
        self.work, self.ledger = work, ledger
        self.kinds: dict[int, ClosedForm[Any]] = {}  # by matcher
        for matcher in {cell.matcher for cell in cells}:
            kind = implementation(work.sweep.matchers[matcher])
            if not isinstance(kind, ClosedForm):  # maps of another kind are trained from these
                kind = Direct(DirectParams())
            self.kinds[matcher] = kind
        self._spaces = {
            cell.cell_id: stitch_space(work.layer(cell.source_key), work.layer(cell.target_key), work.rules(cell))
            for cell in cells
        }
        self._gatherers: dict[Group, dict[int, MomentGatherer]] = {}
        by_group: dict[Group, list[Cell]] = {}
        for cell in cells:
            for group in self._groups(cell):
                by_group.setdefault(group, []).append(cell)
        for group, some in by_group.items():
            wanted = ((self._count(c), self._spaces[c.cell_id], c.source_key, c.target_key) for c in some)
            self._gatherers[group] = gatherers_by_count(work, wanted, group)
        self._merger = Merger()
        shuffling = (cell for cell in cells if is_shuffled(work.sweep, work.sweep.matchers[cell.matcher]))
        self._shuffled = shuffled_by_count(
            work, ((self._count(c), self._spaces[c.cell_id], c.source_key, c.target_key) for c in shuffling)
        )

    def _count(self, cell: Cell) -> int:
        return self.ledger[cell].num_fit or 0

    def _groups(self, cell: Cell) -> list[Group]:
        num = min(self.kinds[cell.matcher].num_folds, self._count(cell))
        return [Group(number=number, of=num) for number in range(num)] or [ALL]

    @property
    def num_images(self) -> int:
        """How many images have to pass."""
        return max((count for of_counts in self._gatherers.values() for count in of_counts), default=0)

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        for of_counts in self._gatherers.values():
            for gatherer in of_counts.values():
                gatherer.take(batch)
        for shuffled in self._shuffled.values():
            shuffled.take(batch)

    def find_axes(self) -> None:
        """Find the principal axes of all sources together, where moments are not of groups."""
        for gatherer in self._gatherers.get(ALL, {}).values():
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
        pair = self._spaces[cell.cell_id], cell.source_key, cell.target_key
        return [self._gatherers[group][self._count(cell)].pair(*pair) for group in self._groups(cell)]

    def shuffled(self, cell: Cell, reductions: Reductions) -> list[PairMoments]:
        """Return the moments of a cell's layer pair in each draw of shuffled images that it asks for."""
        if not is_shuffled(self.work.sweep, self.work.sweep.matchers[cell.matcher]):
            return []
        parts = self._parts(cell)
        draws = self._shuffled[self._count(cell)].of(
            self._spaces[cell.cell_id],
            cell.source_key,
            cell.target_key,
            self._merger(parts) if len(parts) > 1 else parts[0],
        )
        return [reductions.of_moments(cell, draw) for draw in draws]
