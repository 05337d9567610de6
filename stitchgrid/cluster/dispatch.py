"""The work that all executors share: journal, progress, and events for errors."""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from stitchgrid.cluster.protocol import Attempt, BeforeSubmit, OnEvent, Progress
from stitchgrid.errors import ClusterError, StoreError, is_out_of_memory, type_and_message
from stitchgrid.records import Unit
from stitchgrid.scheduler import (
    Bisect,
    Command,
    Done,
    Event,
    Fail,
    Kill,
    PoolFailed,
    Quarantine,
    Retry,
    Scheduler,
    StartWorker,
    StopWorker,
    Submit,
    Tick,
    UnitFinished,
    UnitRaised,
    WorkerDied,
    WorkerReady,
)

TICK_S = 1.0


class Dispatch:
    """Connects scheduler and executor: passes events to the scheduler, and commands to the executor.

    It reports both as progress.
    """

    def __init__(self, scheduler: Scheduler, on_event: OnEvent, before_submit: BeforeSubmit | None):
        self.scheduler = scheduler
        self.done = False
        self._on_event = on_event
        self._before_submit = before_submit
        self._units: dict[str, Unit] = {}  # worker -> the unit that it computes
        self._last_tick = monotonic()

    def advance(self, *events: Event) -> list[Command]:
        """Give events to the scheduler and return the commands for the executor: start, stop, kill and submit.

        Raises:
            ClusterError: If no worker can be started.
        """
        for event in events:
            self._tell_event(event)
        commands = self.scheduler.handle(*events, Tick(now=monotonic()))
        submits = [command for command in commands if isinstance(command, Submit)]
        for command in commands:
            if not isinstance(command, Submit):
                self._tell_command(command)
        if submits and self._before_submit is not None:
            self._before_submit([Attempt(one.unit.unit_id, one.worker, one.node) for one in submits])
        for command in submits:
            self._tell_command(command)
        if monotonic() - self._last_tick >= TICK_S:
            self._last_tick = monotonic()
            self._on_event(Progress(kind="tick"))
        return [command for command in commands if isinstance(command, StartWorker | StopWorker | Kill | Submit)]

    def _tell_event(self, event: Event) -> None:
        match event:
            case WorkerReady(worker=worker, node=node):
                self._on_event(Progress(kind="worker_ready", worker=worker, node=node))
            case WorkerDied(worker=worker, cause="init", detail=detail):
                self._on_event(Progress(kind="worker_failed", worker=worker, detail=detail))
            case WorkerDied(worker=worker, detail=detail, log=log):
                unit = self._units.pop(worker, None)
                self._on_event(Progress(kind="worker_died", worker=worker, unit=unit, detail=detail, log=log))
            case UnitFinished(worker=worker, report=report):
                unit = self._units.pop(worker, None)
                self._on_event(Progress(kind="finished", worker=worker, unit=unit, report=report))
            case UnitRaised(worker=worker):
                self._units.pop(worker, None)

    def _tell_command(self, command: Command) -> None:
        match command:
            case StartWorker(worker=worker):
                self._on_event(Progress(kind="worker_started", worker=worker))
            case StopWorker(worker=worker):
                self._on_event(Progress(kind="worker_stopped", worker=worker))
            case Kill(worker=worker, reason=reason) if worker in self._units:  # else its death is reported already
                unit = self._units.pop(worker)
                self._on_event(Progress(kind="worker_died", worker=worker, unit=unit, detail=reason))
            case Submit(worker=worker, node=node, unit=unit, attempt=attempt):
                self._units[worker] = unit
                self._on_event(Progress(kind="submitted", worker=worker, node=node, unit=unit, attempt=attempt))
            case Retry(unit=unit, reason=reason):
                self._on_event(Progress(kind="retried", unit=unit, detail=reason))
            case Bisect(unit=unit, reason=reason):
                self._on_event(Progress(kind="bisected", unit=unit, detail=reason))
            case Fail(unit=unit, error=error, traceback=trace):
                self._on_event(Progress(kind="failed", unit=unit, detail=error, traceback=trace))
            case Quarantine(unit=unit, reason=reason):
                self._on_event(Progress(kind="quarantined", unit=unit, detail=reason))
            case PoolFailed(reason=reason):
                raise ClusterError(f"No worker could be started; the last error was: {reason}")
            case Done():
                self.done = True


def raised(worker: str, unit: Unit, problem: BaseException) -> UnitRaised:
    """Return the event that says that a unit raised an error."""
    return UnitRaised(
        worker=worker,
        unit_id=unit.unit_id,
        error=type_and_message(problem),
        traceback="".join(traceback.format_exception(problem)),
        out_of_memory=is_out_of_memory(problem),
        unavailable=isinstance(problem, StoreError),
    )


def check_worker(worker: object, context: object) -> None:
    """Call a worker's `check` if it has one; its error says why the worker cannot compute anything on its node."""
    check = getattr(worker, "check", None)
    if check is not None:
        check(context)


def close_worker(worker: object) -> None:
    """Call a worker's `close` if it has one."""
    close = getattr(worker, "close", None)
    if close is not None:
        close()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Turn SIGTERM into a KeyboardInterrupt within the block, so that workers are stopped and not left running.

    If the process handles SIGTERM already, nothing changes.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
