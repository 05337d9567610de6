"""The executor that runs units in this process, without Ray."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from stitchgrid.cluster.dispatch import Dispatch, check_worker, close_worker, raised, sigterm_interrupts
from stitchgrid.cluster.protocol import BeforeSubmit, OnEvent, Split, WorkerProtocol, ignore
from stitchgrid.errors import BrokenProcessError, breaks_worker, is_hardware_fault, type_and_message
from stitchgrid.records import Unit
from stitchgrid.scheduler import (
    Command,
    DeadlineRule,
    Event,
    Outcome,
    Scheduler,
    StartWorker,
    Stop,
    Submit,
    UnitFinished,
    WorkerReady,
)


class InProcessExecutor:
    """Runs units in this process, one after the other: for small jobs, for a debugger, and without Ray.

    A unit that ends this process ends the run, and a deadline cannot be enforced.
    """

    def __init__(self, factory: Callable[[], WorkerProtocol]):
        self.num_workers = 1
        self._factory = factory
        self._worker: WorkerProtocol | None = None
        self._stop = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worker, self._worker = self._worker, None
        close_worker(worker)

    def request_stop(self) -> None:
        """Make `run` return after the unit that is running."""
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
            BrokenProcessError: If a unit broke the device: the unit is lost, and no other unit can be computed.
        """
        self._stop = False
        name = "in-process"
        if self._worker is not None:
            check_worker(self._worker, context)
        scheduler = Scheduler(
            units,
            num_workers=1,
            split=split,
            deadlines=deadlines,
            fail_fast=fail_fast,
            ready={name: "localhost"} if self._worker is not None else None,
            names=iter([name]),
        )
        dispatch = Dispatch(scheduler, on_event, before_submit)
        with sigterm_interrupts():
            commands = dispatch.advance()
            while not dispatch.done:
                events = [event for command in commands if (event := self._carry_out(command, context)) is not None]
                commands = dispatch.advance(*events, *([Stop()] if self._stop else []))
        return scheduler.outcome()

    def _carry_out(self, command: Command, context: object) -> Event | None:
        match command:
            case StartWorker(worker=name):
                self._worker = self._factory()
                check_worker(self._worker, context)
                return WorkerReady(worker=name, node="localhost")
            case Submit(worker=name, unit=unit):
                assert self._worker is not None
                try:
                    report = self._worker.run(unit, context)
                except (Exception, SystemExit) as problem:  # a unit that fails must not stop the other units
                    if breaks_worker(problem):
                        raise lost_device(unit, problem) from problem
                    return raised(name, unit, problem)
                return UnitFinished(worker=name, unit_id=unit.unit_id, report=report)
            case _:
                return None


def lost_device(unit: Unit, problem: BaseException) -> BrokenProcessError:
    """Return the error that says that a unit broke the device of this process, and how to continue."""
    if is_hardware_fault(problem):
        return BrokenProcessError(
            f"the GPU is faulty ({type_and_message(problem)}); what is finished is stored. Have it reset or "
            "replaced, or take another machine; then continue with `stitchgrid resume`."
        )
    return BrokenProcessError(
        f"unit {unit.unit_id} broke this process's device, so that it computes nothing more "
        f"({type_and_message(problem)}); what is finished is stored. Continue with `stitchgrid resume` and "
        "--address local: it replaces a broken worker, and finds the cell that breaks it."
    )
