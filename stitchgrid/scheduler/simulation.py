"""Simulates a run without a cluster: the scheduler is the real one, workers and time are simulated.

The report shows how much work failures of a given frequency cost, and how busy a given number of workers can be. A unit
takes the time of its FLOPs at a worker's speed, times a log-normal factor of mean 1. Everything is drawn from one seed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import NamedTuple

from stitchgrid.errors import InputError
from stitchgrid.records import Unit, UnitReport
from stitchgrid.scheduler.machine import Scheduler
from stitchgrid.scheduler.messages import (
    Bisect,
    Command,
    Done,
    Event,
    Kill,
    PoolFailed,
    StartWorker,
    StopWorker,
    Submit,
    Tick,
    UnitFinished,
    WorkerDied,
    WorkerReady,
)
from stitchgrid.scheduler.simulated import SimulatedPiece, SimulationReport, SimulationSettings

TICK_S = 10.0  # seconds between two ticks while a worker hangs
HOUR_S = 3600.0


class _Happening(NamedTuple):
    """Something to come: a worker's start, its unit's end, its death; a node that goes or comes back; a tick."""

    at: float
    order: int
    kind: str  # ready | finished | crashed | unreachable | node_lost | node_back | tick
    who: str | int
    attempt: int = 0


@dataclass(slots=True)
class _Actor:
    """A simulated worker."""

    node: int
    unit: Unit | None = None
    since: float = 0.0
    attempt: int = 0  # number of its unit among all that were given out
    hangs: bool = False
    is_lost: bool = False  # lost with its node, which the scheduler does not know yet


@dataclass(slots=True)
class _Node:
    """A machine with places for workers."""

    free: int
    lives: bool = True
    workers: dict[str, None] = field(default_factory=dict)


def simulate(units: Sequence[Unit], settings: SimulationSettings) -> SimulationReport:
    """Return the report of a simulated run of these units.

    Raises:
        InputError: If the settings ask for more poisonous cells than there are cells.

    >>> simulate([], SimulationSettings(num_workers=2)).makespan_s
    0.0
    """
    return _World(units, settings).run()


class _World:
    """Carries out the scheduler's commands, and draws their results at random."""

    def __init__(self, units: Sequence[Unit], settings: SimulationSettings):
        self.settings, self.rng = settings, Random(settings.seed)
        self.pieces = {unit.unit_id: SimulatedPiece(unit.unit_id, 0, unit.num_cells) for unit in units}
        self.report = SimulationReport(num_units=len(units), num_workers=settings.num_workers, start_s=settings.start_s)
        self.report.poison.update(self._draw_poison(units))
        self.poisoned = {unit_id for unit_id, _ in self.report.poison}
        self.scheduler = Scheduler(
            units, num_workers=settings.num_workers, split=self._split, deadlines=settings.deadlines
        )
        self.now, self.over = 0.0, False
        self.order = count()
        self.to_come: list[_Happening] = []
        self.actors: dict[str, _Actor] = {}
        self.waiting: deque[str] = deque()  # workers without a place
        self.num_hanging = 0
        places = settings.workers_per_node
        full, rest = divmod(settings.num_workers, places)
        self.nodes = [_Node(free=places) for _ in range(full)] + ([_Node(free=rest)] if rest else [])
        for number in range(len(self.nodes)):
            self._expect_loss(number)

    def _draw_poison(self, units: Sequence[Unit]) -> list[tuple[str, int]]:
        ends: list[int] = []
        for unit in units:
            ends.append(unit.num_cells + (ends[-1] if ends else 0))
        total, wanted = ends[-1] if ends else 0, self.settings.num_poison
        if wanted > total:
            raise InputError(f"{wanted} poisonous cells were wanted, but the units have {total}; set num_poison lower.")
        chosen = sorted(self.rng.sample(range(total), wanted))
        found, position = [], 0
        for cell in chosen:
            while cell >= ends[position]:
                position += 1
            found.append((units[position].unit_id, cell - ends[position] + units[position].num_cells))
        return found

    def _split(self, unit: Unit) -> tuple[Unit, Unit] | None:
        root, start, stop = self.pieces[unit.unit_id]
        middle = (start + stop) // 2
        halves = []
        for side, (low, high) in enumerate(((start, middle), (middle, stop))):
            share = (high - low) / (stop - start)
            half = replace(unit, unit_id=f"{unit.unit_id}-{side}", num_cells=high - low, flops=unit.flops * share)
            self.pieces[half.unit_id] = SimulatedPiece(root, low, high)
            halves.append(half)
        return halves[0], halves[1]

    def run(self) -> SimulationReport:
        """Simulate until every unit has ended."""
        self._tell()
        while not self.over:
            happening = heappop(self.to_come)
            self.now = max(self.now, happening.at)
            self._tell(*self._take_place(happening))
        self.report.makespan_s = self.now
        outcome = self.scheduler.outcome()
        self.report.finished += [self.pieces[report.unit_id] for report in outcome.finished]
        for failure in outcome.quarantined:
            is_lost = failure.reason.startswith("unavailable")
            (self.report.unavailable if is_lost else self.report.quarantined).append(self.pieces[failure.unit.unit_id])
        return self.report

    def _tell(self, *events: Event) -> None:
        for command in self.scheduler.handle(*events, Tick(now=self.now)):
            self._carry_out(command)

    def _expect(self, seconds: float, kind: str, who: str | int, attempt: int = 0) -> None:
        heappush(self.to_come, _Happening(self.now + seconds, next(self.order), kind, who, attempt))

    # Commands

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartWorker(worker=name):
                self.waiting.append(name)
                self._seat_those_waiting()
            case Submit(worker=name, unit=unit):
                self._begin(name, unit)
            case Kill(worker=name) | StopWorker(worker=name):
                self._remove(name)
            case Bisect():
                self.report.num_bisected += 1
            case Done() | PoolFailed():
                self.over = True

    def _seat_those_waiting(self) -> None:
        if not self.waiting:
            return
        for number, node in enumerate(self.nodes):
            while node.lives and node.free and self.waiting:
                name = self.waiting.popleft()
                node.free -= 1
                node.workers[name] = None
                self.actors[name] = _Actor(node=number)
                self.report.num_started += 1
                self._expect(self.settings.start_s, "ready", name)

    def _remove(self, name: str) -> None:
        if name not in self.actors:
            self.waiting = deque(other for other in self.waiting if other != name)
            return
        actor = self.actors.pop(name)
        node = self.nodes[actor.node]
        node.free += 1
        del node.workers[name]
        self.num_hanging -= actor.hangs
        if actor.unit is not None:
            self.report.lost_s += self.now - actor.since
            self.report.num_lost += 1
        self._seat_those_waiting()

    def _begin(self, name: str, unit: Unit) -> None:
        actor, settings = self.actors[name], self.settings
        self.report.num_attempts += 1
        actor.unit, actor.since, actor.attempt = unit, self.now, self.report.num_attempts
        if actor.is_lost:  # the unit never ends
            return
        straggling = self.rng.lognormvariate(-(settings.spread**2) / 2, settings.spread)
        seconds = unit.flops / settings.flops_per_second * straggling
        crash, hang = self._next(settings.crashes_per_hour), self._next(settings.hangs_per_hour)
        if self._is_poisonous(unit):
            crash = min(crash, self.rng.random() * seconds)
        if min(crash, hang) >= seconds:
            self._expect(seconds, "finished", name, actor.attempt)
        elif crash <= hang:
            self._expect(crash, "crashed", name, actor.attempt)
        else:
            actor.hangs = True
            self.num_hanging += 1
            if self.num_hanging == 1:
                self._expect(TICK_S, "tick", 0)

    def _is_poisonous(self, unit: Unit) -> bool:
        root, start, stop = self.pieces[unit.unit_id]
        return root in self.poisoned and any((root, cell) in self.report.poison for cell in range(start, stop))

    def _next(self, per_hour: float) -> float:
        return self.rng.expovariate(per_hour / HOUR_S) if per_hour else float("inf")

    # What happens

    def _take_place(self, happening: _Happening) -> list[Event]:
        if isinstance(happening.who, int):
            self._happen_to_node(happening.kind, happening.who)
            return []
        actor = self.actors.get(happening.who)
        return [] if actor is None else self._happen_to_worker(happening, happening.who, actor)

    def _happen_to_worker(self, happening: _Happening, name: str, actor: _Actor) -> list[Event]:
        if happening.kind == "unreachable":
            return [WorkerDied(worker=name, cause="infrastructure", detail="its node is lost")]
        if actor.is_lost or actor.attempt != happening.attempt:
            return []
        if happening.kind == "ready":
            return [WorkerReady(worker=name, node=f"node-{actor.node}")]
        if happening.kind == "finished":
            return [self._finish(name, actor)]
        return [WorkerDied(worker=name, cause="crash", detail="crashed")]

    def _finish(self, name: str, actor: _Actor) -> UnitFinished:
        assert actor.unit is not None
        unit, actor.unit = actor.unit, None
        seconds = self.now - actor.since
        self.report.useful_s += seconds
        self.report.longest_s = max(self.report.longest_s, seconds)
        report = UnitReport(unit_id=unit.unit_id, num_cells=unit.num_cells, seconds=seconds)
        return UnitFinished(worker=name, unit_id=unit.unit_id, report=report)

    def _happen_to_node(self, kind: str, number: int) -> None:
        node = self.nodes[number]
        if kind == "tick":
            if self.num_hanging:
                self._expect(TICK_S, "tick", 0)
        elif kind == "node_back":
            node.lives = True
            self._expect_loss(number)
            self._seat_those_waiting()
        else:
            self.report.num_nodes_lost += 1
            node.lives = False
            self._expect(self.settings.node_return_s, "node_back", number)
            for name in node.workers:  # they stop answering, which is noticed later
                self.actors[name].is_lost = True
                self._expect(self.settings.detection_s, "unreachable", name)

    def _expect_loss(self, number: int) -> None:
        if self.settings.node_losses_per_hour:
            self._expect(self._next(self.settings.node_losses_per_hour), "node_lost", number)
