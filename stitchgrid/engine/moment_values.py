"""Values computed from second moments of evaluation rows: those of indices, and residual and r2 of affine maps."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stitchgrid.engine.fit import Fitted
from stitchgrid.engine.groups import GroupedGatherer
from stitchgrid.engine.index_values import Variants, note_index, note_variants, same_value
from stitchgrid.engine.ledger import Entry, Ledger
from stitchgrid.engine.pair_moments import MomentGatherer
from stitchgrid.engine.shuffles import ShuffledGatherer
from stitchgrid.engine.stitched import FittedStitch
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.protocol import MomentIndex
from stitchgrid.matchers.span import LEAK
from stitchgrid.matchers.stitchers.affine import AffineMap, r_squared, residual, squared_error
from stitchgrid.moments import PairMoments
from stitchgrid.records import Cell
from stitchgrid.statistics.gram import in_groups
from stitchgrid.statistics.moments import GroupedMoments
from stitchgrid.statistics.planner import evaluation_shuffles
from stitchgrid.statistics.residuals import cheaper

MOMENT_BYTES = 256 << 20  # of centred products of layer pairs at a time, for the indices


class EvaluationMoments:
    """Second moments of the evaluation images, of all of them, without each group, and with images shuffled."""

    def __init__(self, work: Workspace, fitted: Fitted, cells: Sequence[Cell], by_rows: Sequence[Cell] = ()):
        """`by_rows` are cells whose residual may be found row by row, where that costs less."""
        self.work, self.fitted = work, fitted
        asked = work.asked(cells)
        found, errors = cheaper(work.geometry, asked, work.asked(by_rows))
        self.by_rows = {cell.cell_id for cell in by_rows} if errors else set()
        self._gatherers = {
            count: GroupedGatherer(work, one) if isinstance(one, GroupedMoments) else MomentGatherer(work, one)
            for count, one in found.items()
        }
        self._shuffled = {
            count: ShuffledGatherer(work, one) for count, one in evaluation_shuffles(work.geometry, asked).items()
        }

    @property
    def num_images(self) -> int:
        """How many images have to pass."""
        return max(self._gatherers, default=0)

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        for gatherer in (*self._gatherers.values(), *self._shuffled.values()):
            gatherer.take(batch)

    def find_finite(self) -> None:
        """Find out which layers had only finite activations."""
        for gatherer in self._gatherers.values():
            gatherer.find_finite()

    def of(self, cell: Cell) -> PairMoments:
        """Return the moments of a cell's layer pair, with the source unreduced.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        gatherer = self._gatherers[self.work.needs[cell.matcher].num_eval]
        return gatherer.pair(self.work.space(cell), cell.source_key, cell.target_key)

    def reduced(self, cell: Cell) -> PairMoments:
        """Return the moments of a cell's layer pair, with the source reduced as the cell asks."""
        return self.fitted.reductions.of_moments(cell, self.of(cell))

    def without(self, cell: Cell) -> list[PairMoments]:
        """Return the moments without each group of images."""
        gatherer = self._gatherers[self.work.needs[cell.matcher].num_eval]
        assert isinstance(gatherer, GroupedGatherer)
        return gatherer.without(self.work.space(cell), cell.source_key, cell.target_key)

    def draws(self, cell: Cell) -> list[PairMoments]:
        """Return the moments of each draw of shuffled images."""
        shuffled = self._shuffled[self.work.needs[cell.matcher].num_eval]
        return shuffled.of(self.work.space(cell), cell.source_key, cell.target_key, self.of(cell))


class MomentValues:
    """Notes the values that moments give."""

    def __init__(self, work: Workspace, ledger: Ledger, fitted: Fitted, moments: EvaluationMoments):
        self.work, self.ledger, self.fitted, self.moments = work, ledger, fitted, moments

    def note_indices(self, cells_by_matcher: Mapping[int, Sequence[Cell]]) -> None:
        """Note values of indices, some pairs at a time, then values without each group, and with images shuffled."""
        num_variants = max(1, self.work.sweep.groups or 0, self.work.sweep.shuffles)
        budget, same = self.work.halved(MOMENT_BYTES) // num_variants, partial(same_value, self.work)
        for position, cells in cells_by_matcher.items():
            index = self.work.needs[position].kind
            assert isinstance(index, MomentIndex)
            for some in in_groups(cells, self._product_bytes, budget=budget):
                shared = note_index(self.ledger, some, self._of_index, index.compare, same=same)
                if self.work.sweep.groups:
                    self._note_variants(index, shared, self.moments.without, Entry.note_replicates)
                if self.work.sweep.shuffles:
                    alone = [(cell,) for sharing in shared for cell in sharing]
                    self._note_variants(index, alone, self.moments.draws, Entry.note_null)

    def _product_bytes(self, cell: Cell) -> int:
        return 8 * self.work.layer(cell.source_key).width * self.work.layer(cell.target_key).width

    def _of_index(self, cell: Cell) -> PairMoments:
        """Return the moments that an index is computed from, and note their number of rows."""
        entry, moments = self.ledger[cell], self.moments.reduced(cell)
        entry.num_rows = moments.num_rows
        if moments.num_rows - 1 < moments.x.num_features + moments.y.num_features:
            entry.flags.add("saturated")
        return moments

    def _note_variants(
        self,
        index: MomentIndex[Any],
        sharing: Sequence[tuple[Cell, ...]],
        variants_of: Callable[[Cell], Sequence[PairMoments]],
        note: Callable[[Entry, Mapping[str, Sequence[float]]], None],
    ) -> None:
        found = Variants(index.compare)
        moments = {
            cell.cell_id: [self.fitted.reductions.of_moments(cell, one) for one in variants_of(cell)]
            for cell, *_ in sharing
        }
        for some in zip(*moments.values(), strict=True):
            found.add(dict(zip(moments, some, strict=True)))
        note_variants(self.ledger, found, sharing, note)

    def note_residuals(self, stitches: Sequence[FittedStitch]) -> None:
        """Note residual and r2 of affine maps, and flag sources that the fit rows do not span."""
        affine = [
            (stitch.cell, stitch.map)
            for stitch in stitches
            if isinstance(stitch.map, AffineMap) and stitch.cell.cell_id not in self.moments.by_rows
        ]
        unseen: dict[tuple[int, int], Tensor] = {}  # by rows of a source and their span, which all its targets share
        noted: list[tuple[Cell, list[Tensor]]] = []  # residual, r2, share of the source that the fit rows do not span
        for cell, found in affine:
            with self.ledger.failing([cell]):
                moments = self.moments.of(cell)
                error = squared_error(found, moments)
                told = [measure(found, moments, error=error) for measure in (residual, r_squared)]
                noted.append((cell, [*told, self._unseen_share(cell, moments, unseen)]))
        values = torch.stack([torch.stack(row) for _, row in noted]).tolist() if noted else []  # one transfer for all
        for (cell, _), (relative_error, share, leak) in zip(noted, values, strict=True):
            self.ledger[cell].values |= {"residual": relative_error, "r2": share}
            if leak > LEAK:
                self.ledger[cell].flags.add("underdetermined")
        self._note_residual_variants([(cell, found) for cell, found in affine if self.ledger[cell].error is None])

    def _note_residual_variants(self, affine: Sequence[tuple[Cell, AffineMap]]) -> None:
        """Note residual and r2 of affine maps without each group of images, and of maps fitted to shuffled ones."""
        replicates, null = Variants(_errors), Variants(_errors)
        for cell, found in affine:
            for moments in self.moments.without(cell) if self.work.sweep.groups else ():
                replicates.add({cell.cell_id: (found, moments)})
            maps = self.fitted.shuffled.get(cell.cell_id)
            for one, moments in zip(maps, self.moments.draws(cell), strict=True) if maps else ():
                null.add({cell.cell_id: (one, moments)})
        sharing = [(cell,) for cell, _ in affine]
        note_variants(self.ledger, replicates, sharing, Entry.note_replicates)
        note_variants(self.ledger, null, sharing, Entry.note_null)

    def _unseen_share(self, cell: Cell, moments: PairMoments, known: dict[tuple[int, int], Tensor]) -> Tensor:
        """Return the share of a source that the fit rows of its map do not span; 0 for maps that were trained."""
        if (fit := self.fitted.fits.get(cell.cell_id)) is None or fit.span is None:
            return torch.zeros_like(moments.mean_x_D[0])
        moments = self.fitted.reductions.of_moments(cell, moments)
        key = id(moments.x), id(fit.span.axes_DK)
        if key not in known:
            known[key] = fit.span.unseen_share(moments)
        return known[key]


def _errors(stitches: Sequence[tuple[AffineMap, PairMoments]]) -> dict[str, Tensor]:
    """Return residual and r2 of maps on the rows of some moments."""
    errors = [squared_error(one, moments) for one, moments in stitches]
    return {
        name: torch.stack([of(*stitch, error=error) for stitch, error in zip(stitches, errors, strict=True)])
        for name, of in (("residual", residual), ("r2", r_squared))
    }
