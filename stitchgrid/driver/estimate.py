"""What a plan would cost: operations, bytes, memory, and time at the pace that a trial measured."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heapreplace

import torch

from stitchgrid.engine.memory import PROCESS_BYTES, shard_bytes
from stitchgrid.matchers.registry import evidence_for
from stitchgrid.planning import Plan, cost
from stitchgrid.profiling.sample import Pair
from stitchgrid.profiling.trial import Pace, Trial
from stitchgrid.records import Block, Network, Shard, Sweep, TrainNetwork, Unit
from stitchgrid.statistics.base import EXACT
from stitchgrid.statistics.values import values_flops

ROW_BYTES = 40  # of one row in a compressed part, roughly
NUMBER_BYTES = 4  # of each number of a list in such a row, roughly
MAX_PAIRS = 6  # network pairs that are timed: those with the most work; the others get a mean of their times
COUNTED_PAIRS = 20  # network pairs whose operations are counted, to tell what evidence adds


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of what is left of a sweep."""

    flops: float
    seconds: float  # on all workers, without the start and the end of a launch
    flops_per_second: float  # of one worker, over all shards
    image_bytes: int  # read by each worker
    result_bytes: int  # written to the store
    worker_bytes: int  # memory of a worker with the shard that needs the most


def pairs_to_try(sweep: Sweep, shards: Sequence[Shard]) -> tuple[Pair, ...]:
    """Return one network pair for every two architectures that the shards compare, those with the most work first.

    There are `MAX_PAIRS` at most.
    """
    work: Counter[tuple[object, object]] = Counter()
    example: dict[tuple[object, object], Pair] = {}
    for shard in shards:
        for block, flops in _by_block(sweep, shard):
            key = _classes(sweep, (block.source, block.target))
            work[key] += flops  # type: ignore[assignment]
            example.setdefault(key, (block.source, block.target))
    return tuple(example[key] for key, _ in work.most_common(MAX_PAIRS))


def networks_to_train(sweep: Sweep) -> tuple[int, ...]:
    """Return one network for every architecture and recipe that is still to be trained, `MAX_PAIRS` at most."""
    example: dict[object, int] = {}
    for position, network in enumerate(sweep.networks):
        if not network.is_known and network.spec.recipe is not None:
            example.setdefault((_class(network), network.spec.recipe), position)
    return tuple(example.values())[:MAX_PAIRS]


def _by_block(sweep: Sweep, shard: Shard) -> list[tuple[Block, float]]:
    """Return the network pairs of a shard, each with its share of the shard's operations."""
    if len(shard.blocks) == 1:
        return [(shard.blocks[0], shard.flops)]
    costs = [cost(sweep, [block], shard.matchers) for block in shard.blocks]
    return [(block, shard.flops * one / sum(costs)) for block, one in zip(shard.blocks, costs, strict=True)]


def _classes(sweep: Sweep, pair: Pair) -> tuple[object, object]:
    source, target = (_class(sweep.networks[position]) for position in pair)
    return source, target


def _class(network: Network) -> object:
    """Return a key that networks share which cost the same."""
    spec = network.spec
    return spec.architecture, spec.args, network.input_shape, tuple(layer.node for layer in network.layers)


class Pricing:
    """Predicts the seconds of shards, and of the units before them, from the paces that a trial measured."""

    def __init__(self, sweep: Sweep, trial: Trial):
        self.sweep, self.trial = sweep, trial
        self._training = {
            (_class(sweep.networks[position]), sweep.networks[position].spec.recipe): speed
            for position, speed in trial.training_flops_per_second.items()
        }
        self._paces = {_classes(sweep, pair): pace for pair, pace in trial.paces.items()}

    @cached_property
    def _between(self) -> Pace:
        """The pace of pairs that were not timed: the mean of the times of others, or plain passes if there are none."""
        paces = self.trial.paces.values()
        if not paces:
            return Pace(flops_per_second=self.trial.pass_flops_per_second, cell_seconds=0.0)
        return Pace(
            flops_per_second=len(paces) / sum(1 / pace.flops_per_second for pace in paces),
            cell_seconds=sum(pace.cell_seconds for pace in paces) / len(paces),
        )

    def seconds_before(self, unit: Unit) -> float:
        """Return the seconds of a unit before the shards, at the speed of training or else that of plain passes."""
        speed = self.trial.pass_flops_per_second
        if isinstance(unit, TrainNetwork):
            network = next(network for network in self.sweep.networks if network.name == unit.spec.name)
            speed = self._training.get((_class(network), network.spec.recipe), speed)
        return unit.flops / speed

    def seconds(self, shard: Shard) -> float:
        """Return the seconds of a shard on one worker."""
        blocks = _by_block(self.sweep, shard)
        num_cells = [len(b.source_layers) * len(b.target_layers) * len(shard.matchers) for b, _ in blocks]
        share = shard.num_cells / sum(num_cells)  # of the cells that is wanted
        total = 0.0
        for (block, flops), num in zip(blocks, num_cells, strict=True):
            pace = self._paces.get(_classes(self.sweep, (block.source, block.target)), self._between)
            algebra = values_flops(self.sweep, block, shard.matchers) / self.trial.svd_flops_per_second
            total += flops / pace.flops_per_second + share * max(num * pace.cell_seconds, algebra)
        return total


def evidence_shares(sweep: Sweep) -> dict[str, float]:
    """Return what untrained twins, shuffled images and groups add to a sweep, as shares of its work without them.

    It counts the operations of some network pairs only, evenly spread over all, with each pair's layers as one block.
    """
    own = [pair for pair in sweep.pairs if not sweep.networks[pair[0]].spec.is_twin]
    bare = replace(sweep, groups=None, shuffles=0)
    found: dict[str, float] = {}
    if not own:
        return found
    few = own[:: max(1, len(own) // COUNTED_PAIRS)]
    alone = _work(bare, few)
    if len(own) < len(sweep.pairs):
        twins = [pair for pair in sweep.pairs if sweep.networks[pair[0]].spec.is_twin]
        some = twins[:: max(1, len(twins) // COUNTED_PAIRS)]
        found["untrained"] = len(twins) / len(own) * (_work(bare, some) / len(some)) / (alone / len(few))
    if sweep.shuffles:
        found["shuffled"] = _work(replace(bare, shuffles=sweep.shuffles), few) / alone - 1
    if sweep.groups:
        found["groups"] = _work(replace(bare, groups=sweep.groups), few) / alone - 1
    return found


def _work(sweep: Sweep, pairs: Sequence[tuple[int, int]]) -> float:
    matchers = range(len(sweep.matchers))
    blocks = [sweep.block(*pair) for pair in pairs]
    return sum(cost(sweep, [block], matchers) + EXACT * values_flops(sweep, block, matchers) for block in blocks)


def makespan(seconds: Iterable[float], num_workers: int) -> float:
    """Return when the last worker is done, if each free worker takes the longest task that is left.

    >>> makespan([3, 1, 1, 1, 1], 2)
    4.0
    """
    ends = [0.0] * num_workers
    heapify(ends)
    for one in sorted(seconds, reverse=True):
        heapreplace(ends, ends[0] + one)
    return max(ends)


def estimate(
    plan: Plan, trial: Trial, *, image_bytes: int, num_workers: int, speed_share: float, before: Sequence[Unit]
) -> Estimate:
    """Return the cost of what is left to do, at the pace of a trial.

    `before` are the units that run before the shards. `speed_share` is the speed of a worker while all of them work,
    over the speed of a worker alone: it is below 1 where workers share hardware.
    """
    device, row_bytes = torch.device(trial.place.device), _row_bytes(plan.sweep)
    pricing = Pricing(plan.sweep, trial)
    shards = [pricing.seconds(shard) for shard in plan.todo]
    preparing = makespan(map(pricing.seconds_before, before), num_workers)
    return Estimate(
        flops=plan.flops + sum(unit.flops for unit in before),
        seconds=(preparing + makespan(shards, num_workers)) / speed_share,
        flops_per_second=plan.flops / sum(shards) * speed_share if shards else trial.pass_flops_per_second,
        image_bytes=image_bytes,
        result_bytes=round(plan.num_todo * row_bytes),
        worker_bytes=PROCESS_BYTES + max((shard_bytes(plan.sweep, shard, device) for shard in plan.todo), default=0),
    )


def _row_bytes(sweep: Sweep) -> float:
    """Return the bytes of a cell's rows, on average over the matchers: metrics, and the lists that are evidence."""
    of_matchers = []
    for spec in sweep.matchers:
        rows = [(metric, list(evidence_for(sweep, spec, metric))) for metric in spec.metrics]
        lists = sum(len(names) for _, names in rows)
        numbers = lists * max(sweep.groups or 0, sweep.shuffles)
        of_matchers.append(ROW_BYTES * (len(rows) + lists) + NUMBER_BYTES * numbers)
    return sum(of_matchers) / len(of_matchers)
