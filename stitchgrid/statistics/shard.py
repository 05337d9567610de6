"""All that a shard reads and runs, phase by phase: its cost and its memory are the sums of its parts."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from stitchgrid.matchers.divergence import loss_images
from stitchgrid.records import Block, Sweep
from stitchgrid.statistics.base import (
    NUMBER_BYTES,
    LayerKey,
    Statistic,
    layer_of,
    total_bytes,
)
from stitchgrid.statistics.detector import detector_bytes, detector_flops
from stitchgrid.statistics.gram import GRAM_BYTES, Grams, gram_groups
from stitchgrid.statistics.layers import PooledGaussian, RowAxes
from stitchgrid.statistics.moments import ShuffledMoments
from stitchgrid.statistics.needs import CellGrid, all_needs, of_blocks
from stitchgrid.statistics.passes import Pass, SourceReading, TargetReading, pass_flops, reading_of
from stitchgrid.statistics.planner import (
    AnyMoments,
    evaluation_shuffles,
    fit_moments,
    fit_shuffles,
    gaussians,
    grams_of,
    row_axes,
)
from stitchgrid.statistics.residuals import cheaper, row_errors
from stitchgrid.statistics.rows import Geometry, LayersSize
from stitchgrid.statistics.stitched_network import Distances, Energies, TailStatistic, Target, Training


@dataclass(frozen=True, kw_only=True)
class ShardStatistics:
    """The statistics of whole blocks."""

    fit: tuple[AnyMoments, ...]
    fit_shuffled: tuple[ShuffledMoments, ...]
    row_axes: tuple[RowAxes, ...]
    gaussians: tuple[PooledGaussian, ...]
    training: tuple[Statistic, ...]
    evaluation: tuple[AnyMoments, ...]
    shuffled: tuple[ShuffledMoments, ...]
    grams: tuple[Grams, ...]
    tails: tuple[Statistic, ...]  # and what is measured on their inputs
    passes: tuple[Statistic, ...]
    num_products: int  # numbers in the products of all sources with all targets
    num_maps: int  # of each pair, those of shuffled images too

    def __iter__(self) -> Iterator[Statistic]:
        """Yield all of them."""
        yield from chain(self.fit, self.fit_shuffled, self.row_axes, self.gaussians, self.training)
        yield from chain(self.evaluation, self.shuffled, self.grams, self.tails, self.passes)

    def flops(self) -> float:
        """Return the cost of all of them, in operations of a network."""
        return sum(one.flops() for one in self)

    def shared_flops(self) -> float:
        """Return the part of `flops` that other shards of the same networks compute again."""
        return sum(one.shared_flops() for one in self)

    def moment_bytes(self) -> int:
        """Return the size of maps and moments: the fit's, or the evaluation's with what is kept of the fit."""
        kept = NUMBER_BYTES * sum(one.products.num_axes for one in self.fit)
        of_fit, of_evaluation = (
            total_bytes(chain(*some)) for some in ((self.fit, self.fit_shuffled), (self.evaluation, self.shuffled))
        )
        return NUMBER_BYTES * self.num_maps * self.num_products + max(of_fit, kept + of_evaluation)


class Collector:
    """Finds the statistics of blocks of one sweep, with what they have in common looked up once."""

    def __init__(self, sweep: Sweep, matchers: Sequence[int] | None = None):
        self.sweep, self.geometry = sweep, Geometry(sweep)
        needs = all_needs(sweep)
        self.needs = needs if matchers is None else tuple(needs[matcher] for matcher in matchers)

    def of(self, blocks: Sequence[Block]) -> ShardStatistics:
        """Return what whole blocks read and run."""
        sweep, asked = self.sweep, list(of_blocks(self.needs, blocks))
        grams = tuple(grams_of(self.geometry, asked).values())
        closed = tuple(fit_moments(self.geometry, asked).values())
        of_rows, errors = cheaper(
            self.geometry,
            [one for one in asked if not self._may_go_by_rows(one)],
            [one for one in asked if self._may_go_by_rows(one)],
        )
        evaluation = tuple(of_rows.values())
        errors = (*errors, *row_errors(self.geometry, [one for one in asked if one.needs.is_adapter]))
        axes, of_targets = row_axes(self.geometry, asked), gaussians(self.geometry, asked)
        targets = self._all_targets(blocks)
        runs_tail = any(one.runs_tail for one in self.needs)
        scored = {key[0] for key in targets if runs_tail and self._has_scores(key)}
        pairs = sum(target.width * target.source_width for target in targets.values())
        num_maps = sum(
            one.is_stitcher + sweep.shuffles * (one.is_shuffled and one.closed is not None) for one in self.needs
        )
        return ShardStatistics(
            fit=closed,
            fit_shuffled=tuple(fit_shuffles(self.geometry, asked).values()),
            row_axes=axes,
            gaussians=of_targets,
            training=tuple(self._training(targets)),
            evaluation=evaluation,
            shuffled=tuple(evaluation_shuffles(self.geometry, asked).values()),
            grams=grams,
            tails=(*self._tails(targets), *errors),
            passes=(
                *self._fit_passes([*closed, *axes], of_targets),
                *self._pass([*evaluation, *grams, *self._stitched(targets)], scored),
                *self._gram_passes(grams),
            ),
            num_products=pairs,
            num_maps=num_maps,
        )

    def _may_go_by_rows(self, asked: CellGrid) -> bool:
        return asked.needs.may_go_by_rows and self._has_scores(asked.targets[0])  # all of one network

    def _has_scores(self, key: LayerKey) -> bool:
        """Return whether a network lies behind a layer; features have none."""
        return self.sweep.networks[key[0]].head.has_scores

    def _fit_passes(self, of_pairs: Sequence[Statistic], of_targets: Sequence[Statistic]) -> Iterator[Pass]:
        """Yield the passes over fit images: all networks for what pairs need, then targets alone if these need more."""
        num_seen = max((one.num_images for one in of_pairs), default=0)
        yield from self._pass([*of_pairs, *of_targets], num_images=num_seen)
        further = [one for one in of_targets if one.num_images > num_seen]
        num_more = max((one.num_images for one in further), default=num_seen) - num_seen
        yield from self._pass(further, num_images=num_more)

    def _gram_passes(self, grams: Sequence[Grams]) -> Iterator[Pass]:
        """Yield the passes for Gram matrices whose layers' activations are not all kept at once."""
        for keys in gram_groups(grams, GRAM_BYTES["cpu"])[1:]:
            yield from self._pass_to(frozenset(keys), num_images=max(one.num_images for one in grams))

    def _pass(
        self, read: Sequence[Statistic], scored: Collection[int] = (), *, num_images: int | None = None
    ) -> Iterator[Pass]:
        """Yield one pass of all networks of which something is read, over as many images as any of it needs."""
        layers = frozenset(key for one in read for key in one.layers)
        if num_images is None:
            num_images = max((one.num_images for one in read), default=0)
        yield from self._pass_to(layers, scored, num_images=num_images)

    def _pass_to(self, layers: frozenset[LayerKey], scored: Collection[int] = (), *, num_images: int) -> Iterator[Pass]:
        of_networks: dict[int, set[LayerKey]] = {}
        for key in layers if num_images else ():
            of_networks.setdefault(key[0], set()).add(key)
        for network, keys in of_networks.items():
            flops = self.sweep.networks[network].flops if network in scored else pass_flops(self.sweep, keys)
            yield Pass(num_images=num_images, keys=frozenset(keys), flops_per_image=flops)

    def _stitched(self, targets: dict[LayerKey, Target]) -> list[Statistic]:
        """Return the layers that stitched networks are made of."""
        if not any(one.is_stitcher for one in self.needs):
            return []
        keys = frozenset(targets) | frozenset(
            key for target in targets.values() for some in target.sources for key in some.keys
        )
        return [Pass(num_images=self.sweep.num_eval, keys=keys, flops_per_image=0.0)]

    def _training(self, targets: dict[LayerKey, Target]) -> Iterator[Statistic]:
        """Yield the training of every matcher's maps; matchers that read the same sources share what is read."""
        readings: dict[object, SourceReading] = {}
        for needs in self.needs:
            if not needs.is_trained:
                continue
            num_checked = loss_images(needs.num_fit, num_seen=needs.epochs * needs.num_fit)
            for target in targets.values():
                yield Training(num_images=needs.num_fit, target=target, epochs=needs.epochs, num_checked=num_checked)
            sources = tuple(
                sorted({key for target in targets.values() for some in target.sources for key in some.keys})
            )
            reading = reading_of(
                self.geometry,
                sources,
                num_images=needs.num_fit,
                augment=needs.augment,
                epochs=needs.epochs,
                num_checked=num_checked,
            )
            what = (needs.num_fit, needs.rank) if reading.keeps() else needs.position
            if what not in readings:
                readings[what] = reading
            if needs.kind.reads_target:
                yield TargetReading(
                    num_images=needs.num_fit,
                    keys=tuple(targets),
                    flops_per_image=sum(self.sweep.networks[network].flops for network in {key[0] for key in targets}),
                    epochs=needs.epochs,
                    num_checked=num_checked,
                )
        yield from readings.values()

    def _tails(self, targets: dict[LayerKey, Target]) -> Iterator[Statistic]:
        """Yield what runs behind the stitch, and what is measured there."""
        num_tails, num_distances, num_energies = (
            sum(getattr(one, what) for one in self.needs) for what in ("runs_tail", "asks_distances", "asks_energies")
        )
        num_images = self.sweep.num_eval
        for target in targets.values():
            if num_tails and self._has_scores(target.key):
                yield TailStatistic(num_images=num_images, target=target, num_matchers=num_tails)
            if num_distances:
                yield Distances(num_images=num_images, target=target, num_matchers=num_distances)
            if num_energies:
                yield Energies(
                    num_images=num_images,
                    target=target,
                    num_matchers=num_energies,
                    detector_flops=detector_flops(self.sweep, *target.key),
                    detector_bytes=detector_bytes(self.sweep, layer_of(self.sweep, target.key)),
                )

    def _all_targets(self, blocks: Iterable[Block]) -> dict[LayerKey, Target]:
        """Return every target layer with all that is stitched into it."""
        sources: dict[LayerKey, list[LayersSize]] = {}
        for block in blocks:
            some = self.geometry.side(tuple((block.source, layer) for layer in block.source_layers))
            for layer in block.target_layers:
                sources.setdefault((block.target, layer), []).append(some)
        return {key: self._target(key, tuple(some)) for key, some in sources.items()}

    def _target(self, key: LayerKey, sources: tuple[LayersSize, ...]) -> Target:
        size, layer = self.geometry.size(key), layer_of(self.sweep, key)
        return Target(
            key=key,
            num_rows=size.num_rows,
            width=size.width,
            tail_flops=self.sweep.networks[key[0]].flops - layer.flops,
            sources=sources,
        )
