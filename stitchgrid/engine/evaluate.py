"""One pass over the evaluation images: moments, Gram matrices and all stitched networks at once, then the values."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
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
    by_count,
    in_groups,
    index_space,
    stitch_space,
)
from stitchgrid.engine.groups import GroupedMoments, Groups
from stitchgrid.engine.index_values import Variants, note_index
from stitchgrid.engine.ledger import Entry, Ledger
from stitchgrid.engine.ood import DistanceCheck, GaussianKey
from stitchgrid.engine.shuffles import shuffled_by_count, shuffled_orders
from stitchgrid.engine.stitched import Stitch, TailEvaluation
from stitchgrid.engine.workspace import LayerKey, Workspace, batches, by_network
from stitchgrid.matchers.gram import Gram
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.matchers.metrics import WITHOUT_TAIL
from stitchgrid.matchers.ood import SOUND_AUROC
from stitchgrid.matchers.protocol import GramIndex, MomentIndex
from stitchgrid.matchers.registry import MATCHERS, asks_ood, implementation, is_a, is_shuffled
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
        wanted = list(self._wanted_moments())
        self.gatherers = self._gatherers(wanted)
        self.shuffled = shuffled_by_count(
            work, (one for cell, one in wanted if is_shuffled(work.sweep, work.sweep.matchers[cell.matcher]))
        )
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

    def _wanted_moments(self) -> Iterator[tuple[Cell, tuple[int, RowSpace, LayerKey, LayerKey]]]:
        for cell in [*(stitch.cell for stitch in self.stitches if _is_affine(stitch)), *self.moment_cells]:
            yield cell, (self.ledger[cell].num_eval or 0, self._space(cell), cell.source_key, cell.target_key)

    def _gatherers(
        self, wanted: Iterable[tuple[Cell, tuple[int, RowSpace, LayerKey, LayerKey]]]
    ) -> dict[int, MomentGatherer | GroupedMoments]:
        num_groups, found = self.work.sweep.groups, by_count(one for _, one in wanted)
        if not num_groups:
            return {count: MomentGatherer(self.work, some, num_images=count) for count, some in found.items()}
        return {
            count: GroupedMoments(self.work, some, num_images=count, num_groups=num_groups)
            for count, some in found.items()
        }

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
        has_tail = self.work.sweep.networks[stitch.cell.target].head.has_scores
        return has_tail and not WITHOUT_TAIL.issuperset(self.work.sweep.matchers[stitch.cell.matcher].metrics)

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
            for gatherer in (*self.gatherers.values(), *self.shuffled.values()):
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
        num_variants = max(1, self.work.sweep.groups or 0, self.work.sweep.shuffles)
        budget = self.work.share(MOMENT_BYTES) // num_variants
        for position, cells in _by_matcher(self.moment_cells).items():
            index = implementation(self.work.sweep.matchers[position])
            assert isinstance(index, MomentIndex)
            for some in in_groups(cells, self._moment_bytes, budget=budget):
                shared = note_index(self.ledger, some, self._index_moments, index.compare, same=self._same)
                self._note_moment_variants(index, shared)
        finite = are_finite(grams)
        for position, cells in _by_matcher(self.gram_cells).items():
            of_grams = implementation(self.work.sweep.matchers[position])
            assert isinstance(of_grams, GramIndex)
            look_up = _Prepared(self, grams, finite, of_grams.prepare)
            shared = note_index(self.ledger, cells, look_up, of_grams.compare, same=self._same)
            self._note_gram_variants(of_grams, shared, look_up)

    def _note_moment_variants(self, index: MomentIndex[Any], shared: Sequence[tuple[Cell, ...]]) -> None:
        """Note what an index of moments is without each group of images, and with images shuffled."""
        if self.work.sweep.groups:
            self._note(self._of_moments(index, shared, self._without), shared, Entry.note_replicates)
        if self.work.sweep.shuffles:
            alone = [(cell,) for cells in shared for cell in cells]
            self._note(self._of_moments(index, alone, self._draws), alone, Entry.note_null)

    def _of_moments(
        self,
        index: MomentIndex[Any],
        sharing: Sequence[tuple[Cell, ...]],
        variants_of: Callable[[Cell], Sequence[PairMoments]],
    ) -> Variants[PairMoments]:
        found = Variants(index.compare)
        moments = {
            cell.cell_id: [self.fitted.reductions.of_moments(cell, one) for one in variants_of(cell)]
            for cell, *_ in sharing
        }
        for some in zip(*moments.values(), strict=True):
            found.add(dict(zip(moments, some, strict=True)))
        return found

    def _note_gram_variants(
        self, index: GramIndex[Any, Any], shared: Sequence[tuple[Cell, ...]], whole: "_Prepared"
    ) -> None:
        """Note what an index of Gram matrices is without each group of images, and with the source's shuffled."""
        replicates, null = Variants(index.compare), Variants(index.compare)
        alone = [(cell,) for cells in shared for cell in cells]
        for number in range(self.work.sweep.groups or 0):
            kept = whole.of_images(partial(self._kept, number))
            replicates.add({cell.cell_id: (kept.source(cell), kept.target(cell)) for cell, *_ in shared})
        for number in range(self.work.sweep.shuffles):
            drawn = whole.of_images(partial(self._order, number))
            null.add({cell.cell_id: (drawn.source(cell), whole.target(cell)) for (cell,) in alone})
        self._note(replicates, shared, Entry.note_replicates)
        self._note(null, alone, Entry.note_null)

    def _kept(self, left_out: int, count: int) -> Tensor:
        """Return the positions of the first images without those of a group."""
        return Groups(self.work.sweep.groups or 1).others(left_out, count, self.work.device)

    def _order(self, draw: int, count: int) -> Tensor:
        return shuffled_orders(count, self.work.sweep.shuffles, self.work.device)[draw]

    def _note(
        self,
        variants: Variants[Any],
        sharing: Sequence[tuple[Cell, ...]],
        note: Callable[[Entry, Mapping[str, Sequence[float]]], None],
    ) -> None:
        found = variants.read()
        for cells in sharing:
            for cell in cells:
                note(self.ledger[cell], found.get(cells[0].cell_id, {}))

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
        for tail in self.tails if self.work.sweep.groups else ():
            has_shares = self.work.sweep.networks[tail.target[0]].head.kind != "multilabel"
            for stitch, replicates in zip(tail.stitches, tail.replicates(), strict=True):
                self.ledger[stitch.cell].note_replicates(replicates, has_shares=has_shares)
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
        self._note_stitch_variants()

    def _note_stitch_variants(self) -> None:
        """Note residual and r2 of affine maps without each group of images, and of maps fitted to shuffled ones."""
        replicates, null = Variants(_errors), Variants(_errors)
        affine = [(stitch, stitch.map) for stitch in self.stitches if isinstance(stitch.map, AffineMap)]
        for stitch, found in affine:
            cell = stitch.cell
            if self.ledger[cell].error is not None:
                continue
            for moments in self._without(cell) if self.work.sweep.groups else ():
                replicates.add({cell.cell_id: (found, moments)})
            maps = self.fitted.shuffled.get(cell.cell_id)
            for one, moments in zip(maps, self._draws(cell), strict=True) if maps else ():
                null.add({cell.cell_id: (one, moments)})
        sharing = [(stitch.cell,) for stitch, _ in affine]
        self._note(replicates, sharing, Entry.note_replicates)
        self._note(null, sharing, Entry.note_null)

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

    def _without(self, cell: Cell) -> list[PairMoments]:
        """Return the moments without each group of images."""
        gatherer = self.gatherers[self.ledger[cell].num_eval or 0]
        assert isinstance(gatherer, GroupedMoments)
        return gatherer.without(self._space(cell), cell.source_key, cell.target_key)

    def _draws(self, cell: Cell) -> list[PairMoments]:
        """Return the moments of each draw of shuffled images."""
        shuffled = self.shuffled[self.ledger[cell].num_eval or 0]
        return shuffled.of(self._space(cell), cell.source_key, cell.target_key, self._moments(cell))


def _is_affine(stitch: Stitch) -> bool:
    return isinstance(stitch.map, AffineMap)


def _errors(stitches: Sequence[tuple[AffineMap, PairMoments]]) -> dict[str, Tensor]:
    """Return residual and r2 of maps on the rows of some moments."""
    errors = [squared_error(one, moments) for one, moments in stitches]
    return {
        name: torch.stack([of(*stitch, error=error) for stitch, error in zip(stitches, errors, strict=True)])
        for name, of in (("residual", residual), ("r2", r_squared))
    }


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
        images: Callable[[int], Tensor] | None = None,
    ):
        self.evaluation, self.grams, self.finite, self.prepare = evaluation, grams, finite, prepare
        self.images = images  # those looked at of so many, in which order; None: all, as they are
        self._found: dict[tuple[int, GramKey], Any] = {}

    def of_images(self, images: Callable[[int], Tensor]) -> "_Prepared":
        """Return the same of some of the images, or of all in another order."""
        return _Prepared(self.evaluation, self.grams, self.finite, self.prepare, images)

    def __call__(self, cell: Cell) -> tuple[Any, Any]:
        """Return what is found of source and target.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        return self.source(cell), self.target(cell)

    def source(self, cell: Cell) -> Any:
        """Return what is found of a cell's source."""
        return self._of(cell, (cell.source_key, self.evaluation.work.rank(cell)))

    def target(self, cell: Cell) -> Any:
        """Return what is found of a cell's target."""
        return self._of(cell, (cell.target_key, None))

    def _of(self, cell: Cell, layer: GramKey) -> Any:
        key = self.evaluation.ledger[cell].num_eval or 0, layer
        if key not in self.finite:
            kind = self.evaluation.work.sweep.matchers[cell.matcher].kind
            raise ValueError(f"{kind} needs finite activations, got inf or NaN; {NOT_FINITE}.")
        if key not in self._found:
            gram = self.grams[key]
            self._found[key] = self.prepare(gram if self.images is None else gram.of_images(self.images(key[0])))
        return self._found[key]
