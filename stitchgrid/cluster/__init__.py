"""Executors, which carry out the scheduler's commands on Ray actors or in this process. Only this package uses Ray."""

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
    """Return the executor for an address, a context manager: it connects and starts workers when it is entered.

    Args:
        address: "local", "auto", HOST:PORT, or "none" for this process.
        factory: Makes a worker, in the worker's process; it must be picklable unless the address is "none".
        workers: Number of workers. Default: one per GPU, else one per `cpus_per_worker` CPUs, as far as memory allows.
        cpus_per_worker: CPUs of one worker. Default: 1 for workers without a GPU, else 0.
        gpus_per_worker: GPUs of one worker. Default: 1 if the cluster has GPUs, else 0.
        max_units: Most units of a run: no more workers are started.
        package: A folder that is sent to every node, where workers can import it; "none" sends nothing.

    >>> open_executor("none", factory=object).num_workers
    1

    Raises:
        InputError: If a number or the address is not valid.
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
