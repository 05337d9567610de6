"""Call one function where a worker would run, without units or a store; and read the resources of a cluster."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stitchgrid
from stitchgrid.cluster.actor import Hello, greet
from stitchgrid.cluster.connection import Connection
from stitchgrid.cluster.sizing import ClusterSize, check_shares, choose_size
from stitchgrid.cluster.worker_failures import in_short
from stitchgrid.errors import type_and_message

WAIT_S = 60.0  # longest wait for free resources on the cluster
RUN_S = 180.0  # longest wait for the function's answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCall:
    """The result of a call."""

    size: ClusterSize  # of the pool that a launch would start
    answer: Any = None
    problem: str = ""  # why there is no answer


def cluster_resources(address: str) -> dict[str, float]:
    """Return the total resources of a Ray cluster: CPU, GPU, memory in bytes.

    Raises:
        ClusterError: If there is no cluster at the address.
        InputError: If the address is not valid.
    """
    with Connection(address):
        import ray

        return dict(ray.cluster_resources())


class Messenger:
    """Calls one function in a process with a worker's resources; it returns errors instead of raising them."""

    def greet(self) -> Hello:
        """Return the version, host and node of this process."""
        return greet()

    def call(self, function: bytes) -> tuple[Any, str]:
        """Return (result of the pickled function, ""), or (None, its error as text)."""
        from ray import cloudpickle

        try:
            return cloudpickle.loads(function)(), ""
        except Exception as problem:
            return None, type_and_message(problem)


def call_remotely(
    address: str,
    function: Callable[[], Any],
    *,
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    max_units: int | None = None,
    package: Path | None = None,
    wait_s: float = WAIT_S,
) -> RemoteCall:
    """Call a picklable function on a worker's share of a Ray cluster; return its answer, or why there is none.

    It waits at most `wait_s` seconds for free resources. The other arguments are those of `open_executor`.

    Raises:
        ClusterError: If there is no cluster at the address.
        InputError: If a number or the address is not valid.
    """
    check_shares(workers, cpus_per_worker, gpus_per_worker)
    with Connection(address, package=package) as connection:
        import ray
        from ray import cloudpickle

        size = choose_size(
            ray.cluster_resources(),
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            max_units=max_units,
            is_local=connection.is_local,
        )
        remote = ray.remote(num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=0, max_task_retries=0)(Messenger)
        messenger = remote.remote()
        try:
            answer, problem = _ask(messenger, cloudpickle.dumps(function), size, wait_s)
        except ray.exceptions.RayError as error:
            answer, problem = None, f"the worker was lost: {in_short(error)}"
        finally:
            with suppress(Exception):
                ray.kill(messenger)
        return RemoteCall(size=size, answer=answer, problem=problem)


def _ask(messenger: Any, function: bytes, size: ClusterSize, wait_s: float) -> tuple[Any, str]:
    import ray

    greeting = messenger.greet.remote()
    if not ray.wait([greeting], timeout=wait_s)[0]:
        return None, (
            f"the cluster had no free resources for a worker ({size.cpus:g} CPU, {size.gpus:g} GPU) within {wait_s:g} s"
        )
    hello: Hello = ray.get(greeting)
    if hello.version != stitchgrid.__version__:
        return None, (
            f"a worker on {hello.host} has stitchgrid {hello.version}, this command has {stitchgrid.__version__}; "
            "install the same version on every node"
        )
    call = messenger.call.remote(function)
    if not ray.wait([call], timeout=RUN_S)[0]:
        return None, f"a worker on {hello.host} gave no answer within {RUN_S:g} s"
    answer, problem = ray.get(call)
    return answer, f"on {hello.host}: {problem}" if problem else ""
