"""The interfaces of executors and workers, and the progress events of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

from stitchgrid.records import Unit, UnitReport
from stitchgrid.scheduler import DeadlineRule, Outcome

Kind = Literal[
    "worker_started",
    "worker_ready",
    "worker_failed",  # to start
    "node_unfit",  # no worker can be made on the node; once per node
    "worker_died",
    "worker_stopped",
    "submitted",
    "finished",
    "failed",
    "retried",  # the unit was lost with its worker, or ran out of memory, and waits for its next attempt
    "bisected",
    "quarantined",
    "waiting",  # no worker is ready, for half a minute or more
    "tick",  # about once a second, even if nothing happens
]
GIVEN_BACK: frozenset[Kind] = frozenset({"failed", "retried", "bisected", "quarantined"})  # no worker has the unit now


class WorkerProtocol(Protocol):
    """A worker: it computes units.

    A worker may have three more methods. `set_num_workers(on_host=, on_gpu=)` is called after it is made, with how
    many workers are on its machine and on its GPU. `check(context)` is called before its first unit of a run: an error
    means that it can compute nothing on its node, and no unit is blamed for that. `close()` is called at the end.
    """

    def run(self, unit: Unit, context: Any) -> UnitReport:
        """Compute one unit and write its rows to the store."""
        ...


class Attempt(NamedTuple):
    """A unit that is about to be submitted to a worker."""

    unit_id: str
    worker: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One event of a run."""

    kind: Kind
    worker: str = ""
    node: str = ""
    unit: Unit | None = None
    attempt: int = 0  # number of the attempt at a submitted unit, from 1 on
    report: UnitReport | None = None  # of a finished unit
    detail: str = ""  # the error, the reason of a death, or the missing resources
    traceback: str = ""
    log: str = ""  # folder with the log of a dead worker


OnEvent = Callable[[Progress], None]
BeforeSubmit = Callable[[list[Attempt]], None]
Split = Callable[[Unit], tuple[Unit, Unit] | None]


def ignore(_: Progress) -> None:
    """Ignore an event."""


class Executor(Protocol):
    """Runs units on workers; a context manager, within which `run` may be called several times on the same workers."""

    num_workers: int

    def run(
        self,
        units: Sequence[Unit],
        context: object,
        *,
        split: Split | None = None,
        deadlines: DeadlineRule | None = None,
        on_event: OnEvent = ignore,
        before_submit: BeforeSubmit | None = None,
        fail_fast: bool = False,
    ) -> Outcome:
        """Run all units and return the outcome.

        Args:
            units: The units.
            context: An object that every unit needs, such as the sweep; workers get it once per run.
            split: Splits a unit that kills its workers in two; returns None if it cannot be split.
            deadlines: How long a unit may take.
            on_event: Called with each event.
            before_submit: Called before each round of submissions; an error that it raises stops the run.
            fail_fast: Whether to stop at the first failed unit.

        Raises:
            ClusterError: If no worker can be started.
        """
        ...

    def request_stop(self) -> None:
        """Make `run` return after the units that are running; safe in a signal handler and in `on_event`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
