"""Divide a sweep into parts that cost differently: values from moments, stitched networks, trained stitchers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from stitchgrid.matchers.metrics import OOD_METRICS, WITHOUT_TAIL
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import GramIndex
from stitchgrid.matchers.registry import MATCHERS, is_a
from stitchgrid.planning import CPU_SPEED, cut_into_shards
from stitchgrid.records import Cell, MatcherSpec, Shard, Sweep
from stitchgrid.statistics.base import BACKWARD
from stitchgrid.statistics.needs import images_of
from stitchgrid.statistics.rows import RowSpace, index_space, stitch_space

STRUCTURAL = "structural"  # the part whose values need no stitched network


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some matchers of a sweep, with some of their metrics."""

    name: str
    sweep: Sweep
    shards: tuple[Shard, ...]

    @property
    def cells(self) -> list[Cell]:
        """All cells of the part."""
        return [cell for shard in self.shards for cell in self.sweep.cells(shard)]

    def layer_pairs(self) -> list[list[Cell]]:
        """Return the cells of the part, in one list for each layer pair."""
        pairs: dict[tuple[object, object], list[Cell]] = {}
        for cell in self.cells:
            pairs.setdefault((cell.source_key, cell.target_key), []).append(cell)
        return list(pairs.values())


def parts_of(sweep: Sweep, *, speed: float = CPU_SPEED) -> list[Part]:
    """Return the parts of a sweep: the structural part, then one per stitcher that runs stitched networks.

    Shards are cut for a worker of this speed (FLOP/s). The energy detector is left out, because bench trains none.
    Evidence (intervals and controls) is left out, because the reference computes none.
    """
    told_without = (tuple(m for m in spec.metrics if m not in OOD_METRICS["energy"]) for spec in sweep.matchers)
    matchers = tuple(replace(spec, metrics=some) for spec, some in zip(sweep.matchers, told_without, strict=True))
    sweep = replace(sweep, matchers=matchers, energy=None, groups=None, shuffles=0)
    structural: list[tuple[int, MatcherSpec]] = []
    others: list[tuple[int, MatcherSpec]] = []
    for position, spec in enumerate(sweep.matchers):
        kind = MATCHERS[spec.kind]
        told = tuple(metric for metric in spec.metrics if metric in WITHOUT_TAIL)
        if kind.family == "index":
            structural.append((position, spec))
        elif not kind.is_trained and told:
            structural.append((position, replace(spec, metrics=told)))
        if kind.family == "stitcher" and (kind.is_trained or told != spec.metrics):
            others.append((position, spec))
    parts = [(STRUCTURAL, structural)] if structural else []
    parts += [(name, [one]) for name, one in zip(_names([spec for _, spec in others]), others, strict=True)]
    return [_part(sweep, name, some, speed) for name, some in parts]


def _names(specs: Sequence[MatcherSpec]) -> list[str]:
    """Return the kind of each matcher with rank and seed, and with a number where names would be equal."""
    names = [
        spec.kind
        + ("" if spec.rank is None else f" rank {spec.rank}")
        + ("" if spec.seed is None else f" seed {spec.seed}")
        for spec in specs
    ]
    count = Counter(names)
    numbers = {name: iter(range(1, num + 1)) for name, num in count.items()}
    return [name if count[name] == 1 else f"{name} #{next(numbers[name])}" for name in names]


def _part(sweep: Sweep, name: str, matchers: Sequence[tuple[int, MatcherSpec]], speed: float) -> Part:
    some = replace(
        sweep,
        matchers=tuple(spec for _, spec in matchers),
        matcher_data=tuple(sweep.matcher_data[position] for position, _ in matchers),
    )
    return Part(name=name, sweep=some, shards=tuple(cut_into_shards(some, speed=speed)))


def sample_pairs(pairs: Sequence[list[Cell]], num: int, *, seed: int) -> list[list[Cell]]:
    """Return `num` layer pairs: target layers are spread evenly, the source layer of each is drawn at random."""
    if num >= len(pairs):
        return list(pairs)
    generator = torch.Generator().manual_seed(seed)
    by_target: dict[tuple[int, int], list[list[Cell]]] = {}
    for position in torch.randperm(len(pairs), generator=generator).tolist():
        by_target.setdefault(pairs[position][0].target_key, []).append(pairs[position])
    targets = sorted(by_target)
    chosen: list[list[Cell]] = []
    while len(chosen) < num:
        left = [target for target in targets if by_target[target]]
        wanted = min(num - len(chosen), len(left))
        chosen += [by_target[target].pop() for target in _spread(left, wanted)]
    return chosen


def _spread(items: Sequence[tuple[int, int]], num: int) -> Iterable[tuple[int, int]]:
    if num == 1:
        return [items[len(items) // 2]]
    return [items[round(k * (len(items) - 1) / (num - 1))] for k in range(num)]


def irreducible_flops(part: Part) -> dict[int, float]:
    """Return position of a network -> FLOPs of network evaluations that no sharing of work can save.

    They are: for each network, one pass up to its last layer over the fit images, and one over the evaluation images;
    for each stitched network that a metric runs, its tail over the evaluation images; for each trained stitcher, the
    tail forward and backward over the fit images in every epoch.
    """
    sweep = part.sweep
    flops = {position: 0.0 for pair in sweep.pairs for position in pair}
    counts = [images_of(sweep, matcher) for matcher in range(len(sweep.matchers))]
    stitchers = [k for k, spec in enumerate(sweep.matchers) if MATCHERS[spec.kind].family == "stitcher"]
    passes = max((counts[k][0] for k in stitchers), default=0) + max(num_eval for _, num_eval in counts)
    for position in flops:
        flops[position] += passes * sweep.networks[position].layers[-1].flops
    for cell in part.cells:
        spec, (num_fit, num_eval) = sweep.matchers[cell.matcher], counts[cell.matcher]
        network = sweep.networks[cell.target]
        epochs = spec.values["epochs"] if MATCHERS[spec.kind].is_trained else 0
        is_run = cell.matcher in stitchers and not WITHOUT_TAIL.issuperset(spec.metrics)
        images = num_eval * is_run + epochs * num_fit * (1 + BACKWARD)
        flops[cell.target] += images * (network.flops - network.layers[cell.target_layer].flops)
    return flops


def product_flops(part: Part) -> dict[torch.dtype, float]:
    """Return type -> FLOPs of the matrix products that define indices and closed-form stitchers.

    In float32: half of the Gram matrix of each layer, because it is symmetric. In float64: the products of each layer
    with itself, and of the two layers of each pair, on the rows of the layer that has fewer: x'(Ly) = (L'x)'y. The
    resampling of rows, solving, and additional work for low rank are left out.
    """
    sweep = part.sweep
    grams: dict[tuple[int, int], int] = {}
    products: dict[object, float] = {}
    for cell in part.cells:
        spec, (num_fit, num_eval) = sweep.matchers[cell.matcher], images_of(sweep, cell.matcher)
        kind = MATCHERS[spec.kind]
        if is_a(spec, GramIndex):
            grams |= {key: max(num_eval, grams.get(key, 0)) for key in (cell.source_key, cell.target_key)}
            continue
        source, target = (
            sweep.networks[network].layers[layer] for network, layer in (cell.source_key, cell.target_key)
        )
        splits = [("eval", num_eval)]
        if kind.family == "stitcher":
            space = stitch_space(source, target, Rules.of(spec))
            splits += [("fit", num_fit)] * (not kind.is_trained)
        else:
            space = index_space(source, target)
        for images in splits:
            products |= _pair_products(cell, space, source.width, target.width, images)
    in_grams = sum(
        num * (num + 1) * float(prod(sweep.networks[network].layers[layer].shape))
        for (network, layer), num in grams.items()
    )
    return {torch.float32: in_grams, torch.float64: sum(products.values())}


def _pair_products(
    cell: Cell, space: RowSpace, num_in: int, num_out: int, images: tuple[str, int]
) -> dict[object, float]:
    """Return product -> FLOPs for a layer pair; equal keys are products that several pairs share."""
    source, target, is_laid = cell.source_key, cell.target_key, space.rules is not None
    source_rows = 2.0 * images[1] * min(space.source.num_rows, space.target.num_rows)
    target_rows = 2.0 * images[1] * space.target.num_rows
    source_as, target_as = (space if is_laid else (space.source, space.pools)), (space.target, space.pools)
    products: dict[object, float] = {
        (images, source_as, source): source_rows * num_in * (num_in + 1) / 2,
        (images, target_as, target): target_rows * num_out * (num_out + 1) / 2,
    }
    if is_laid or source != target:
        pair = (source, target) if is_laid else frozenset({source, target})
        products[images, space, pair] = source_rows * num_in * num_out
    return products
