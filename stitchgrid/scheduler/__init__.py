"""Which unit runs next, on which worker, and what a death means: a pure state machine, events in, commands out."""

from stitchgrid.scheduler.deadlines import DeadlineRule, Deadlines, generous_deadline
from stitchgrid.scheduler.machine import Policy, Scheduler
from stitchgrid.scheduler.messages import (
    Bisect,
    Cause,
    Command,
    Done,
    Event,
    Fail,
    Failure,
    Kill,
    Outcome,
    PoolFailed,
    Quarantine,
    Retry,
    StartWorker,
    Stop,
    StopWorker,
    Submit,
    Tick,
    UnitFinished,
    UnitRaised,
    WorkerDied,
    WorkerReady,
)
from stitchgrid.scheduler.queue import UnitQueue
from stitchgrid.scheduler.simulated import Piece, SimulationReport, SimulationSettings
from stitchgrid.scheduler.simulation import simulate

__all__ = [
    "Bisect",
    "Cause",
    "Command",
    "DeadlineRule",
    "Deadlines",
    "Done",
    "Event",
    "Fail",
    "Failure",
    "Kill",
    "Outcome",
    "Piece",
    "Policy",
    "PoolFailed",
    "Quarantine",
    "Retry",
    "Scheduler",
    "SimulationReport",
    "SimulationSettings",
    "StartWorker",
    "Stop",
    "StopWorker",
    "Submit",
    "Tick",
    "UnitFinished",
    "UnitQueue",
    "UnitRaised",
    "WorkerDied",
    "WorkerReady",
    "generous_deadline",
    "simulate",
]
