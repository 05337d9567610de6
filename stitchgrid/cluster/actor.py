"""What runs on the other side: an actor around one worker, and the answers it gives."""

import os
import socket
from dataclasses import dataclass
from typing import Any

import stitchgrid
from stitchgrid.cluster.dispatch import check_worker, close_worker, raised
from stitchgrid.cluster.nodes import tell_neighbours
from stitchgrid.cluster.protocol import WorkerProtocol
from stitchgrid.cluster.sizing import ClusterSize
from stitchgrid.errors import breaks_worker
from stitchgrid.records import Unit, UnitReport
from stitchgrid.scheduler import UnitRaised


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A worker's first words."""

    version: str  # of stitchgrid
    host: str
    node: str  # Ray's id of it
    pid: int
    problem: str = ""  # why there is no worker


def greet(problem: str = "") -> Hello:
    """Return the first words of the actor that runs in this process."""
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
    """A unit raised an error that leaves the worker's process of no more use."""

    error: str


class WorkerActor:
    """One worker in a process of its own; it never raises, it tells."""

    def __init__(self) -> None:
        self._worker: WorkerProtocol | None = None
        self._context: tuple[int, Any] = (-1, None)

    def start(self, version: str, factory: bytes, size: ClusterSize, run: int, context: list[Any]) -> Hello:
        """Make the worker unless there is one, and let it look at what is to come: the context, a reference in a list.

        `size` is that of the pool, for the worker to know how many it shares its memory with.

        Nothing is made where driver and worker are of different versions of stitchgrid.
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
            problem = f"{type(error).__name__}: {error}"
        return greet(problem)

    def run(self, unit: Unit, run: int) -> UnitReport | UnitRaised | Broken:
        """Do one unit of the run for which the worker was last started; an error names no worker: it knows no name."""
        assert self._worker is not None
        assert self._context[0] == run, "a unit of another run"
        try:
            return self._worker.run(unit, self._context[1])
        except Exception as error:
            event = raised("", unit, error)
            return Broken(error=event.error) if breaks_worker(error) else event

    def close(self) -> None:
        """Let the worker clean up."""
        close_worker(self._worker)
