"""The state machine: its caller carries out the commands and reports events.

Its rules:

* One unit in flight per worker, so that a death names one unit.
* A worker's death on a node that is up, or a missed deadline, is a strike. After three strikes (on at least two
  workers) the unit is cut in two, until the one cell at fault is alone and is quarantined. The halves of such a unit
  are cut again at their first strike; a single cell always has three tries.
* The loss of a node, of a worker that cannot be reached, or of one whose GPU is faulty, is counted separately and is
  never a strike.
* A worker that cannot start counts against the pool, not against a unit.
* A unit that raises an error would raise it again, so it fails at once. After running out of memory it has one more
  try.
* A unit that is tried again goes to the end of the queue, behind every unit that has not been tried.

The time for an event does not grow with the number of units or workers, except for checks of all workers for those
that are overdue or idle.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from math import inf

from stitchgrid.records import Unit, UnitReport
from stitchgrid.scheduler.deadlines import DeadlineRule, Deadlines
from stitchgrid.scheduler.messages import (
    Bisect,
    Command,
    Done,
    Event,
    Fail,
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
    UnitFailure,
    UnitFinished,
    UnitRaised,
    WorkerDied,
    WorkerReady,
)
from stitchgrid.scheduler.pool import Member, WorkerPool
from stitchgrid.scheduler.queue import UnitQueue

Split = Callable[[Unit], tuple[Unit, Unit] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How many failures are tolerated."""

    max_strikes: int = 3
    min_strike_workers: int = 2
    max_unavailable: int = 5  # times a unit may be lost with its node
    max_false_starts: int = 3  # workers in a row that cannot start
    idle_s: float | None = None  # seconds after which a worker without work is stopped; None: never
    max_held: int = 32  # networks a worker is taken to hold


@dataclass(slots=True)
class _History:
    """What has happened to a unit so far."""

    attempts: int = 0
    strikes: list[str] = field(default_factory=list)  # workers
    num_missed: int = 0  # deadlines
    unavailable: int = 0
    out_of_memory: int = 0
    suspect: bool = False  # half of a unit that was cut in two


class Scheduler:
    """Decides for the units of one run; workers may exist before it and outlive it."""

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        num_workers: int,
        split: Split | None = None,
        deadlines: DeadlineRule | None = None,
        fail_fast: bool = False,
        policy: Policy | None = None,
        ready: Mapping[str, str] | None = None,  # worker -> node
        starting: Sequence[str] = (),
        names: Iterator[str] | None = None,  # for the workers it starts
        now: float = 0.0,
    ):
        assert num_workers > 0
        self._queue = UnitQueue(units)
        self._num_workers = num_workers
        self._split = split
        self._deadlines = Deadlines(deadlines or DeadlineRule())
        self._next_look = inf  # time before which no unit is overdue
        self._fail_fast = fail_fast
        self._policy = policy or Policy()
        self._names = names or (f"worker-{i}" for i in count(1))
        self._pool = WorkerPool(max_held=self._policy.max_held)
        for name in (*starting, *(ready or {})):
            self._pool.add(name, now=now)
        for member in [member for member in self._pool if member.name in (ready or {})]:
            self._pool.welcome(member, (ready or {})[member.name], now=now)
        self._seen = {unit.unit_id for unit in units}
        assert len(self._seen) == len(units), "two units with one id"
        self._history: defaultdict[str, _History] = defaultdict(_History)
        self._now = now
        self._false_starts = 0
        self._last_false_start = ""
        self._stopping = False
        self._over = False
        self._commands: list[Command] = []
        self._finished: list[UnitReport] = []
        self._failed: list[UnitFailure] = []
        self._quarantined: list[UnitFailure] = []

    def handle(self, *events: Event) -> list[Command]:
        """Take in events, in their order, and return the commands to carry out, in their order.

        The first call, with a Tick, starts the run. Events about workers that are gone are ignored.
        """
        for event in events:
            self._take_in(event)
        if not self._over:
            self._dispatch()
        commands, self._commands = self._commands, []
        return commands

    def outcome(self) -> Outcome:
        """Return the results of the units so far; units in flight are in none of its lists."""
        return Outcome(
            finished=tuple(self._finished),
            failed=tuple(self._failed),
            quarantined=tuple(self._quarantined),
            unfinished=tuple(self._queue),
        )

    def _take_in(self, event: Event) -> None:
        match event:
            case Tick():
                self._now = event.now
                self._kill_overdue()
                self._let_idle_go()
            case Stop():
                self._stopping = True
            case WorkerReady():
                self._welcome(event)
            case WorkerDied():
                self._bury(event)
            case UnitFinished() | UnitRaised():
                self._answered(event)

    def _answered(self, event: UnitFinished | UnitRaised) -> None:
        member = self._pool.get(event.worker)
        if member is None or member.unit is None or member.unit.unit_id != event.unit_id:
            return
        seconds = self._now - member.since
        unit = self._pool.release(member, now=self._now)
        if isinstance(event, UnitFinished):
            self._finish(unit, event.report, seconds)
        else:
            self._raised(unit, event)

    # Workers

    def _welcome(self, event: WorkerReady) -> None:
        member = self._pool.get(event.worker)
        if member is not None:
            self._pool.welcome(member, event.node, now=self._now)
            self._false_starts = 0

    def _bury(self, event: WorkerDied) -> None:
        member = self._pool.get(event.worker)
        if member is None:
            return
        self._remove(member, event.detail)
        if not member.ready and event.cause != "infrastructure":
            self._false_starts += 1
            self._last_false_start = event.detail
        if member.unit is None:
            return
        if event.cause == "crash":
            self._strike(member.unit, member.name, event.detail)
        else:
            self._lose(member.unit, event.detail)

    def _remove(self, member: Member, reason: str) -> None:
        self._pool.remove(member)
        # Also when it is dead: a worker that cannot be reached may still run.
        self._commands.append(Kill(worker=member.name, reason=reason))
        if member.ready:  # as this worker did start, its successor has a try
            self._false_starts = min(self._false_starts, self._policy.max_false_starts - 1)

    def _kill_overdue(self) -> None:
        if self._now < self._next_look:
            return
        self._next_look = inf
        for member in [member for member in self._pool if member.unit is not None]:
            assert member.unit is not None
            allowed = self._allowed(member.unit)
            if member.since + allowed > self._now:
                self._next_look = min(self._next_look, member.since + allowed)
                continue
            reason = f"no answer within {allowed:.0f} s"
            self._history[member.unit.unit_id].num_missed += 1
            self._remove(member, reason)
            self._strike(member.unit, member.name, reason)

    def _allowed(self, unit: Unit) -> float:
        return self._deadlines.allowed(unit, num_missed=self._history[unit.unit_id].num_missed)

    def _let_idle_go(self) -> None:
        if self._policy.idle_s is None or (self._queue and not self._stopping):
            return
        for member in [member for member in self._pool if member.unit is None]:
            if self._now - member.since >= self._policy.idle_s:
                self._pool.remove(member)
                self._commands.append(StopWorker(worker=member.name))

    # Units

    def _finish(self, unit: Unit, report: UnitReport, seconds: float) -> None:
        self._finished.append(report)
        self._history.pop(unit.unit_id, None)
        if self._deadlines.learn(unit, max(seconds, report.seconds)):
            self._next_look = self._now
        self._stopping |= self._fail_fast and report.num_failed > 0

    def _raised(self, unit: Unit, event: UnitRaised) -> None:
        history = self._history[unit.unit_id]
        if event.out_of_memory and history.out_of_memory == 0:
            history.out_of_memory += 1
            self._retry(unit, event.error)
            return
        if event.unavailable:
            self._lose(unit, event.error)
            return
        self._failed.append(UnitFailure(unit=unit, reason=event.error, traceback=event.traceback))
        self._commands.append(Fail(unit=unit, error=event.error, traceback=event.traceback))
        self._stopping |= self._fail_fast

    def _strike(self, unit: Unit, worker: str, reason: str) -> None:
        history = self._history[unit.unit_id]
        history.strikes.append(worker)
        guilty = (
            len(history.strikes) >= self._policy.max_strikes
            and len(set(history.strikes)) >= self._policy.min_strike_workers
        )
        if (guilty or history.suspect) and self._bisect(unit, reason):
            return
        if guilty:
            self._give_up(unit, f"killed its worker {len(history.strikes)} times; the last time: {reason}")
        else:
            self._retry(unit, reason)

    def _bisect(self, unit: Unit, reason: str) -> bool:
        halves = self._split(unit) if self._split is not None and unit.num_cells > 1 else None
        if halves is None:
            return False
        for half in halves:
            assert half.unit_id not in self._seen, "a half needs an id of its own"
            self._seen.add(half.unit_id)
            self._history[half.unit_id].suspect = True
            self._queue.put_back(half)
        self._commands.append(Bisect(unit=unit, halves=halves, reason=reason))
        return True

    def _lose(self, unit: Unit, reason: str) -> None:
        history = self._history[unit.unit_id]
        history.unavailable += 1
        if history.unavailable >= self._policy.max_unavailable:
            self._give_up(
                unit, f"unavailable: its worker or the store was lost {history.unavailable} times; the last: {reason}"
            )
        else:
            self._retry(unit, reason)

    def _retry(self, unit: Unit, reason: str) -> None:
        self._queue.put_back(unit)
        self._commands.append(Retry(unit=unit, reason=reason))

    def _give_up(self, unit: Unit, reason: str) -> None:
        self._quarantined.append(UnitFailure(unit=unit, reason=reason))
        self._commands.append(Quarantine(unit=unit, reason=reason))
        self._stopping |= self._fail_fast

    # Handing out

    def _dispatch(self) -> None:
        wanted = not self._stopping and len(self._queue) > 0
        if wanted:
            self._hand_out()
            self._start_workers()
        if not self._pool.num_busy and (self._stopping or not self._queue):
            self._over = True
            self._commands.append(Done())
        elif wanted and not len(self._pool):
            self._over = True
            self._commands.append(PoolFailed(reason=self._last_false_start))

    def _hand_out(self) -> None:
        for member in list(self._pool.idle.values()):
            unit = self._queue.take(member.held, self._num_workers)
            if unit is None:
                return
            history = self._history[unit.unit_id]
            history.attempts += 1
            self._pool.give(member, unit, now=self._now)
            self._next_look = min(self._next_look, self._now + self._allowed(unit))
            self._commands.append(Submit(worker=member.name, node=member.node, unit=unit, attempt=history.attempts))

    def _start_workers(self) -> None:
        wanted = min(self._num_workers, self._pool.num_busy + len(self._queue))
        missing = wanted - len(self._pool)
        if self._false_starts:  # as many at a time as may still fail
            missing = min(missing, self._policy.max_false_starts - self._false_starts - self._pool.num_starting)
        for name in islice(self._names, max(0, missing)):
            self._pool.add(name, now=self._now)
            self._commands.append(StartWorker(worker=name))
