"""What a plan would cost on this machine: operations, bytes, memory, and time by a short probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter

import torch

from stitchgrid.engine.evaluate import GRAM_BYTES
from stitchgrid.engine.gather import CHUNK_BYTES
from stitchgrid.engine.stitched import STACK_BYTES, STACK_IMAGES
from stitchgrid.engine.train import CACHE_BYTES
from stitchgrid.matchers.catalogue import MATCHERS
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.plan import Plan, images_of
from stitchgrid.records import Layer, Network, Shard, Sweep

PROCESS_BYTES = 600 << 20  # of a worker with torch and torchvision before it has loaded anything
PROBE_SECONDS = 0.3  # per network
ROW_BYTES = 40  # of one row in a compressed part, about


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of what is left of a sweep."""

    flops: float
    flops_per_second: float  # of one worker, measured
    image_bytes: int  # read by each worker
    result_bytes: int  # written to the store
    worker_bytes: int  # memory of the worker with the hungriest shard
    num_workers: int

    @property
    def seconds(self) -> float:
        """Time for all of it on all workers."""
        return self.flops / self.flops_per_second / self.num_workers


class SpeedProbe:
    """Measures forward passes of networks as they are built, on one thread, as a worker would run them."""

    def __init__(self, batch_size: int):
        self.batch_size = min(batch_size, 64)
        self.flops, self.seconds = 0.0, 0.0

    @torch.no_grad()
    def visit(self, network: CutNetwork) -> None:
        """Run a network on blank images for a moment."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        images = torch.zeros(self.batch_size, *network.input_shape)
        network.module(images)
        start = perf_counter()
        while perf_counter() - start < PROBE_SECONDS:
            network.module(images)
            self.flops += network.flops * len(images)
        self.seconds += perf_counter() - start
        torch.set_num_threads(threads)

    @property
    def flops_per_second(self) -> float:
        """Speed over all networks so far."""
        return self.flops / self.seconds


def estimate(plan: Plan, probe: SpeedProbe, *, image_bytes: int, num_workers: int, training: float) -> Estimate:
    """Return what is left to do, at the speed the probe found; `training` in FLOPs."""
    matchers = plan.sweep.matchers
    metrics_per_cell = sum(len(spec.metrics) for spec in matchers) / len(matchers)
    return Estimate(
        flops=plan.flops + training,
        flops_per_second=probe.flops_per_second,
        image_bytes=image_bytes,
        result_bytes=round(plan.num_todo * metrics_per_cell * ROW_BYTES),
        worker_bytes=max((worker_bytes(plan.sweep, shard) for shard in plan.todo), default=0),
        num_workers=max(1, min(num_workers, len(plan.shards))),
    )


def worker_bytes(sweep: Sweep, shard: Shard) -> int:
    """Return the memory a worker needs for a shard: weights, a batch of activations, a stack, moments, Grams."""
    networks = [sweep.networks[position] for position in shard.networks]
    layers = [layer for network in networks for layer in network.layers]
    batch = 4 * sweep.batch_size * sum(prod(layer.shape) for layer in layers)
    images = sweep.batch_size
    stack = (
        3
        * 4
        * max(
            min(STACK_IMAGES["cpu"] * prod(layer.shape), max(STACK_BYTES // 4, images * prod(layer.shape)))
            for layer in layers
        )
    )
    kinds = [MATCHERS[sweep.matchers[matcher].kind] for matcher in shard.matchers]
    grams = 0
    if counts := [images_of(sweep, m)[1] for m, kind in zip(shard.matchers, kinds, strict=True) if kind.gram]:
        num = max(counts)
        grams = min(GRAM_BYTES, 4 * num * sum(prod(layer.shape) for layer in layers)) + 8 * num**2 * (len(layers) + 1)
    kept = CACHE_BYTES if any(kind.trained for kind in kinds) else 0
    weights = 4 * sum(network.num_parameters for network in networks)
    return PROCESS_BYTES + weights + batch + stack + grams + CHUNK_BYTES * 2 + _moment_bytes(networks, layers) + kept


def _moment_bytes(networks: Sequence[Network], layers: Sequence[Layer]) -> int:
    widths = sum(layer.width for layer in layers)
    spaces = len({(layer.grid, layer.num_prefix) for layer in layers}) + 1
    return 8 * 2 * spaces * widths * max(network.layers[-1].width for network in networks)
