"""The scheduler's vocabulary: the events it takes in, the commands it gives, and the results of all units."""

from dataclasses import dataclass
from typing import Literal

from stitchgrid.records import Unit, UnitReport

# init: the worker could not be made. infrastructure: its node went away, it cannot be reached, or its GPU is faulty.
# crash: anything else.
Cause = Literal["init", "infrastructure", "crash"]


# Events


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """A worker can take a unit now."""

    worker: str
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFinished:
    """A worker has finished its unit and written the results."""

    worker: str
    unit_id: str
    report: UnitReport


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRaised:
    """A unit raised an error and its worker lives on."""

    worker: str
    unit_id: str
    error: str  # its type and message, which may have several lines
    traceback: str = ""
    out_of_memory: bool = False
    unavailable: bool = False  # the store could not be reached or written: not the unit's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied:
    """A worker is gone, with the unit it had."""

    worker: str
    cause: Cause
    detail: str = ""
    log: str = ""  # the log file of its process


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The time, in seconds since any fixed moment; reported after the events that happened before it."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Give out no more units; those in flight may finish."""


Event = WorkerReady | UnitFinished | UnitRaised | WorkerDied | Tick | Stop


# Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Start a worker under this name."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorker:
    """Stop a worker for which there is no work."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Make sure that a worker has ended; whatever it still reports is ignored."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Give a unit to a worker."""

    worker: str
    node: str
    unit: Unit
    attempt: int  # 1 for the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """For the record: a unit was lost and waits for its next attempt."""

    unit: Unit
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisect:
    """For the record: a unit that kills its workers was cut in two."""

    unit: Unit
    halves: tuple[Unit, Unit]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """A unit ended with an error."""

    unit: Unit
    error: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A unit is given up: it kills its workers, or is lost with them too often."""

    unit: Unit
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFailed:
    """No worker is left and none can be started."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Every unit has ended; after a stop, every unit that was in flight."""


Command = StartWorker | StopWorker | Kill | Submit | Retry | Bisect | Fail | Quarantine | PoolFailed | Done


# Results


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFailure:
    """A unit without a result, and why."""

    unit: Unit
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results of all units; a unit that was cut in two appears as its halves."""

    finished: tuple[UnitReport, ...] = ()
    failed: tuple[UnitFailure, ...] = ()
    quarantined: tuple[UnitFailure, ...] = ()
    unfinished: tuple[Unit, ...] = ()  # not begun, or lost and not tried again, when the run stopped
