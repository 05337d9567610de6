"""What a plan would cost on this machine: operations, bytes, memory, and time by a short probe."""

from dataclasses import dataclass
from time import perf_counter

import torch

from stitchgrid.allocator import keep_freed_memory
from stitchgrid.engine.memory import PROCESS_BYTES, shard_bytes
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.plan import Plan

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
        keep_freed_memory()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        images = torch.rand(self.batch_size, *network.input_shape).contiguous(memory_format=torch.channels_last)
        run = network.taps([network.logits])
        run(images)
        start = perf_counter()
        while perf_counter() - start < PROBE_SECONDS:
            run(images)
            self.flops += network.flops * len(images)
        self.seconds += perf_counter() - start
        torch.set_num_threads(threads)

    @property
    def flops_per_second(self) -> float:
        """Speed over all networks so far."""
        return self.flops / self.seconds


def estimate(plan: Plan, probe: SpeedProbe, *, image_bytes: int, num_workers: int, training: float) -> Estimate:
    """Return what is left to do, at the speed the probe found; `training` in FLOPs."""
    matchers, device = plan.sweep.matchers, torch.device("cpu")
    metrics_per_cell = sum(len(spec.metrics) for spec in matchers) / len(matchers)
    return Estimate(
        flops=plan.flops + training,
        flops_per_second=probe.flops_per_second,
        image_bytes=image_bytes,
        result_bytes=round(plan.num_todo * metrics_per_cell * ROW_BYTES),
        worker_bytes=PROCESS_BYTES + max((shard_bytes(plan.sweep, shard, device) for shard in plan.todo), default=0),
        num_workers=max(1, min(num_workers, len(plan.shards))),
    )
