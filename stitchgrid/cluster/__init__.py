"""Carries out the scheduler's commands, on Ray actors or in this process: the only place that knows Ray."""

from collections.abc import Callable
from pathlib import Path

from stitchgrid.cluster.connection import require_place
from stitchgrid.cluster.in_process import InProcessExecutor
from stitchgrid.cluster.protocol import Attempt, Executor, Progress, WorkerProtocol
from stitchgrid.cluster.ray_executor import RayExecutor
from stitchgrid.cluster.remote_call import RemoteCall, call_remotely, cluster_resources
from stitchgrid.scheduler import Outcome, UnitFailure

__all__ = [
    "Attempt",
    "Executor",
    "InProcessExecutor",
    "Outcome",
    "Progress",
    "RayExecutor",
    "RemoteCall",
    "UnitFailure",
    "WorkerProtocol",
    "call_remotely",
    "cluster_resources",
    "open_executor",
    "require_place",
]


def open_executor(
    address: str = "local",
    *,
    factory: Callable[[], WorkerProtocol],
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    max_units: int | None = None,
    package: Path | None = None,
) -> Executor:
    """Return the executor for an address; it connects and starts workers within `with`, not before.

    `factory` makes a worker where it is to work, and must be picklable unless the address is "none". Defaults: a worker
    per GPU, else per `cpus_per_worker` (1) CPUs, as memory allows, and no more than `max_units`. The folder `package`
    is sent to every node, where workers can import it; in this process nothing is sent.

    >>> open_executor("none", factory=object).num_workers
    1

    Raises:
        InputError: If a number or the address cannot be meant.
    """
    if address == "none":
        return InProcessExecutor(factory)
    return RayExecutor(
        address,
        factory=factory,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        max_units=max_units,
        package=package,
    )
