"""A resolved sweep and what is done -> the shards to compute. Pure: no torch, no store, stable ids."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod
from typing import Protocol

from stitchgrid.matchers.metrics import WITHOUT_TAIL
from stitchgrid.matchers.protocol import ClosedForm, GramIndex
from stitchgrid.matchers.registry import (
    MATCHERS,
    asks_ood,
    images_used,
    implementation,
    is_a,
    is_shuffled,
    stored_metrics_of,
)
from stitchgrid.records import Block, Cell, Layer, MatcherSpec, Shard, Sweep, digest

CPU_SPEED, GPU_SPEED = 1e11, 2e13  # FLOP/s that a core, and a GPU in fp32, is taken to keep up; assumed, not measured
MAX_SHARD_S = 120.0  # of a shard at such a speed
MIN_SHARD_S = 1.0  # Ray's call, the part and the log of a unit take hundredths of it; only sweeps of seconds get there
MAX_SHARED = 1 / 8  # of a shard's work: what other shards of the same networks do as well
MIN_SHARDS = 16  # of a sweep big enough, so that workers share it and a crash costs little
AGAIN = "asked for again"  # why a cell is computed that is there
PIECE = "-"  # between the id of a shard and the number of its half
TILE_SIDES = (8, 4, 2, 1)  # networks on a side of a tile; the largest that fits is taken
RESNET18_FLOPS = 1.11e9  # of CIFAR's ResNet-18, 64 wide, for an image of 32x32
EXACT = 10.0  # cost of a product of rows in float64, with all it needs, in operations of a network
DRAWN = 0.2  # of that, where rows that were read are shuffled
BACKWARD = 1.0  # cost of a gradient with respect to a tail's input, in forward passes


class Done(Protocol):
    """What a store knows of cells."""

    def metrics_done(self, cell_id: str) -> frozenset[str]:
        """Return the metrics that have a row."""
        ...

    def failed(self, cell_id: str) -> str | None:
        """Return the latest error of a cell that never succeeded."""
        ...

    def generation(self, cell_id: str) -> int | None:
        """Return of which computation of a cell its rows are, 0 where it was not asked for again; None of no rows."""
        ...


def never(cell: Cell) -> int:  # noqa: ARG001
    """Return that a cell is not asked for again."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a launch would do, and why."""

    sweep: Sweep
    shards: tuple[Shard, ...]  # the whole sweep
    todo: tuple[Shard, ...]  # what is left of them, with the cells wanted
    num_cells: int
    reasons: dict[str, int]  # why cells are (not) computed -> how many
    speed: float = CPU_SPEED  # of a worker, for which shards were cut

    @property
    def num_todo(self) -> int:
        """Number of cells to compute."""
        return sum(shard.num_cells for shard in self.todo)

    @property
    def num_done(self) -> int:
        """Number of cells with all the metrics they ask for."""
        return self.reasons.get("done", 0)

    @property
    def num_failed(self) -> int:
        """Number of cells that failed before and are left alone."""
        return self.reasons.get("failed before, left alone", 0)

    @property
    def flops(self) -> float:
        """Work left, by the cost model."""
        return sum(shard.flops for shard in self.todo)


def make_plan(
    sweep: Sweep,
    done: Done,
    *,
    retry_failed: bool = False,
    again: Callable[[Cell], int] = never,
    speed: float = CPU_SPEED,
    shard_flops: float | None = None,
) -> Plan:
    """Cut the whole sweep into shards, then take out what the store holds.

    `again` is the generation that the rows of a cell are to have at least: those of a lower one do not count.

    Shards do not depend on what is finished, so that a resume computes what an undisturbed run would.
    """
    shards = tuple(cut_into_shards(sweep, speed=speed, shard_flops=shard_flops))
    reasons: Counter[str] = Counter()
    todo: dict[str, Shard] = {}  # by id: where two names stand for one network, so do shards
    for shard in shards:
        wanted = set()
        generations = {}
        for cell in sweep.cells(shard):
            asked = again(cell)
            reason, compute = _reason(sweep, cell, done, asked, retry_failed=retry_failed)
            reasons[reason] += 1
            if compute:
                wanted.add(cell.cell_id)
                if generation := max(asked, done.generation(cell.cell_id) or 0):
                    generations[cell.cell_id] = generation
        if (known := todo.get(shard.unit_id)) is not None:
            wanted |= {cell.cell_id for cell in sweep.cells(known)}
            generations = dict(known.generations) | generations
        if wanted:
            todo[shard.unit_id] = _left(shard, wanted, generations)
    return Plan(
        sweep=sweep,
        shards=shards,
        todo=tuple(todo.values()),
        num_cells=sum(reasons.values()),
        reasons=dict(reasons),
        speed=speed,
    )


def _left(shard: Shard, wanted: set[str], generations: Mapping[str, int]) -> Shard:
    """Return what is left of a shard."""
    shard = replace(shard, generations=tuple(sorted(generations.items())))
    if len(wanted) == shard.num_cells:
        return shard
    share = len(wanted) / shard.num_cells
    return replace(shard, wanted=frozenset(wanted), num_cells=len(wanted), flops=shard.flops * share)


def _reason(sweep: Sweep, cell: Cell, done: Done, asked: int, *, retry_failed: bool) -> tuple[str, bool]:
    """Return why a cell is or is not to be computed, and which."""
    if not (sweep.networks[cell.source].is_known and sweep.networks[cell.target].is_known):
        return "untrained model", True
    if asked and (generation := done.generation(cell.cell_id)) is not None and generation < asked:
        return AGAIN, True
    have = done.metrics_done(cell.cell_id)
    if have.issuperset(stored_metrics_of(sweep, cell)):
        return "done", False
    if done.failed(cell.cell_id) is not None:
        return ("failed before, tried again", True) if retry_failed else ("failed before, left alone", False)
    return ("new metric" if have else "missing"), True


def cut_into_shards(sweep: Sweep, *, speed: float = CPU_SPEED, shard_flops: float | None = None) -> Iterable[Shard]:
    """Yield the shards of a whole sweep: tiles of source x target networks, or target layers of a pair too big.

    The side of the tiles is the largest whose costliest tile stays within `shard_flops`, by default a share of the
    whole sweep that takes a worker of this speed (FLOP/s) a second to two minutes. The sources of a single target layer
    that takes it longer than these two minutes are shared out among several shards.
    """
    matchers = tuple(range(len(sweep.matchers)))
    if shard_flops is None:
        pairs = _tiles(sweep, 1)
        total = sum(cost(sweep, tile, matchers) for tile in pairs)
        shared = max((_repeated_cost(sweep, tile, matchers) for tile in pairs), default=0.0)
        least = max(MIN_SHARD_S * speed, shared / MAX_SHARED)
        shard_flops = min(max(total / MIN_SHARDS, least), MAX_SHARD_S * speed)
    tiles: list[list[Block]] = []
    for side in TILE_SIDES:
        tiles = _tiles(sweep, side)
        if max((cost(sweep, tile, matchers) for tile in tiles), default=0.0) <= shard_flops:
            break
    for tile in tiles:
        if len(tile) > 1:
            yield _shard(sweep, tile, matchers)
            continue
        for block in _target_ranges(sweep, tile[0], matchers, shard_flops):
            for part in _source_ranges(sweep, block, matchers, max(shard_flops, MAX_SHARD_S * speed)):
                yield _shard(sweep, [part], matchers)


def _tiles(sweep: Sweep, side: int) -> list[list[Block]]:
    tiles: dict[tuple[int, int], list[Block]] = {}
    for source, target in sweep.pairs:
        tiles.setdefault((source // side, target // side), []).append(sweep.block(source, target))
    return list(tiles.values())


def _target_ranges(sweep: Sweep, block: Block, matchers: Sequence[int], shard_flops: float) -> Iterator[Block]:
    """Yield a block in runs of target layers, each within `shard_flops` or a single layer."""
    run: list[int] = []
    for layer in block.target_layers:
        longer = replace(block, target_layers=(*run, layer))
        if run and cost(sweep, [longer], matchers) > shard_flops:
            yield replace(block, target_layers=tuple(run))
            run = []
        run.append(layer)
    yield replace(block, target_layers=tuple(run))


def _source_ranges(sweep: Sweep, block: Block, matchers: Sequence[int], most: float) -> list[Block]:
    """Return a block in the fewest equal runs of source layers that keep within `most`, or are single layers.

    No run is so short that what all of them do anew is more than a small share of it.
    """
    anew = _shared_cost(sweep, [block], matchers) + _training_passes(sweep, [block], matchers)
    most = max(most, (anew + _target_grams(sweep, block, matchers)) / MAX_SHARED)
    layers = block.source_layers
    runs = [block]
    while len(runs) < len(layers) and max(cost(sweep, [run], matchers) for run in runs) > most:
        ends = [k * len(layers) // (len(runs) + 1) for k in range(len(runs) + 2)]
        runs = [replace(block, source_layers=layers[start:end]) for start, end in pairwise(ends)]
    return runs


def _shard(sweep: Sweep, blocks: Sequence[Block], matchers: tuple[int, ...]) -> Shard:
    shard = Shard(unit_id="", blocks=tuple(blocks), matchers=matchers, flops=cost(sweep, blocks, matchers), num_cells=0)
    cell_ids = [cell.cell_id for cell in sweep.cells(shard)]
    return replace(shard, unit_id=digest(*cell_ids), num_cells=len(cell_ids))


def split_shard(sweep: Sweep, shard: Shard) -> tuple[Shard, Shard] | None:
    """Return a shard's cells in two halves, to find the one that kills its worker; None for a single cell."""
    cell_ids = [cell.cell_id for cell in sweep.cells(shard)]
    if len(cell_ids) < 2:
        return None
    middle = len(cell_ids) // 2
    first, second = (
        replace(
            shard,
            unit_id=f"{shard.unit_id}{PIECE}{position}",
            wanted=frozenset(some),
            num_cells=len(some),
            flops=shard.flops * len(some) / len(cell_ids),
        )
        for position, some in enumerate((cell_ids[:middle], cell_ids[middle:]))
    )
    return first, second


def planned_shard(unit_id: str) -> str:
    """Return the id of the planned shard that a unit is, or is a piece of.

    >>> planned_shard("5f3a-1-0")
    '5f3a'
    """
    return unit_id.partition(PIECE)[0]


def cost(sweep: Sweep, blocks: Sequence[Block], matchers: Sequence[int]) -> float:
    """Return the floating-point operations of a shard: network passes, tails, moments and Gram matrices.

    The networks' own count multiply-adds twice. Each network runs once over the fit and once over the evaluation
    images for all layer pairs; every source layer runs once through the tail of every target layer and matcher;
    training adds its epochs, with a gradient for the tail's input. What is no network's counts as much as it takes.
    A source of low rank adds its row moments on the fit images, and a Gram matrix of its own.
    """
    total = _shared_cost(sweep, blocks, matchers)
    moments = _images_passed(sweep, matchers, gram=False) + DRAWN * _images_drawn(sweep, matchers)
    total += sum(_moment_cost(sweep, block, moments) for block in blocks)
    total += _training_passes(sweep, blocks, matchers)
    for matcher in matchers:
        spec, (num_fit, num_eval) = sweep.matchers[matcher], images_of(sweep, matcher)
        kind = MATCHERS[spec.kind]
        epochs = spec.values["epochs"] if kind.is_trained else 0
        runs = num_eval + epochs * num_fit * (1 + BACKWARD)  # of each stitched network's tail
        if kind.family != "stitcher" or WITHOUT_TAIL.issuperset(spec.metrics):
            runs = epochs * num_fit * (1 + BACKWARD)
        for block in blocks:
            total += _gram_cost(sweep, block, num_eval, spec.rank) * is_a(spec, GramIndex) + runs * _tail_cost(
                sweep, block
            )
            total += _distance_cost(sweep, block, num_eval) * asks_ood(spec, "mahalanobis")
            total += _energy_cost(sweep, block, num_eval) if asks_ood(spec, "energy") else 0.0
    return total + _axes_cost(sweep, blocks, matchers)


def images_of(sweep: Sweep, matcher: int) -> tuple[int, int]:
    """Return how many fit and evaluation images a matcher of a sweep looks at."""
    spec = sweep.matchers[matcher]
    return images_used(spec, num_fit=sweep.num_fit, num_fit_closed=sweep.num_fit_closed, num_eval=sweep.num_eval)


def _images_passed(sweep: Sweep, matchers: Sequence[int], *, gram: bool) -> int:
    """Return how many fit and evaluation images pass for all layer pairs and matchers at once."""
    used = [(sweep.matchers[matcher], *images_of(sweep, matcher)) for matcher in matchers]
    fit = (num for spec, num, _ in used if spec.rank or is_closed_form(spec) or asks_ood(spec, "mahalanobis"))
    evaluation = (num for spec, _, num in used if gram or not is_a(spec, GramIndex))
    return max(fit, default=0) + max(evaluation, default=0)


def _images_drawn(sweep: Sweep, matchers: Sequence[int]) -> int:
    """Return how many more fit and evaluation images products are summed over, for draws of shuffled ones."""
    drawn = [m for m in matchers if is_shuffled(sweep, sweep.matchers[m]) and not is_a(sweep.matchers[m], GramIndex)]
    fit = (images_of(sweep, matcher)[0] for matcher in drawn if is_closed_form(sweep.matchers[matcher]))
    return sweep.shuffles * (max(fit, default=0) + max((images_of(sweep, m)[1] for m in drawn), default=0))


def is_closed_form(spec: MatcherSpec) -> bool:
    """Return whether a map is found by least squares or the like, or starts from one that is."""
    return is_a(spec, ClosedForm) or spec.values.get("init") == "direct"


def _axes_cost(sweep: Sweep, blocks: Sequence[Block], matchers: Sequence[int]) -> float:
    """Return the cost of the products of sources' rows with themselves, once for each number of fit images."""
    counts = {images_of(sweep, matcher)[0] for matcher in matchers if sweep.matchers[matcher].rank}
    sources = {(block.source, layer) for block in blocks for layer in block.source_layers}
    layers = [sweep.networks[source].layers[layer] for source, layer in sources]
    return sum(2.0 * EXACT * count * _rows(layer) * layer.width**2 for count in counts for layer in layers)


def _shared_cost(sweep: Sweep, blocks: Sequence[Block], matchers: Sequence[int]) -> float:
    """Return the operations of the passes that serve all layer pairs."""
    networks = {position for block in blocks for position in (block.source, block.target)}
    return _images_passed(sweep, matchers, gram=True) * sum(sweep.networks[network].flops for network in networks)


def _training_passes(sweep: Sweep, blocks: Sequence[Block], matchers: Sequence[int]) -> float:
    """Return the operations of networks that are read in every epoch of every trained matcher.

    Sources are; so are targets, by kinds that follow them, with a pass more for what they are on average.
    """
    trained = [m for m in matchers if MATCHERS[sweep.matchers[m].kind].is_trained]
    num_images: dict[int, int] = {m: sweep.matchers[m].values["epochs"] * images_of(sweep, m)[0] for m in trained}
    following = [m for m in trained if implementation(sweep.matchers[m]).reads_target]
    num_followed = sum(num_images[m] + images_of(sweep, m)[0] for m in following)
    of_sources = sum(num_images.values()) * sum(sweep.networks[f].flops for f in {block.source for block in blocks})
    return of_sources + num_followed * sum(sweep.networks[g].flops for g in {block.target for block in blocks})


def _repeated_cost(sweep: Sweep, blocks: Sequence[Block], matchers: Sequence[int]) -> float:
    """Return what every shard of some blocks would cost anew: passes, Gram matrices, half of the moments, about."""
    total = _shared_cost(sweep, blocks, matchers)
    num_images = _images_passed(sweep, matchers, gram=False)
    for block in blocks:
        total += _moment_cost(sweep, block, num_images) / 2 + _target_grams(sweep, block, matchers)
    return total


def _target_grams(sweep: Sweep, block: Block, matchers: Sequence[int]) -> float:
    """Return the cost of the targets' Gram matrices for all matchers."""
    counts = [images_of(sweep, m)[1] for m in matchers if is_a(sweep.matchers[m], GramIndex)]
    return sum(_gram_cost(sweep, block, count) for count in counts)


def _gram_cost(sweep: Sweep, block: Block, num_images: int, rank: int | None = None) -> float:
    """Return the cost of the targets' Gram matrices or, of a rank, of those of the sources reduced to it."""
    if rank is not None:
        sources = sweep.source_layers(block)
        return sum(1.0 * num_images**2 * _rows(layer) * rank for layer in sources if rank < layer.width)
    return sum(1.0 * num_images**2 * prod(layer.shape) for layer in sweep.target_layers(block))


def _moment_cost(sweep: Sweep, block: Block, num_images: float) -> float:
    """Return the cost of the products x'y, in float64, on whichever side has fewer rows."""
    pairs = product(sweep.source_layers(block), sweep.target_layers(block))
    return sum(2.0 * EXACT * num_images * min(_rows(s), _rows(t)) * s.width * t.width for s, t in pairs)


def _distance_cost(sweep: Sweep, block: Block, num_images: int) -> float:
    """Return the cost of the distances of pooled T(A) and B, in float64."""
    pairs = product(sweep.source_layers(block), sweep.target_layers(block))
    return sum(2.0 * EXACT * num_images * (s.width + t.width) * t.width for s, t in pairs)


def _energy_cost(sweep: Sweep, block: Block, num_images: int) -> float:
    """Return the operations of detectors on B and on all T(A)."""
    num = num_images * (len(block.source_layers) + 1)
    return sum(num * detector_flops(sweep, block.target, layer) for layer in block.target_layers)


def detector_flops(sweep: Sweep, target: int, layer: int) -> float:
    """Return the operations of a layer's detector for one image: of its matrix products and convolutions, about."""
    assert sweep.energy is not None
    recipe, network = sweep.energy.recipe, sweep.networks[target]
    record = network.layers[layer]
    if record.kind == "map":
        _, height, width = network.input_shape
        return RESNET18_FLOPS * (recipe.width / 64) ** 2 * height * width / 32**2
    if record.kind == "tokens":
        num_tokens, hidden = _rows(record), 3 * recipe.width
        return recipe.depth * (24.0 * num_tokens * hidden**2 + 4.0 * num_tokens**2 * hidden)
    return 2.0 * 8 * recipe.width * (record.width + 8 * recipe.width)


def training_flops(sweep: Sweep, target: int, layer: int) -> float:
    """Return the operations that making a layer's detector takes; a step costs a pass and twice that backward."""
    assert sweep.energy is not None
    recipe, flops = sweep.energy.recipe, sweep.networks[target].layers[layer].flops
    one = 3 * detector_flops(sweep, target, layer) + flops
    return sweep.energy.num_fit * one * (recipe.epochs + 2 * recipe.finetune_epochs)


def _tail_cost(sweep: Sweep, block: Block) -> float:
    """Return the operations for one image to pass all of a block's stitched networks behind their stitch."""
    target = sweep.networks[block.target]
    return len(block.source_layers) * sum(target.flops - layer.flops for layer in sweep.target_layers(block))


def _rows(layer: Layer) -> int:
    return prod(layer.shape) // layer.width
