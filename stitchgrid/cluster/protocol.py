"""What every executor promises, and what it tells of."""

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
    "node_unfit",  # no worker can be made there, once per node
    "worker_died",
    "worker_stopped",
    "submitted",
    "finished",
    "failed",
    "retried",  # lost with its worker, or out of memory: waits for its next attempt
    "bisected",
    "quarantined",
    "waiting",  # no worker is ready, for half a minute or more
    "tick",  # about once a second, whatever happens
]


class WorkerProtocol(Protocol):
    """What does the work.

    A `check(context)` it may have is called before its first unit of a run: what it raises says that nothing can be
    done where it is, and is held against no unit. A `close()` it may have is called when it is let go, a
    `share(on_host=, on_gpu=)` once it is made: it says how many workers there are on its machine, and on its GPU.
    """

    def run(self, unit: Unit, context: Any) -> UnitReport:
        """Do one unit and write what came of it."""
        ...


class Attempt(NamedTuple):
    """A unit about to be given to a worker."""

    unit_id: str
    worker: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One thing that happened during a run."""

    kind: Kind
    worker: str = ""
    node: str = ""
    unit: Unit | None = None
    attempt: int = 0  # of a submitted unit, 1 for the first
    report: UnitReport | None = None  # of a finished unit
    detail: str = ""  # error, reason of a death, what is waited for
    traceback: str = ""
    log: str = ""  # folder of the log of a worker that died


OnEvent = Callable[[Progress], None]
BeforeSubmit = Callable[[list[Attempt]], None]
Split = Callable[[Unit], tuple[Unit, Unit] | None]


def ignore(_: Progress) -> None:
    """Take no notice of progress."""


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
        """Run all units and return what came of them.

        `before_submit` is called once per round of submissions, before any of them: what it raises stops the run.

        Raises:
            ClusterError: If no worker can be had.
        """
        ...

    def request_stop(self) -> None:
        """Let what is in flight finish and `run` return; safe in a signal handler and in `on_event`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
