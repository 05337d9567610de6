"""One pass over the evaluation images: moments, Gram matrices and all stitched networks at once, then the values."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from stitchgrid.engine.anchors import Anchors
from stitchgrid.engine.fit import Fitted
from stitchgrid.engine.gather import (
    GramGatherer,
    GramKey,
    MomentGatherer,
    RowSpace,
    are_finite,
    gatherers_by_count,
    in_groups,
    index_space,
    stitch_space,
)
from stitchgrid.engine.index_values import note_index
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.ood import DistanceCheck, GaussianKey
from stitchgrid.engine.stitched import Stitch, TailEvaluation
from stitchgrid.engine.workspace import LayerKey, Workspace, batches, by_network
from stitchgrid.matchers.gram import Gram
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.matchers.metrics import WITHOUT_TAIL
from stitchgrid.matchers.ood import SOUND_AUROC
from stitchgrid.matchers.protocol import GramIndex, MomentIndex
from stitchgrid.matchers.registry import MATCHERS, asks_ood, implementation, is_a
from stitchgrid.matchers.span import LEAK
from stitchgrid.matchers.stitchers.affine import AffineMap, r_squared, residual, squared_error
from stitchgrid.moments import NOT_FINITE, PairMoments
from stitchgrid.records import Cell, MatcherSpec

GRAM_BYTES = {"cpu": 1 << 30, "cuda": 2 << 30}  # of activations kept at a time for Gram matrices
MOMENT_BYTES = 256 << 20  # of centred products of layer pairs at a time, for the indices


def gram_bytes(device: torch.device) -> int:
    """Return the bytes of activations that are kept at a time for Gram matrices: what is left takes another pass."""
    return GRAM_BYTES.get(device.type, GRAM_BYTES["cpu"])


class Evaluation:
    """Every cell of a shard on the evaluation images."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Sequence[Cell], fitted: Fitted):
        self.work, self.ledger, self.fitted = work, ledger, fitted
        self.stitches = [stitch for stitch in fitted.stitches if ledger[stitch.cell].error is None]
        sound = ledger.sound(cells)
        self.moment_cells = [cell for cell in sound if is_a(self._spec(cell), MomentIndex)]
        self.gram_cells = [cell for cell in sound if is_a(self._spec(cell), GramIndex)]
        self.ranks = self._ranks()
        self.gatherers = self._gatherers()
        self.anchors = Anchors(
            work, (key for s in self._run_stitches() for key in (s.cell.source_key, s.cell.target_key))
        )
        self.tails = self._tails()
        self.distances = self._distances()

    def _spec(self, cell: Cell) -> MatcherSpec:
        return self.work.sweep.matchers[cell.matcher]

    def _space(self, cell: Cell) -> RowSpace:
        source, target = self.work.layer(cell.source_key), self.work.layer(cell.target_key)
        if MATCHERS[self._spec(cell).kind].family == "stitcher":
            return stitch_space(source, target, self.work.rules(cell))
        return index_space(source, target)

    def _ranks(self) -> dict[LayerKey, dict[int | None, Reduction | None]]:
        """Return of which layers Gram matrices are needed, and of which rank."""
        found: dict[LayerKey, dict[int | None, Reduction | None]] = {}
        for cell in self.gram_cells:
            found.setdefault(cell.source_key, {})[self.work.rank(cell)] = self.fitted.reductions.get(cell)
            found.setdefault(cell.target_key, {})[None] = None
        return found

    def _gatherers(self) -> dict[int, MomentGatherer]:
        cells = [*(stitch.cell for stitch in self.stitches if _is_affine(stitch)), *self.moment_cells]
        return gatherers_by_count(
            self.work,
            ((self.ledger[cell].num_eval or 0, self._space(cell), cell.source_key, cell.target_key) for cell in cells),
        )

    def _tails(self) -> list[TailEvaluation]:
        ending: dict[LayerKey, list[Stitch]] = {}
        for stitch in self._run_stitches():
            ending.setdefault(stitch.cell.target_key, []).append(stitch)
        minima = self.fitted.minima
        return [
            TailEvaluation(
                self.work,
                some,
                fit_minimum_S=torch.stack([minima[stitch.cell] for stitch in some]),
                anchors=self.anchors,
            )
            for some in ending.values()
        ]

    def _run_stitches(self) -> list[Stitch]:
        """Return those whose stitched networks are run."""
        return [s for s in self.stitches if not _is_affine(s) or self._asks_tail(s)]

    def _asks_tail(self, stitch: Stitch) -> bool:
        return not WITHOUT_TAIL.issuperset(self.work.sweep.matchers[stitch.cell.matcher].metrics)

    def _distances(self) -> list[DistanceCheck]:
        measured: dict[GaussianKey, list[Stitch]] = {}
        for stitch in self.stitches:
            if asks_ood(self.work.sweep.matchers[stitch.cell.matcher], "mahalanobis"):
                measured.setdefault(self.fitted.gaussians.key(stitch.cell), []).append(stitch)
        checks = []
        for key, some in measured.items():
            with self.ledger.failing([stitch.cell for stitch in some]):
                checks.append(DistanceCheck(self.work, some, self.fitted.gaussians.fitted(key)))
        return checks

    def run(self) -> None:
        """Let all images pass, then note every value."""
        num_gram = max((self.ledger[cell].num_eval or 0 for cell in self.gram_cells), default=0)
        size = lambda key: 4 * num_gram * prod(self.work.layer(key).shape)  # noqa: E731
        groups = in_groups(self.ranks, size, budget=self.work.share(gram_bytes(self.work.device)))
        gathered = [self._grams(group) for group in groups]
        self._pass(gathered[0] if gathered else [])
        for gatherer in self.gatherers.values():
            gatherer.find_finite()
        for some in gathered[1:]:
            self._pass_grams(some)
        grams = {(g.num_images, key): gram for some in gathered for g in some for key, gram in g.grams.items()}
        self._note_indices(grams)
        self._note_stitches()

    def _grams(self, keys: Sequence[LayerKey]) -> list[GramGatherer]:
        counts = sorted({self.ledger[cell].num_eval or 0 for cell in self.gram_cells})
        wanted = {key: self.ranks[key] for key in keys}
        kinds = [implementation(self.work.sweep.matchers[m]) for m in {cell.matcher for cell in self.gram_cells}]
        reads_rows = any(isinstance(kind, GramIndex) and kind.reads_rows for kind in kinds)
        return [GramGatherer(self.work, wanted, num_images=count, reads_rows=reads_rows) for count in counts]

    def _pass(self, grams: Sequence[GramGatherer]) -> None:
        keys = [key for cell in self.moment_cells for key in (cell.source_key, cell.target_key)]
        keys += [key for stitch in self.stitches for key in (stitch.cell.source_key, stitch.cell.target_key)]
        keys += [key for tail in self.tails for key in tail.profile.layers]
        counts = [*self.gatherers, *(gram.num_images for gram in grams)]
        counts += [self.ledger[stitch.cell].num_eval or 0 for stitch in self.stitches]
        wanted = by_network([*keys, *(key for gram in grams for key in gram.layers)])
        scored = {tail.target[0] for tail in self.tails}
        for batch in batches(self.work, self.work.images.eval, wanted, scored=scored, stop=max(counts, default=0)):
            for gatherer in self.gatherers.values():
                gatherer.take(batch)
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

    def _note_indices(self, grams: dict[tuple[int, GramKey], Gram]) -> None:
        for position, cells in _by_matcher(self.moment_cells).items():
            index = implementation(self.work.sweep.matchers[position])
            assert isinstance(index, MomentIndex)
            for some in in_groups(cells, self._moment_bytes, budget=self.work.share(MOMENT_BYTES)):
                note_index(self.ledger, some, self._index_moments, index.compare, same=self._same)
        finite = are_finite(grams)
        for position, cells in _by_matcher(self.gram_cells).items():
            of_grams = implementation(self.work.sweep.matchers[position])
            assert isinstance(of_grams, GramIndex)
            look_up = _Prepared(self, grams, finite, of_grams.prepare)
            note_index(self.ledger, cells, look_up, of_grams.compare, same=self._same)

    def _same(self, cell: Cell) -> Hashable:
        """Return what cells have in common that are given one value: the two layers, where their order does not matter.

        Pairs compared on positions laid out alike are; a source of low rank is another layer than the target.
        """
        if not MATCHERS[self._spec(cell).kind].symmetric or self.work.rank(cell) is not None:
            return cell.cell_id
        return frozenset((cell.source_key, cell.target_key))

    def _moment_bytes(self, cell: Cell) -> int:
        return 8 * self.work.layer(cell.source_key).width * self.work.layer(cell.target_key).width

    def _index_moments(self, cell: Cell) -> PairMoments:
        """Return what an index is made of, and note how many rows that was."""
        entry, moments = self.ledger[cell], self.fitted.reductions.of_moments(cell, self._moments(cell))
        entry.num_rows = moments.num_rows
        if moments.num_rows - 1 < moments.x.num_features + moments.y.num_features:
            entry.flags.add("saturated")
        return moments

    def _note_stitches(self) -> None:
        takers: list[TailEvaluation | DistanceCheck] = [*self.tails, *self.distances]
        for taker in takers:
            for stitch, metrics in zip(taker.stitches, taker.metrics(), strict=True):
                self.ledger[stitch.cell].values |= metrics
        self._note_detectors()
        unseen: dict[tuple[int, int], Tensor] = {}  # by rows of a source and their span, which all its targets share
        noted: list[tuple[Cell, list[Tensor]]] = []  # residual, r2, share of the source that the fit rows do not span
        for stitch in self.stitches:
            if not isinstance(stitch.map, AffineMap):  # its rows were looked at, one by one
                continue
            with self.ledger.failing([stitch.cell]):
                moments = self._moments(stitch.cell)
                error = squared_error(stitch.map, moments)
                told = [measure(stitch.map, moments, error=error) for measure in (residual, r_squared)]
                noted.append((stitch.cell, [*told, self._unseen_share(stitch.cell, moments, unseen)]))
        values = torch.stack([torch.stack(row) for _, row in noted]).tolist() if noted else []  # one transfer for all
        for (cell, _), (relative_error, share, leak) in zip(noted, values, strict=True):
            self.ledger[cell].values |= {"residual": relative_error, "r2": share}
            if leak > LEAK:
                self.ledger[cell].flags.add("underdetermined")

    def _unseen_share(self, cell: Cell, moments: PairMoments, known: dict[tuple[int, int], Tensor]) -> Tensor:
        """Return what share of a source the fit rows of its map do not span; 0 for maps that were trained."""
        if (fit := self.fitted.fits.get(cell.cell_id)) is None or fit.span is None:
            return torch.zeros_like(moments.mean_x_D[0])
        moments = self.fitted.reductions.of_moments(cell, moments)
        key = id(moments.x), id(fit.span.axes_DK)
        if key not in known:
            known[key] = fit.span.unseen_share(moments)
        return known[key]

    def _note_detectors(self) -> None:
        """Flag what was told by a detector that does not tell other outliers from B."""
        for tail in self.tails:
            if tail.detector is not None and not tail.detector.sanity_auroc.item() >= SOUND_AUROC:
                for position in tail.watched:
                    self.ledger[tail.cells[position]].flags.add("energy_unsound")

    def _moments(self, cell: Cell) -> PairMoments:
        gatherer = self.gatherers[self.ledger[cell].num_eval or 0]
        return gatherer.pair(self._space(cell), cell.source_key, cell.target_key)


def _is_affine(stitch: Stitch) -> bool:
    return isinstance(stitch.map, AffineMap)


def _by_matcher(cells: Iterable[Cell]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.matcher, []).append(cell)
    return found


class _Prepared:
    """What an index of Gram matrices finds of each layer, once for all layers it is compared with."""

    def __init__(
        self,
        evaluation: Evaluation,
        grams: Mapping[tuple[int, GramKey], Gram],
        finite: Collection[tuple[int, GramKey]],
        prepare: Callable[[Gram], Any],
    ):
        self.evaluation, self.grams, self.finite, self.prepare = evaluation, grams, finite, prepare
        self._found: dict[tuple[int, GramKey], Any] = {}

    def __call__(self, cell: Cell) -> tuple[Any, Any]:
        """Return what is found of source and target.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        count, rank = self.evaluation.ledger[cell].num_eval or 0, self.evaluation.work.rank(cell)
        return self._of(cell, (count, (cell.source_key, rank))), self._of(cell, (count, (cell.target_key, None)))

    def _of(self, cell: Cell, key: tuple[int, GramKey]) -> Any:
        if key not in self.finite:
            kind = self.evaluation.work.sweep.matchers[cell.matcher].kind
            raise ValueError(f"{kind} needs finite activations, got inf or NaN; {NOT_FINITE}.")
        if key not in self._found:
            self._found[key] = self.prepare(self.grams[key])
        return self._found[key]
