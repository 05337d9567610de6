"""The scheduler, driven by hand and by simulated worlds in which workers die at any moment."""

import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stitchgrid.records import Block, DataSpec, NetworkSpec, Shard, TrainNetwork, UnitReport
from stitchgrid.scheduler import (
    Bisect,
    DeadlineRule,
    Deadlines,
    Done,
    Fail,
    Kill,
    Outcome,
    Policy,
    PoolFailed,
    Quarantine,
    Retry,
    Scheduler,
    StartWorker,
    Stop,
    StopWorker,
    Submit,
    Tick,
    UnitFinished,
    UnitQueue,
    UnitRaised,
    WorkerDied,
    WorkerReady,
    generous_deadline,
)


def make_unit(name, *, flops=1.0, networks=(0, 1), num_cells=1):
    layers = tuple(range(num_cells))
    block = Block(source=networks[0], target=networks[1], source_layers=(0,), target_layers=layers)
    return Shard(unit_id=name, blocks=(block,), matchers=(0,), flops=flops, num_cells=num_cells)


def cells_of(unit):
    """Return the cells of a test unit: its first name and a target layer."""
    return {(unit.unit_id.split("/")[0], layer) for layer in unit.blocks[0].target_layers}


def halve(unit):
    layers = unit.blocks[0].target_layers
    parts = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    return tuple(
        replace(
            unit,
            unit_id=f"{unit.unit_id}/{side}",
            blocks=(replace(unit.blocks[0], target_layers=part),),
            num_cells=len(part),
        )
        for side, part in enumerate(parts)
    )


@dataclass
class World:
    """Workers that do what a script or chance says, and complain when the scheduler breaks its promises."""

    scheduler: Scheduler
    now: float = 0.0
    starting: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    busy: dict[str, Shard] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)  # worker -> the last unit it had
    log: list = field(default_factory=list)
    over: bool = False

    def tell(self, *events):
        for command in self.scheduler.handle(*events):
            self.log.append(command)
            self._carry_out(command)
        return self.log

    def _carry_out(self, command):
        assert not self.over, f"{command} after the end"
        match command:
            case StartWorker(worker=worker):
                assert worker not in {*self.starting, *self.idle, *self.busy, *self.gone}
                self.starting.append(worker)
            case Submit(worker=worker, unit=unit):
                assert worker in self.idle, f"{worker} was given a unit while busy, starting or dead"
                assert unit.unit_id not in {other.unit_id for other in self.busy.values()}
                self.idle.remove(worker)
                self.busy[worker] = unit
            case Kill(worker=worker) | StopWorker(worker=worker):
                self.bury(worker)
            case Done() | PoolFailed():
                self.over = True

    def bury(self, worker):
        unit = self.busy.pop(worker, None)
        self.gone.setdefault(worker, unit.unit_id if unit else "")
        for crowd in (self.starting, self.idle):
            if worker in crowd:
                crowd.remove(worker)

    def begin(self):
        self.tell(Tick(now=self.now))
        return self

    def ready(self, *workers):
        for worker in workers or tuple(self.starting):
            self.starting.remove(worker)
            self.idle.append(worker)
            self.tell(WorkerReady(worker=worker, node="node"))

    def finish(self, worker, *, num_failed=0):
        unit = self.busy.pop(worker)
        self.idle.append(worker)
        report = UnitReport(unit_id=unit.unit_id, num_cells=unit.num_cells, num_failed=num_failed)
        self.tell(UnitFinished(worker=worker, unit_id=unit.unit_id, report=report))

    def fail(self, worker, *, out_of_memory=False):
        unit = self.busy.pop(worker)
        self.idle.append(worker)
        self.tell(UnitRaised(worker=worker, unit_id=unit.unit_id, error="ValueError: no", out_of_memory=out_of_memory))

    def die(self, worker, cause="crash"):
        self.bury(worker)
        self.tell(WorkerDied(worker=worker, cause=cause, detail=f"{worker} died"))

    def pass_time(self, seconds):
        self.now += seconds
        self.tell(Tick(now=self.now))

    def said(self, kind):
        return [command for command in self.log if isinstance(command, kind)]


def world(units, num_workers=1, **options):
    return World(Scheduler(units, num_workers=num_workers, **options)).begin()


def run_to_the_end(crowd, poison=frozenset(), limit=10_000):
    """Let every worker start and every unit finish, but for those that hold a poisonous cell: they kill."""
    for _ in range(limit):
        if crowd.over:
            return crowd.scheduler.outcome()
        if crowd.starting:
            crowd.ready()
        elif crowd.busy:
            worker = next(iter(crowd.busy))
            if cells_of(crowd.busy[worker]) & poison:
                crowd.die(worker)
            else:
                crowd.finish(worker)
    raise AssertionError("it never ended")


# Who gets what


def test_the_most_costly_unit_goes_first_and_the_cheapest_last():
    units = [make_unit(f"u{flops}", flops=flops, networks=(10 * flops, 10 * flops + 1)) for flops in (2, 5, 1, 4, 3)]
    outcome = run_to_the_end(world(units))
    assert [report.unit_id for report in outcome.finished] == ["u5", "u4", "u3", "u2", "u1"]


def test_a_worker_is_given_units_of_the_networks_it_holds():
    units = [make_unit(f"{pair}{i}", networks=pair) for i in range(6) for pair in ((0, 1), (2, 3))]
    crowd = world(units, num_workers=2)
    seen = {}
    crowd.ready("worker-1")
    crowd.ready("worker-2")
    crowd.finish("worker-1")
    crowd.die("worker-2")
    run_to_the_end(crowd)
    changes = 0
    for command in crowd.said(Submit):
        changes += seen.get(command.worker) not in (None, command.unit.networks)
        seen[command.worker] = command.unit.networks
    assert changes <= 2, "one at the end of each group of networks would do"


def test_a_unit_longer_than_a_workers_share_is_not_left_for_the_end():
    units = [make_unit("big", flops=100.0, networks=(2, 3)), *(make_unit(f"u{i}", flops=10.0) for i in range(8))]
    queue = UnitQueue(units)
    assert queue.take({0, 1}, num_workers=2).unit_id == "big"
    queue = UnitQueue(units)
    assert queue.take({0, 1}, num_workers=1).unit_id == "u0", "a single worker loses nothing by waiting"


def test_more_of_the_networks_held_beats_fewer():
    queue = UnitQueue([make_unit("one", flops=9, networks=(0, 5)), make_unit("both", flops=1, networks=(0, 1))])
    assert queue.take({0, 1}, num_workers=1).unit_id == "both"


def test_only_so_many_networks_count_as_held():
    chain = [make_unit(f"{i}{i + 1}", flops=10.0 - i, networks=(i, i + 1)) for i in range(3)]
    forgotten, held = make_unit("09", flops=2.0, networks=(0, 9)), make_unit("39", networks=(3, 9))
    outcome = run_to_the_end(world([*chain, forgotten, held], policy=Policy(max_held=2)))
    assert [report.unit_id for report in outcome.finished] == ["01", "12", "23", "39", "09"]


def test_a_workers_share_shrinks_with_what_waits():
    units = [make_unit("big", flops=30.0, networks=(2, 3)), *(make_unit(f"u{i}", flops=10.0) for i in range(8))]
    queue = UnitQueue(units)
    order = [queue.take({0, 1}, num_workers=2).unit_id for _ in range(9)]
    assert order.index("big") == 6, "60 for it alone, 50 for what is left by two"
    assert len(queue) == 0


def test_what_was_lost_first_is_tried_again_first():
    queue = UnitQueue([make_unit("fresh")])
    queue.put_back(make_unit("first"))
    queue.put_back(make_unit("second"))
    assert [unit.unit_id for unit in queue] == ["fresh", "first", "second"]
    assert [queue.take((), num_workers=1).unit_id for _ in range(3)] == ["fresh", "first", "second"]
    assert queue.take((), num_workers=1) is None


def test_the_same_events_give_the_same_commands():
    def script():
        crowd = world([make_unit(f"u{i}", networks=(i % 3, 5 - i % 3)) for i in range(12)], num_workers=3)
        crowd.ready()
        crowd.die("worker-2")
        crowd.fail("worker-1")
        run_to_the_end(crowd)
        return crowd.log

    assert script() == script()


def test_units_that_train_networks_are_units_like_any():
    spec, data = NetworkSpec(name="n", entry="n", architecture="a"), DataSpec(dataset="digits")
    crowd = world([TrainNetwork(unit_id=name, spec=spec, data=data) for name in ("a", "b")])
    crowd.ready()
    crowd.finish("worker-1")
    crowd.finish("worker-1")
    assert crowd.over
    assert [report.unit_id for report in crowd.scheduler.outcome().finished] == ["a", "b"]


# Workers


def test_there_are_never_more_workers_than_units():
    crowd = world([make_unit("a"), make_unit("b")], num_workers=8)
    assert len(crowd.starting) == 2


def test_workers_that_are_there_already_are_used_before_any_is_started():
    scheduler = Scheduler([make_unit("a"), make_unit("b")], num_workers=2, ready={"old": "node"}, starting=["late"])
    commands = scheduler.handle(Tick(now=0.0))
    assert [type(command) for command in commands] == [Submit]
    assert commands[0].worker == "old"
    assert scheduler.handle(WorkerReady(worker="late"))[0].worker == "late"


def test_nothing_to_do_is_done_without_a_worker():
    assert world([]).log == [Done()]


def test_a_worker_that_dies_is_replaced_while_there_is_work():
    crowd = world([make_unit("a"), make_unit("b")])
    crowd.ready()
    crowd.die("worker-1")
    assert crowd.starting == ["worker-2"]


def test_a_dead_worker_is_killed_before_its_successor_starts():
    """One that cannot be reached may still be writing."""
    crowd = world([make_unit("a"), make_unit("b")])
    crowd.ready()
    crowd.die("worker-1", cause="infrastructure")
    kinds = [type(command) for command in crowd.log[2:]]
    assert kinds.index(Kill) < kinds.index(StartWorker)


def test_workers_that_cannot_start_end_the_run_after_three_tries():
    crowd = world([make_unit("a")])
    for _ in range(3):
        crowd.die(crowd.starting[0], cause="init")
    assert crowd.log[-1] == PoolFailed(reason="worker-3 died")
    assert [unit.unit_id for unit in crowd.scheduler.outcome().unfinished] == ["a"]
    assert not crowd.said(Quarantine)


def test_workers_that_cannot_start_do_not_stop_those_that_can():
    crowd = world([make_unit(f"u{i}") for i in range(9)], num_workers=4)
    crowd.ready("worker-1")
    for _ in range(3):
        crowd.die(crowd.starting[0], cause="init")
    assert not crowd.starting, "no endless restarts"
    assert len(run_to_the_end(crowd).finished) == 9


def test_the_last_worker_that_could_start_gets_a_successor():
    crowd = world([make_unit(f"u{i}") for i in range(9)], num_workers=2)
    crowd.ready("worker-1")
    for _ in range(3):
        crowd.die(crowd.starting[0], cause="init")
    assert not crowd.starting
    crowd.die("worker-1")
    assert len(crowd.starting) == 1


def test_a_worker_that_starts_makes_up_for_those_that_could_not():
    crowd = world([make_unit(f"u{i}") for i in range(9)], num_workers=2)
    crowd.die("worker-1", cause="init")
    crowd.die("worker-2", cause="init")
    crowd.ready()
    crowd.die(crowd.starting[0], cause="init")
    crowd.die(crowd.starting[0], cause="init")
    assert len(crowd.starting) == 1


def test_nodes_that_vanish_while_workers_start_are_no_false_starts():
    crowd = world([make_unit("a")])
    for _ in range(20):
        crowd.die(crowd.starting[0], cause="infrastructure")
    assert len(run_to_the_end(crowd).finished) == 1


def test_idle_workers_are_let_go_only_after_their_time_and_only_without_work():
    crowd = world([make_unit("a"), make_unit("b")], num_workers=2, policy=Policy(idle_s=60.0))
    crowd.ready()
    crowd.finish("worker-2")
    crowd.pass_time(59.0)
    assert not crowd.said(StopWorker)
    crowd.pass_time(2.0)
    assert [command.worker for command in crowd.said(StopWorker)] == ["worker-2"]
    crowd.die("worker-1")
    assert len(crowd.starting) == 1, "the unit that was lost needs a worker again"


def test_a_worker_that_waits_for_a_place_is_not_let_go_while_there_is_work():
    crowd = world([make_unit(f"u{i}") for i in range(9)], num_workers=2, policy=Policy(idle_s=60.0))
    crowd.ready("worker-1")
    crowd.pass_time(1000.0)
    assert crowd.starting == ["worker-2"]


def test_workers_are_kept_by_default():
    crowd = world([make_unit("a"), make_unit("b")], num_workers=2)
    crowd.ready()
    crowd.finish("worker-2")
    crowd.pass_time(1e5)
    assert not any(command.worker == "worker-2" for command in crowd.said(StopWorker) + crowd.said(Kill))


# Errors, strikes, lost nodes


def test_an_error_is_not_tried_again():
    crowd = world([make_unit("a"), make_unit("b")])
    crowd.ready()
    crowd.fail("worker-1")
    outcome = run_to_the_end(crowd)
    assert [(failure.unit.unit_id, failure.reason) for failure in outcome.failed] == [("a", "ValueError: no")]
    assert [report.unit_id for report in outcome.finished] == ["b"]
    assert crowd.said(Fail)[0].error == "ValueError: no"


def test_out_of_memory_has_one_more_try_at_the_tail():
    crowd = world([make_unit("a", flops=9.0), make_unit("b"), make_unit("c")])
    crowd.ready()
    crowd.fail("worker-1", out_of_memory=True)
    crowd.finish("worker-1")
    crowd.finish("worker-1")
    assert crowd.busy["worker-1"].unit_id == "a"
    assert crowd.said(Submit)[-1].attempt == 2
    crowd.fail("worker-1", out_of_memory=True)
    assert [failure.unit.unit_id for failure in crowd.scheduler.outcome().failed] == ["a"]


def test_a_unit_of_one_cell_that_kills_three_workers_is_quarantined():
    crowd = world([make_unit("bad", flops=9.0), make_unit("good")], split=halve)
    outcome = run_to_the_end(crowd, poison={("bad", 0)})
    assert [failure.unit.unit_id for failure in outcome.quarantined] == ["bad"]
    assert "killed its worker 3 times" in outcome.quarantined[0].reason
    assert [command.unit.unit_id for command in crowd.said(Submit)] == ["bad", "good", "bad", "bad"]
    assert len(crowd.said(Retry)) == 2


def test_strikes_by_one_worker_alone_do_not_condemn_a_unit():
    """A worker that comes back under its name may be the one at fault."""
    policy = Policy(max_strikes=2, min_strike_workers=2)
    scheduler = Scheduler([make_unit("a")], num_workers=1, policy=policy, names=iter(["same", "same", "other"]))
    scheduler.handle(Tick(now=0.0))
    for expected in (Retry, Retry, Quarantine):
        name = "other" if expected is Quarantine else "same"
        scheduler.handle(WorkerReady(worker=name))
        commands = scheduler.handle(WorkerDied(worker=name, cause="crash"))
        assert expected in map(type, commands)


@pytest.mark.parametrize("poison", [{0}, {5}, {7}, {2, 6}])
def test_bisection_finds_the_cells_at_fault(poison):
    crowd = world([make_unit("u", num_cells=8)], split=halve)
    outcome = run_to_the_end(crowd, poison={("u", layer) for layer in poison})
    condemned = set().union(*(cells_of(failure.unit) for failure in outcome.quarantined))
    assert condemned == {("u", layer) for layer in poison}
    assert sum(report.num_cells for report in outcome.finished) == 8 - len(poison)
    if len(poison) == 1:
        assert len(crowd.said(Kill)) == 3 + 2 + 3, "three tries, one per further cut, three for the cell"


def test_a_unit_that_cannot_be_cut_is_quarantined_whole_after_three_tries():
    crowd = world([make_unit("u", num_cells=4)], split=lambda unit: None)
    outcome = run_to_the_end(crowd, poison={("u", 1)})
    assert [failure.unit.unit_id for failure in outcome.quarantined] == ["u"]
    assert len(crowd.said(Kill)) == 3


def test_a_half_that_cannot_be_cut_has_three_tries_too():
    crowd = world([make_unit("u", num_cells=4)], split=lambda unit: halve(unit) if unit.unit_id == "u" else None)
    outcome = run_to_the_end(crowd, poison={("u", 0)})
    assert [failure.unit.unit_id for failure in outcome.quarantined] == ["u/0"]
    assert len(crowd.said(Kill)) == 6
    assert len(crowd.said(Bisect)) == 1


def test_a_lost_node_is_never_a_strike():
    crowd = world([make_unit("u", num_cells=2)], split=halve)
    for _ in range(4):
        crowd.ready()
        crowd.die(next(iter(crowd.busy)), cause="infrastructure")
    for _ in range(2):
        crowd.ready()
        crowd.die(next(iter(crowd.busy)))
    outcome = run_to_the_end(crowd)
    assert len(outcome.finished) == 1
    assert not outcome.quarantined


def test_a_unit_lost_with_five_nodes_is_unavailable():
    crowd = world([make_unit("u", num_cells=2)], split=halve)
    for _ in range(5):
        crowd.ready()
        crowd.die(next(iter(crowd.busy)), cause="infrastructure")
    outcome = crowd.scheduler.outcome()
    assert outcome.quarantined[0].reason.startswith("unavailable: its worker or the store was lost 5 times")
    assert not crowd.said(Bisect)


def test_a_unit_past_its_deadline_costs_its_worker_counts_as_a_strike_and_has_twice_as_long_the_next_time():
    crowd = world([make_unit("u")], deadlines=DeadlineRule(first=lambda unit: 10.0))
    for allowed in (10.0, 20.0, 40.0):
        crowd.ready()
        crowd.pass_time(allowed - 1.0)
        assert crowd.busy
        crowd.pass_time(1.5)
    assert [command.reason for command in crowd.said(Kill)] == [f"no answer within {n} s" for n in (10, 20, 40)]
    assert "no answer within 40 s" in crowd.scheduler.outcome().quarantined[0].reason


def test_a_deadline_that_was_set_before_anything_was_known_becomes_the_tighter_one():
    crowd = world([make_unit("slow"), make_unit("quick"), make_unit("next")], num_workers=2)
    crowd.ready()
    crowd.pass_time(40.0)
    crowd.finish("worker-2")
    crowd.pass_time(20 * 40.0 - 41.0)
    assert not crowd.said(Kill)
    crowd.pass_time(2.0)
    assert [command.reason for command in crowd.said(Kill)] == ["no answer within 800 s"]
    assert crowd.busy["worker-2"].unit_id == "next", "it began later"


def test_deadlines_are_learned_from_the_slowest_unit_that_is_not_much_smaller():
    deadlines = Deadlines(DeadlineRule())
    unit = make_unit("u", flops=8e12)
    assert deadlines.allowed(unit) == generous_deadline(unit) == 3600.0 + 8000.0
    assert deadlines.learn(make_unit("tiny", flops=1e3), 5.0)
    assert deadlines.allowed(unit) == generous_deadline(unit), "5 s to get started say nothing"
    assert deadlines.learn(make_unit("large", flops=16e12), 200.0)
    assert deadlines.allowed(unit) == pytest.approx(20 * 100.0)
    assert not deadlines.learn(make_unit("another", flops=12e12), 300.0)
    assert deadlines.allowed(unit) == pytest.approx(20 * 200.0)
    assert not deadlines.learn(make_unit("quick", flops=12e12), 1.0)
    assert deadlines.allowed(unit) == pytest.approx(20 * 200.0), "the slowest counts"
    assert deadlines.allowed(unit, num_missed=2) == pytest.approx(80 * 200.0)


@given(
    seen=st.lists(st.tuples(st.floats(0, 1e18), st.floats(0, 1e5)), max_size=20),
    flops=st.floats(0, 1e18),
    num_missed=st.integers(0, 5),
)
def test_no_deadline_is_below_the_floor_or_below_twenty_times_what_a_unit_of_its_size_took(seen, flops, num_missed):
    deadlines = Deadlines(DeadlineRule())
    for cost, seconds in seen:
        deadlines.learn(make_unit("seen", flops=cost), seconds)
    allowed = deadlines.allowed(make_unit("u", flops=flops), num_missed=num_missed)
    assert allowed >= 600.0 * 2**num_missed
    alike = [seconds for cost, seconds in seen if max(cost, 1.0) / 2 <= max(flops, 1.0) <= max(cost, 1.0)]
    assert allowed >= max(alike, default=0.0) / 2 * 20 * 2**num_missed * (1 - 1e-9)


def test_a_report_that_comes_with_the_tick_of_its_deadline_counts():
    crowd = world([make_unit("u")], deadlines=DeadlineRule(first=lambda unit: 10.0))
    crowd.ready()
    report = UnitReport(unit_id="u")
    crowd.tell(UnitFinished(worker="worker-1", unit_id="u", report=report), Tick(now=1e6))
    assert crowd.scheduler.outcome().finished == (report,)


def test_an_answer_about_a_unit_that_the_worker_does_not_have_is_ignored():
    crowd = world([make_unit("u"), make_unit("v")])
    crowd.ready()
    crowd.tell(UnitFinished(worker="worker-1", unit_id="v", report=UnitReport(unit_id="v")))
    assert crowd.scheduler.outcome().finished == ()
    assert len(run_to_the_end(crowd).finished) == 2


def test_the_default_deadline_grows_with_the_cost():
    assert generous_deadline(make_unit("u", flops=0.0)) == 3600.0
    assert generous_deadline(make_unit("u", flops=1e12)) == 4600.0


# Stopping


def test_stop_lets_what_is_in_flight_finish_and_gives_out_no_more():
    crowd = world([make_unit(f"u{i}") for i in range(4)])
    crowd.ready()
    crowd.tell(Stop())
    assert not crowd.over
    crowd.finish("worker-1")
    outcome = crowd.scheduler.outcome()
    assert crowd.over
    assert (len(outcome.finished), len(outcome.unfinished)) == (1, 3)


def test_a_unit_lost_while_stopping_is_unfinished():
    crowd = world([make_unit("u")])
    crowd.ready()
    crowd.tell(Stop())
    crowd.die("worker-1")
    assert crowd.over
    assert [unit.unit_id for unit in crowd.scheduler.outcome().unfinished] == ["u"]


@pytest.mark.parametrize("how", ["raised", "failed cell", "quarantined"])
def test_fail_fast_stops_at_the_first_failure_of_any_kind(how):
    crowd = world(
        [make_unit(f"u{i}") for i in range(5)], fail_fast=True, policy=Policy(max_strikes=1, min_strike_workers=1)
    )
    crowd.ready()
    if how == "raised":
        crowd.fail("worker-1")
    elif how == "failed cell":
        crowd.finish("worker-1", num_failed=1)
    else:
        crowd.die("worker-1")
    assert crowd.over
    assert len(crowd.scheduler.outcome().unfinished) == 4


def test_without_fail_fast_everything_is_tried():
    crowd = world([make_unit(f"u{i}") for i in range(5)])
    crowd.ready()
    crowd.fail("worker-1")
    outcome = run_to_the_end(crowd)
    assert (len(outcome.finished), len(outcome.failed), outcome.unfinished) == (4, 1, ())


# Whatever happens


@dataclass(frozen=True)
class Chance:
    """What a simulated world does to its workers."""

    rng: random.Random
    poison: frozenset
    accidents: bool  # crashes, errors and hangs that are nobody's fault
    max_lost_nodes: int = 4  # in all, so that no unit can be lost with five

    def step(self, crowd):
        everyone = [*crowd.starting, *crowd.busy]
        worker = self.rng.choice(everyone)
        roll = self.rng.random()
        lost_nodes = sum(isinstance(command, Kill) and "lost" in command.reason for command in crowd.log)
        if crowd.gone and roll < 0.1:
            dead = self.rng.choice(sorted(crowd.gone))
            unit_id = crowd.gone[dead] or "u0"
            crowd.tell(UnitFinished(worker=dead, unit_id=unit_id, report=UnitReport(unit_id=unit_id)))
        elif roll < 0.2 and lost_nodes < self.max_lost_nodes:
            crowd.bury(worker)
            crowd.tell(WorkerDied(worker=worker, cause="infrastructure", detail="lost"))
        elif worker in crowd.starting:
            crowd.die(worker, "init") if self.accidents and roll < 0.4 else crowd.ready(worker)
        elif cells_of(crowd.busy[worker]) & self.poison:
            crowd.die(worker) if roll < 0.6 else self.hang(crowd, worker)
        elif not self.accidents or roll < 0.6:
            crowd.finish(worker)
        elif roll < 0.75:
            crowd.die(worker)
        elif roll < 0.9:
            crowd.fail(worker, out_of_memory=roll < 0.8)
        else:
            crowd.pass_time(self.rng.choice([1.0, 30.0]))

    def hang(self, crowd, worker):
        """Let time pass until the worker is killed, while the others get on with their work."""
        while worker in crowd.busy:
            for other in [name for name, unit in crowd.busy.items() if not cells_of(unit) & self.poison]:
                crowd.finish(other)
            crowd.pass_time(10.0)


def simulate(units, num_workers, chance):
    crowd = world(units, num_workers, split=halve, deadlines=DeadlineRule(first=lambda unit: 50.0, floor_s=50.0))
    for _ in range(20_000):
        if crowd.over:
            return crowd
        chance.step(crowd)
    raise AssertionError("it never ended")


def draw_units(rng, num_units):
    return [
        make_unit(
            f"u{i}", flops=rng.random(), networks=(rng.randrange(4), rng.randrange(4)), num_cells=rng.randint(1, 6)
        )
        for i in range(num_units)
    ]


def ended_cells(crowd, units):
    """Return how often each cell ended; finished units are found again by the names of those submitted."""
    by_id = {command.unit.unit_id: command.unit for command in crowd.said(Submit)}
    outcome: Outcome = crowd.scheduler.outcome()
    ended = [by_id[report.unit_id] for report in outcome.finished]
    ended += [failure.unit for failure in (*outcome.failed, *outcome.quarantined)]
    return Counter(cell for unit in (*ended, *outcome.unfinished) for cell in cells_of(unit))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), num_units=st.integers(0, 12), num_workers=st.integers(1, 5))
def test_every_cell_ends_exactly_once_whatever_happens(seed, num_units, num_workers):
    rng = random.Random(seed)
    units = draw_units(rng, num_units)
    chance = Chance(rng=rng, poison=frozenset(), accidents=True, max_lost_nodes=50)
    crowd = simulate(units, num_workers, chance)
    assert ended_cells(crowd, units) == Counter(cell for unit in units for cell in cells_of(unit))
    assert bool(crowd.scheduler.outcome().unfinished) == bool(crowd.said(PoolFailed))
    assert len(crowd.starting) + len(crowd.idle) <= num_workers


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), num_workers=st.integers(1, 5))
def test_poison_takes_no_innocent_cell_with_it(seed, num_workers):
    rng = random.Random(seed)
    units = draw_units(rng, 8)
    cells = sorted(cell for unit in units for cell in cells_of(unit))
    poison = frozenset(rng.sample(cells, rng.randint(0, 4)))
    crowd = simulate(units, num_workers, Chance(rng=rng, poison=poison, accidents=False))
    outcome = crowd.scheduler.outcome()
    assert set().union(*(cells_of(failure.unit) for failure in outcome.quarantined)) == poison
    assert not outcome.failed
    assert ended_cells(crowd, units) == Counter(cells)


def test_five_hundred_workers_that_die_now_and_then_are_kept_busy_at_well_over_100_units_a_second():
    rng = random.Random(0)
    units = [
        make_unit(f"u{i}", flops=rng.random(), networks=(rng.randrange(60), rng.randrange(60))) for i in range(5000)
    ]
    start = perf_counter()
    crowd = world(units, num_workers=512)
    while not crowd.over:
        crowd.ready()
        worker = rng.choice(list(crowd.busy))
        crowd.die(worker) if rng.random() < 0.02 else crowd.finish(worker)
    seconds = perf_counter() - start
    outcome = crowd.scheduler.outcome()
    assert len(outcome.finished) + len(outcome.quarantined) == 5000
    assert seconds < 25.0


def test_importing_the_scheduler_loads_nothing_heavy():
    code = "import stitchgrid.scheduler, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "numpy"} & set(loaded)
