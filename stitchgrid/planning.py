"""Plans the shards to compute, from a resolved sweep and what is done. Pure: no torch, no store, stable ids."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from stitchgrid.matchers.registry import stored_metrics_of
from stitchgrid.records import Block, Cell, Network, Shard, Sweep, digest
from stitchgrid.statistics.shard import Collector

CPU_SPEED, GPU_SPEED = 1e11, 2e13  # FLOP/s of a core, and of a GPU in fp32; assumed, not measured
MAX_SHARD_S = 120.0  # seconds of a shard at such a speed
MIN_SHARD_S = 1.0  # overhead of a unit (Ray's call, part, log) is hundredths of a second; only short sweeps reach it
MAX_SHARED = 1 / 8  # largest share of a shard's work that other shards of the same networks repeat
MIN_SHARDS = 16  # of a large enough sweep, so that workers can share it and a crash costs little
AGAIN = "asked for again"  # reason to compute a cell that has rows
PIECE = "-"  # separates the id of a shard from the number of its half
TILE_SIDES = (8, 4, 2, 1)  # networks on a side of a tile; the largest that fits is taken


class KnownCells(Protocol):
    """What a store knows of cells."""

    def metrics_done(self, cell_id: str) -> frozenset[str]:
        """Return the metrics that have a row."""
        ...

    def failed(self, cell_id: str) -> str | None:
        """Return the latest error of a cell that never succeeded."""
        ...

    def generation(self, cell_id: str) -> int | None:
        """Return the generation of a cell's rows, 0 if it was never asked for again; None if it has no rows."""
        ...


def never(cell: Cell) -> int:  # noqa: ARG001
    """Return 0: the cell is not asked for again."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The shards that a launch would compute, and the reasons."""

    sweep: Sweep
    shards: tuple[Shard, ...]  # the whole sweep
    todo: tuple[Shard, ...]  # the rest of them, with the cells that are wanted
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
    def flops(self) -> float:
        """Work that is left, in operations by the cost model."""
        return sum(shard.flops for shard in self.todo)


def make_plan(
    sweep: Sweep,
    done: KnownCells,
    *,
    retry_failed: bool = False,
    again: Callable[[Cell], int] = never,
    speed: float = CPU_SPEED,
    shard_flops: float | None = None,
) -> Plan:
    """Cut the whole sweep into shards, then take out what the store holds.

    `again` gives the lowest generation that a cell's rows may have; rows of a lower one do not count.

    Shards do not depend on what is finished, so that a resumed launch computes the same shards as an undisturbed one.
    """
    shards = []
    reasons: Counter[str] = Counter()
    todo: dict[str, Shard] = {}  # by id: if two names stand for one network, several shards have one id
    why = _Reasons(sweep, done, retry_failed=retry_failed)
    for shard, cells in _cut(sweep, speed=speed, shard_flops=shard_flops):
        shards.append(shard)
        wanted = set()
        generations = {}
        for cell in cells:
            asked = again(cell)
            reason, compute = why(cell, asked)
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
        shards=tuple(shards),
        todo=tuple(todo.values()),
        num_cells=sum(reasons.values()),
        reasons=dict(reasons),
        speed=speed,
    )


def _left(shard: Shard, wanted: set[str], generations: Mapping[str, int]) -> Shard:
    """Return a shard with only the wanted cells, and with their generations."""
    shard = replace(shard, generations=tuple(sorted(generations.items())))
    if len(wanted) == shard.num_cells:
        return shard
    share = len(wanted) / shard.num_cells
    return replace(shard, wanted=frozenset(wanted), num_cells=len(wanted), flops=shard.flops * share)


class _Reasons:
    """Tells why the cells of a sweep are computed or not, given what is done."""

    def __init__(self, sweep: Sweep, done: KnownCells, *, retry_failed: bool):
        self._sweep, self._done, self._retries = sweep, done, retry_failed
        self._metrics: dict[tuple[int, int, int], tuple[str, ...]] = {}  # of the rows of a matcher into a target layer

    def __call__(self, cell: Cell, asked: int) -> tuple[str, bool]:
        """Return the reason for computing a cell or not, and whether it is to be computed.

        `asked` is the lowest generation that its rows may have.
        """
        networks, done = self._sweep.networks, self._done
        if not (networks[cell.source].is_known and networks[cell.target].is_known):
            return "untrained model", True
        if asked and (generation := done.generation(cell.cell_id)) is not None and generation < asked:
            return AGAIN, True
        have = done.metrics_done(cell.cell_id)
        if have.issuperset(self._metrics_of(cell)):
            return "done", False
        if done.failed(cell.cell_id) is not None:
            return ("failed before, tried again", True) if self._retries else ("failed before, left alone", False)
        return ("new metric" if have else "missing"), True

    def _metrics_of(self, cell: Cell) -> tuple[str, ...]:
        key = cell.target, cell.target_layer, cell.matcher
        if key not in self._metrics:
            self._metrics[key] = stored_metrics_of(self._sweep, cell)
        return self._metrics[key]


def cut_into_shards(sweep: Sweep, *, speed: float = CPU_SPEED, shard_flops: float | None = None) -> Iterable[Shard]:
    """Yield the shards of a whole sweep: tiles of source x target networks, or some target layers of a larger pair.

    Tiles have the largest side for which the costliest tile stays within `shard_flops`. Its default is a share of the
    whole sweep that takes a worker of this speed (FLOP/s) one second to two minutes. If a single target layer takes
    longer than two minutes, its sources are divided among several shards.
    """
    return (shard for shard, _ in _cut(sweep, speed=speed, shard_flops=shard_flops))


def _cut(sweep: Sweep, *, speed: float, shard_flops: float | None) -> Iterator[tuple[Shard, list[Cell]]]:
    """Yield the shards of a whole sweep, each with its cells."""
    matchers, costs = tuple(range(len(sweep.matchers))), Costs(sweep)
    if shard_flops is None:
        pairs = _tiles(sweep, 1)
        total = sum(map(costs, pairs))
        shared = max(map(costs.shared, pairs), default=0.0)
        least = max(MIN_SHARD_S * speed, shared / MAX_SHARED)
        shard_flops = min(max(total / MIN_SHARDS, least), MAX_SHARD_S * speed)
    tiles: list[list[Block]] = []
    for side in TILE_SIDES:
        tiles = _tiles(sweep, side)
        if all(costs(tile) <= shard_flops for tile in tiles):
            break
    for tile in tiles:
        if len(tile) > 1:
            yield _shard(sweep, tile, matchers, costs)
            continue
        for block in _target_ranges(tile[0], costs, shard_flops):
            for part in _source_ranges(block, costs, max(shard_flops, MAX_SHARD_S * speed)):
                yield _shard(sweep, [part], matchers, costs)


def _tiles(sweep: Sweep, side: int) -> list[list[Block]]:
    tiles: dict[tuple[int, int], list[Block]] = {}
    for source, target in sweep.pairs:
        tiles.setdefault((source // side, target // side), []).append(sweep.block(source, target))
    return list(tiles.values())


def _target_ranges(block: Block, costs: "Costs", shard_flops: float) -> Iterator[Block]:
    """Yield a block in pieces of consecutive target layers, each within `shard_flops` or a single layer."""
    run: list[int] = []
    for layer in block.target_layers if costs([block]) > shard_flops else ():
        longer = replace(block, target_layers=(*run, layer))
        if run and costs([longer]) > shard_flops:
            yield replace(block, target_layers=tuple(run))
            run = []
        run.append(layer)
    yield replace(block, target_layers=tuple(run)) if run else block


def _source_ranges(block: Block, costs: "Costs", most: float) -> list[Block]:
    """Return a block in the fewest equal runs of consecutive source layers that keep within `most`.

    A run has at least one layer, and the work that all runs repeat stays a small share of the whole.
    """
    runs, whole = [block], costs([block])
    while len(runs) < len(block.source_layers) and max(costs([run]) for run in runs) > most:
        more = _runs(block, len(runs) + 1)
        if sum(costs([run]) for run in more) > (1 + MAX_SHARED) * whole:
            break
        runs = more
    return runs


def _runs(block: Block, num: int) -> list[Block]:
    """Return a block in `num` equal runs of consecutive source layers."""
    layers = block.source_layers
    ends = [k * len(layers) // num for k in range(num + 1)]
    return [replace(block, source_layers=layers[start:end]) for start, end in pairwise(ends)]


def _shard(
    sweep: Sweep, blocks: Sequence[Block], matchers: tuple[int, ...], costs: "Costs"
) -> tuple[Shard, list[Cell]]:
    shard = Shard(unit_id="", blocks=tuple(blocks), matchers=matchers, flops=costs(blocks), num_cells=0)
    cells = list(sweep.cells(shard))
    return replace(shard, unit_id=digest(*(cell.cell_id for cell in cells)), num_cells=len(cells)), cells


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


class Costs:
    """Counts the operations of blocks of one sweep from the costs of their statistics, once for alike blocks."""

    def __init__(self, sweep: Sweep, matchers: Sequence[int] | None = None):
        self._collector = Collector(sweep, matchers)
        self._found: dict[tuple[Block, ...], tuple[float, float]] = {}
        lists: dict[Hashable, list[int]] = {}
        for number, network in enumerate(sweep.networks):
            lists.setdefault(_look(network), []).append(number)
        #: For each network, all that cost the same, such as those of many seeds.
        self._alike = [lists[_look(network)] for network in sweep.networks]

    def __call__(self, blocks: Sequence[Block]) -> float:
        """Return the operations of a shard of these blocks, in operations of a network.

        Operations of networks count a multiply-add as two. Each network runs once over the fit and once over the
        evaluation images for all layer pairs. Every source layer runs once through the tail of every target layer and
        matcher. Training adds its epochs, with a gradient for the tail's input. Other operations count as many as a
        network does in the same time.
        """
        return self._of(blocks)[0]

    def shared(self, blocks: Sequence[Block]) -> float:
        """Return the operations that other shards of the same networks repeat."""
        return self._of(blocks)[1]

    def _of(self, blocks: Sequence[Block]) -> tuple[float, float]:
        key = self._among_first(blocks)
        if key not in self._found:
            found = self._collector.of(key)
            self._found[key] = found.flops(), found.shared_flops()
        return self._found[key]

    def _among_first(self, blocks: Sequence[Block]) -> tuple[Block, ...]:
        """Return blocks that cost the same, of the first networks among those that are alike."""
        stands_for: dict[int, int] = {}
        num_taken: Counter[int] = Counter()
        for number in dict.fromkeys(number for block in blocks for number in (block.source, block.target)):
            alike = self._alike[number]
            stands_for[number] = alike[num_taken[alike[0]]]
            num_taken[alike[0]] += 1
        return tuple(
            replace(block, source=stands_for[block.source], target=stands_for[block.target]) for block in blocks
        )


def _look(network: Network) -> Hashable:
    """Return all of a network that costs depend on."""
    return (
        *(network.layers, network.preprocess, network.input_shape, network.num_classes, network.head),
        *(network.flops, network.num_kept_bytes, network.num_parameters, network.way),
    )


def cost(sweep: Sweep, blocks: Sequence[Block], matchers: Sequence[int]) -> float:
    """Return the operations of a shard: `Costs` of its blocks."""
    return Costs(sweep, matchers)(blocks)
