"""One pass over the evaluation images: moments, Gram matrices and all stitched networks at once, then the values."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from stitchgrid.engine.anchors import Anchors
from stitchgrid.engine.fit import Fitted
from stitchgrid.engine.gram_matrices import GramGatherer, GramKey, gram_bytes
from stitchgrid.engine.gram_values import GramValues
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.moment_values import EvaluationMoments, MomentValues
from stitchgrid.engine.ood import DistanceCheck, GaussianKey
from stitchgrid.engine.stitched import FittedStitch, TailEvaluation
from stitchgrid.engine.workspace import Workspace, batches, by_network
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.matchers.ood import SOUND_AUROC
from stitchgrid.matchers.protocol import MomentIndex
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.moments import NOT_FINITE
from stitchgrid.records import Cell
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.gram import gram_groups
from stitchgrid.statistics.needs import Needs
from stitchgrid.statistics.planner import grams_of


class Evaluation:
    """Every cell of a shard on the evaluation images."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Sequence[Cell], fitted: Fitted):
        self.work, self.ledger, self.fitted = work, ledger, fitted
        self.stitches = [stitch for stitch in fitted.stitches if ledger[stitch.cell].error is None]
        sound = ledger.sound(cells)
        self.moment_cells = [cell for cell in sound if isinstance(self._needs(cell).kind, MomentIndex)]
        self.gram_cells = [cell for cell in sound if self._needs(cell).is_gram]
        self.grams = list(grams_of(work.geometry, work.asked(self.gram_cells)).values())
        by_rows = [stitch.cell for stitch in self.stitches if self._may_go_by_rows(stitch)]
        other = {stitch.cell: None for stitch in self.stitches if isinstance(stitch.map, AffineMap)}
        for cell in by_rows:
            del other[cell]
        self.moments = EvaluationMoments(work, fitted, [*other, *self.moment_cells], by_rows)
        self.anchors = Anchors(
            work, (key for s in self._run_stitches() for key in (s.cell.source_key, s.cell.target_key))
        )
        self.tails = self._tails()
        self.distances = self._distances()

    def _needs(self, cell: Cell) -> Needs:
        return self.work.needs[cell.matcher]

    def _may_go_by_rows(self, stitch: FittedStitch) -> bool:
        """Return whether the rows T(A) of an affine map give all values that moments of evaluation rows would give."""
        needs = self._needs(stitch.cell)
        if not (needs.may_go_by_rows and self._runs_tail(stitch) and isinstance(stitch.map, AffineMap)):
            return False
        return needs.is_trained or stitch.cell.cell_id in self.fitted.by_rows

    def _tails(self) -> list[TailEvaluation]:
        ending: dict[LayerKey, list[FittedStitch]] = {}
        for stitch in self._run_stitches():
            ending.setdefault(stitch.cell.target_key, []).append(stitch)
        minima = self.fitted.minima
        return [
            TailEvaluation(
                self.work,
                some,
                fit_minimum_S=torch.stack([minima[stitch.cell] for stitch in some]),
                anchors=self.anchors,
                by_rows=self.moments.by_rows,
            )
            for some in ending.values()
        ]

    def _run_stitches(self) -> list[FittedStitch]:
        """Return the stitches whose stitched networks are run."""
        return [stitch for stitch in self.stitches if self._runs_tail(stitch)]

    def _runs_tail(self, stitch: FittedStitch) -> bool:
        """Return whether a stitched network is run: features have no tail behind the target layer."""
        return self._needs(stitch.cell).runs_tail and self.work.sweep.networks[stitch.cell.target].head.has_scores

    def _distances(self) -> list[DistanceCheck]:
        measured: dict[GaussianKey, list[FittedStitch]] = {}
        for stitch in self.stitches:
            if self._needs(stitch.cell).asks_distances:
                measured.setdefault(self.fitted.gaussians.key(stitch.cell), []).append(stitch)
        checks = []
        for key, some in measured.items():
            with self.ledger.failing([stitch.cell for stitch in some]):
                checks.append(DistanceCheck(self.work, some, self.fitted.gaussians.fitted(key)))
        return checks

    def run(self) -> None:
        """Pass all images, then note every value."""
        groups = gram_groups(self.grams, self.work.halved(gram_bytes(self.work.device)))
        gathered = [self._gram_gatherers(group) for group in groups]
        self._pass(gathered[0] if gathered else [])
        self.moments.find_finite()
        for some in gathered[1:]:
            self._pass_grams(some)
        self._note_indices([one for some in gathered for one in some])
        self._note_stitches()

    def _gram_gatherers(self, keys: Sequence[LayerKey]) -> list[GramGatherer]:
        reductions: dict[GramKey, Reduction] = {}
        for cell in self.gram_cells:
            if (reduction := self.fitted.reductions.get(cell)) is not None:
                reductions[cell.source_key, self.work.rank(cell)] = reduction
        return [GramGatherer(self.work, one, keys, reductions) for one in self.grams]

    def _pass(self, grams: Sequence[GramGatherer]) -> None:
        keys = [key for cell in self.moment_cells for key in (cell.source_key, cell.target_key)]
        keys += [key for stitch in self.stitches for key in (stitch.cell.source_key, stitch.cell.target_key)]
        keys += [key for tail in self.tails for key in tail.profile.layers]
        counts = [self.moments.num_images, *(gram.num_images for gram in grams)]
        counts += [self._needs(stitch.cell).num_eval for stitch in self.stitches]
        wanted = by_network([*keys, *(key for gram in grams for key in gram.layers)])
        scored = {tail.target[0] for tail in self.tails}
        for batch in batches(self.work, self.work.images.eval, wanted, scored=scored, stop=max(counts)):
            self.moments.take(batch)
            for gram in grams:
                gram.take(batch)
            self.anchors.look_at(batch)
            takers: list[TailEvaluation | DistanceCheck] = [*self.tails, *self.distances]
            for taker in takers:
                with self.ledger.failing(taker.cells):
                    taker.take(batch)
            self.tails = [tail for tail in self.tails if self.ledger.sound(tail.cells)]
            self.distances = [check for check in self.distances if self.ledger.sound(check.cells)]

    def _pass_grams(self, grams: Sequence[GramGatherer]) -> None:
        wanted = by_network(key for gram in grams for key in gram.layers)
        for batch in batches(self.work, self.work.images.eval, wanted, stop=max(gram.num_images for gram in grams)):
            for gram in grams:
                gram.take(batch)

    def _note_indices(self, gathered: Sequence[GramGatherer]) -> None:
        self._values.note_indices(_by_matcher(self.moment_cells))
        grams = {(one.num_images, key): gram for one in gathered for key, gram in one.grams.items()}
        GramValues(self.work, self.ledger, grams).note(_by_matcher(self.gram_cells))

    @property
    def _values(self) -> MomentValues:
        return MomentValues(self.work, self.ledger, self.fitted, self.moments)

    def _note_stitches(self) -> None:
        takers: list[TailEvaluation | DistanceCheck] = [*self.tails, *self.distances]
        for taker in takers:
            for stitch, metrics in zip(taker.stitches, taker.metrics(), strict=True):
                self.ledger[stitch.cell].values |= metrics
        for tail in self.tails if self.work.sweep.groups else ():
            has_shares = self.work.sweep.networks[tail.target[0]].head.kind != "multilabel"
            for stitch, replicates in zip(tail.stitches, tail.replicates(), strict=True):
                self.ledger[stitch.cell].note_replicates(replicates, has_shares=has_shares)
        self._note_detectors()
        self._fail_not_finite()
        self._values.note_residuals(self.stitches)

    def _fail_not_finite(self) -> None:
        """Fail cells whose distances row by row are not finite, as moments of such activations would fail them."""
        for tail in self.tails:
            for cell in (tail.cells[position] for position in tail.row_errors.not_finite()):
                if cell.cell_id in self.moments.by_rows:
                    with self.ledger.failing([cell]):
                        raise ValueError(f"a residual needs finite activations, got inf or NaN; {NOT_FINITE}.")

    def _note_detectors(self) -> None:
        """Flag cells whose detector failed its sanity check: it cannot distinguish other outliers from B."""
        for tail in self.tails:
            if tail.detector is not None and not tail.detector.sanity_auroc.item() >= SOUND_AUROC:
                for position in tail.watched:
                    self.ledger[tail.cells[position]].flags.add("energy_unsound")


def _by_matcher(cells: Iterable[Cell]) -> Mapping[int, list[Cell]]:
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.matcher, []).append(cell)
    return found
