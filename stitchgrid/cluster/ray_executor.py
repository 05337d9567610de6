"""The executor that runs units on Ray actors: a thin `ray.wait` loop around the scheduler."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import stitchgrid
from stitchgrid.cluster.actor import Broken, Hello, WorkerActor
from stitchgrid.cluster.connection import Connection
from stitchgrid.cluster.dispatch import TICK_S, Dispatch, sigterm_interrupts
from stitchgrid.cluster.metrics import Metrics
from stitchgrid.cluster.nodes import UnfitNodes, node_lives
from stitchgrid.cluster.protocol import BeforeSubmit, OnEvent, Progress, Split, WorkerProtocol, ignore
from stitchgrid.cluster.sizing import ClusterSize, check_shares, choose_size
from stitchgrid.cluster.worker_failures import classify_death, in_short
from stitchgrid.errors import ClusterError
from stitchgrid.records import Unit, UnitReport
from stitchgrid.scheduler import (
    Command,
    DeadlineRule,
    Event,
    Kill,
    Outcome,
    Policy,
    Scheduler,
    StartWorker,
    Stop,
    StopWorker,
    Submit,
    UnitFinished,
    UnitRaised,
    WorkerDied,
    WorkerReady,
)

IDLE_S = 60.0  # after which an idle worker is stopped, on a cluster that others may use
CLOSE_S = 2.0  # longest wait for workers to close
WAITING_S = 30.0  # without a ready worker, after which the missing resources are reported


@dataclass(slots=True)
class _Seat:
    """An actor and its one call in flight."""

    handle: Any
    node: str = ""  # Ray's id of the node
    ready: bool = False
    unit: Unit | None = None  # None while the call is `start`


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One call of `RayExecutor.run`."""

    number: int
    context: list[Any]  # a reference in a list, so that Ray does not resolve it
    on_event: OnEvent


class RayExecutor:
    """Runs units on actors of a Ray cluster; actors are started when needed and stopped at the end of the block."""

    def __init__(
        self,
        address: str,
        *,
        factory: Callable[[], WorkerProtocol],
        workers: int | None = None,
        cpus_per_worker: float | None = None,
        gpus_per_worker: float | None = None,
        max_units: int | None = None,
        package: Path | None = None,
    ):
        check_shares(workers, cpus_per_worker, gpus_per_worker)
        min_cpus = (workers or 0) * (1.0 if cpus_per_worker is None else cpus_per_worker)
        self._connection = Connection(address, min_cpus=min_cpus, package=package)
        self._factory = factory
        self._choose_size = partial(
            choose_size,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            max_units=max_units,
            is_local=self._connection.is_local,
        )
        self.num_workers = workers or 1  # until the resources of the cluster are known
        self._size = ClusterSize(num_workers=1, cpus=1, gpus=0)
        self._unfit = UnfitNodes(self._size)
        self._metrics: Metrics | None = None  # not for a local cluster, which has no dashboard
        self._seats: dict[str, _Seat] = {}
        self._calls: dict[Any, str] = {}  # reference -> worker
        self._names = (f"worker-{i}" for i in count(1))
        self._runs = count(1)
        self._stop = False
        self._blob = b""  # the factory, pickled
        self._actor: Any = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self._connection)
            undo.callback(self._let_go)
            import ray
            from ray import cloudpickle

            self._size = self._choose_size(ray.cluster_resources())
            self.num_workers = self._size.num_workers
            self._unfit = UnfitNodes(self._size)
            self._metrics = None if self._connection.is_local else Metrics()
            self._blob = cloudpickle.dumps(self._factory)
            self._actor = ray.remote(
                num_cpus=self._size.cpus,
                num_gpus=self._size.gpus,
                max_restarts=0,  # restarts would hide the cause of a death, and repeat a deadly unit for ever
                max_task_retries=0,
                max_concurrency=1,
            )(WorkerActor)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def request_stop(self) -> None:
        """Make `run` return after the units that are running."""
        self._stop = True

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

        Raises:
            ClusterError: If no worker can be started, or one has another version of stitchgrid.
        """
        import ray

        self._stop = False
        if self._metrics is not None:
            on_event = self._metrics.observing(on_event, sweep=getattr(context, "name", ""))
        this_run = _Run(number=next(self._runs), context=[ray.put(context)], on_event=on_event)
        self._greet_again(this_run)
        scheduler = Scheduler(
            units,
            num_workers=self.num_workers,
            split=split,
            deadlines=deadlines,
            fail_fast=fail_fast,
            policy=Policy(idle_s=None if self._connection.is_local else IDLE_S),
            starting=tuple(self._seats),
            names=self._names,
            now=monotonic(),
        )
        try:
            with sigterm_interrupts():
                self._loop(Dispatch(scheduler, on_event, before_submit), this_run)
        except BaseException:  # also an interrupt: no worker may continue after the run has ended
            self._kill_all()
            raise
        return scheduler.outcome()

    def _loop(self, dispatch: Dispatch, run: _Run) -> None:
        waiting_since = monotonic()
        commands = dispatch.advance()
        while True:
            for command in commands:
                self._carry_out(command, run)
            if dispatch.done:
                return
            events = self._collect(run)
            if any(seat.ready for seat in self._seats.values()):
                waiting_since = monotonic()
            elif monotonic() - waiting_since >= WAITING_S:
                waiting_since = monotonic()
                run.on_event(Progress(kind="waiting", detail=self._what_is_missing()))
            commands = dispatch.advance(*events, *([Stop()] if self._stop else []))

    def _carry_out(self, command: Command, run: _Run) -> None:
        match command:
            case StartWorker(worker=name):
                self._seats[name] = _Seat(handle=self._actor.options(**self._unfit.avoid()).remote())
                self._greet(name, run)
            case Submit(worker=name, unit=unit):
                seat = self._seats[name]
                seat.unit = unit
                self._calls[seat.handle.run.remote(unit, run.number)] = name
            case StopWorker(worker=name):
                self._close([name])
                self._kill(name)
            case Kill(worker=name):
                self._kill(name)

    def _greet(self, name: str, run: _Run) -> None:
        seat = self._seats[name]
        seat.ready = False
        call = seat.handle.start.remote(stitchgrid.__version__, self._blob, self._size, run.number, run.context)
        self._calls[call] = name

    def _greet_again(self, run: _Run) -> None:
        """Start the workers of an earlier run again for this run, so that a dead one is found before it gets a unit.

        Workers that were still starting are started again, too: they need the number of this run.
        """
        self._calls.clear()
        for name in self._seats:
            self._greet(name, run)

    def _collect(self, run: _Run) -> list[Event]:
        """Return the events of answered calls, after at most a second."""
        import ray

        answered, rest = ray.wait(list(self._calls), num_returns=1, timeout=TICK_S)
        if answered and rest:
            answered += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._read(reference, run) for reference in answered]

    def _read(self, reference: Any, run: _Run) -> Event:
        import ray

        name = self._calls.pop(reference)
        seat = self._seats[name]
        unit, seat.unit = seat.unit, None
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as problem:  # the unit, or the answer, could not be sent
            error = in_short(problem)
            if unit is None:
                return WorkerDied(worker=name, cause="init", detail=error)
            return UnitRaised(worker=name, unit_id=unit.unit_id, error=error, traceback=str(problem))
        except ray.exceptions.RayError as problem:
            return self._death(name, problem)
        if unit is None:
            return self._welcome(name, answer, run)
        return self._answer(name, unit, answer)

    def _answer(self, name: str, unit: Unit, answer: UnitReport | UnitRaised | Broken) -> Event:
        if isinstance(answer, UnitReport):
            return UnitFinished(worker=name, unit_id=unit.unit_id, report=answer)
        if isinstance(answer, Broken):
            return WorkerDied(worker=name, cause=answer.cause, detail=answer.error)
        return replace(answer, worker=name)

    def _welcome(self, name: str, hello: Hello, run: _Run) -> Event:
        if hello.version != stitchgrid.__version__:
            raise ClusterError(
                f"A worker on {hello.host} has stitchgrid {hello.version}, this command has {stitchgrid.__version__}; "
                "install the same version on every node."
            )
        place = f"{hello.host}/{hello.node[:6]}"
        if hello.problem:
            detail = f"on node {place}: {hello.problem}"
            if self._unfit.note(hello.node):
                run.on_event(Progress(kind="node_unfit", node=place, detail=detail))
            return WorkerDied(worker=name, cause="init", detail=detail)
        seat = self._seats[name]
        seat.ready, seat.node = True, hello.node
        return WorkerReady(worker=name, node=place)

    def _death(self, name: str, problem: Exception) -> WorkerDied:
        seat = self._seats[name]
        cause = classify_death(problem, is_node_alive=lambda: node_lives(seat.node), was_ready=seat.ready)
        log = ""
        if cause == "crash" and self._connection.log_folder is not None:
            self._connection.keep_logs = True
            log = f"{self._connection.log_folder}/session_latest/logs"
        return WorkerDied(worker=name, cause=cause, detail=in_short(problem), log=log)

    def _what_is_missing(self) -> str:
        import ray

        there = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
        return (
            f"no worker is ready yet: each asks for {self._size.cpus:g} CPU and {self._size.gpus:g} GPU; the cluster "
            f"has {there['CPU']:g} and {there['GPU']:g}, free are {free['CPU']:g} and {free['GPU']:g}"
        )

    def _close(self, names: Sequence[str]) -> None:
        import ray

        with suppress(ray.exceptions.RayError):
            closing = [self._seats[name].handle.close.remote() for name in names if self._seats[name].ready]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)

    def _kill(self, name: str) -> None:
        import ray

        seat = self._seats.pop(name)
        self._calls = {reference: other for reference, other in self._calls.items() if other != name}
        with suppress(Exception):  # the actor or the cluster is gone already
            ray.kill(seat.handle)

    def _kill_all(self) -> None:
        for name in list(self._seats):
            self._kill(name)

    def _let_go(self) -> None:
        self._close(list(self._seats))
        self._kill_all()
