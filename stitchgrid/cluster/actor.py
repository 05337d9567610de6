"""The Ray actor that holds one worker, and the answers that it returns."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import stitchgrid
from stitchgrid.cluster.dispatch import check_worker, close_worker, raised
from stitchgrid.cluster.nodes import tell_neighbours
from stitchgrid.cluster.protocol import WorkerProtocol
from stitchgrid.cluster.sizing import ClusterSize
from stitchgrid.errors import breaks_worker, is_hardware_fault, type_and_message
from stitchgrid.records import Unit, UnitReport
from stitchgrid.scheduler import Cause, UnitRaised


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first answer of an actor."""

    version: str  # of stitchgrid
    host: str
    node: str  # Ray's id of the node
    pid: int
    problem: str = ""  # why the worker could not be made


def greet(problem: str = "") -> Hello:
    """Return the first answer of the actor that runs in this process."""
    import ray

    return Hello(
        version=stitchgrid.__version__,
        host=socket.gethostname(),
        node=ray.get_runtime_context().get_node_id(),
        pid=os.getpid(),
        problem=problem,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A unit raised an error after which the worker's process cannot compute anything."""

    error: str
    cause: Cause = "crash"


class WorkerActor:
    """One worker in a process of its own; it returns errors instead of raising them."""

    def __init__(self) -> None:
        self._worker: WorkerProtocol | None = None
        self._context: tuple[int, Any] = (-1, None)

    def start(self, version: str, factory: bytes, size: ClusterSize, run: int, context: list[Any]) -> Hello:
        """Make the worker if there is none, and let it check the context of a run.

        Nothing is made if the driver has another version of stitchgrid.

        Args:
            version: The driver's version of stitchgrid.
            factory: The pickled factory of the worker.
            size: Size of the pool, from which the worker learns how many workers share its node and GPU.
            run: Number of the run.
            context: A list with one reference to the context; in a list, Ray does not resolve the reference.
        """
        import ray
        from ray import cloudpickle

        problem = ""
        try:
            if version == stitchgrid.__version__:
                if self._worker is None:
                    self._worker = cloudpickle.loads(factory)()
                    tell_neighbours(self._worker, size)
                self._context = (run, ray.get(context[0]))
                check_worker(self._worker, self._context[1])
        except Exception as error:
            problem = type_and_message(error)
        return greet(problem)

    def run(self, unit: Unit, run: int) -> UnitReport | UnitRaised | Broken:
        """Compute one unit of the run for which the worker was last started.

        The `worker` of a returned error is empty, because an actor does not know its name.
        """
        assert self._worker is not None
        assert self._context[0] == run, "a unit of another run"
        try:
            return self._worker.run(unit, self._context[1])
        except Exception as error:
            event = raised("", unit, error)
            if is_hardware_fault(error):
                return Broken(
                    error=f"the GPU of {socket.gethostname()} is faulty: {event.error}", cause="infrastructure"
                )
            return Broken(error=event.error) if breaks_worker(error) else event

    def close(self) -> None:
        """Close the worker, so that it frees what it holds."""
        close_worker(self._worker)
