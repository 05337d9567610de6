"""Runs on paper by the real scheduler: what must hold whatever goes wrong, and what failures cost."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from helpers_cluster import make_unit
from hypothesis import given, settings
from hypothesis import strategies as st

from stitchgrid.errors import InputError
from stitchgrid.scheduler import DeadlineRule, SimulationSettings, parse_settings, simulate

CALM = SimulationSettings(num_workers=16, workers_per_node=4, flops_per_second=1.0, start_s=0.0, spread=0.0)
ROUGH = replace(CALM, spread=1.0, start_s=20.0)


@pytest.fixture
def random():
    return Random(0)


def draw(rng, num_units, *, seconds=100.0):
    return [
        make_unit(
            f"u{i}",
            flops=seconds * rng.uniform(0.2, 1.8),
            num_cells=rng.randint(1, 9),
            networks=(rng.randrange(6), rng.randrange(6)),
        )
        for i in range(num_units)
    ]


def cells(pieces):
    return [(piece.unit_id, cell) for piece in pieces for cell in range(piece.start, piece.stop)]


def every_cell(units):
    return Counter((unit.unit_id, cell) for unit in units for cell in range(unit.num_cells))


@settings(max_examples=60, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    num_units=st.integers(0, 60),
    num_workers=st.integers(1, 20),
    rates=st.tuples(*[st.sampled_from([0.0, 1.0, 10.0])] * 3),
    seed=st.integers(0, 1000),
)
def test_every_cell_ends_exactly_once_whatever_goes_wrong(rng, num_units, num_workers, rates, seed):
    units = draw(rng, num_units)
    crashes, hangs, losses = rates
    chosen = replace(
        ROUGH,
        num_workers=num_workers,
        crashes_per_hour=crashes,
        hangs_per_hour=hangs,
        node_losses_per_hour=losses,
        num_poison=min(num_units, 3),
        seed=seed,
    )
    report = simulate(units, chosen)
    ended = Counter(cells([*report.finished, *report.quarantined, *report.unavailable]))
    assert ended == every_cell(units)
    assert not report.poison & set(cells(report.finished))
    assert report.num_attempts == len(report.finished) + report.num_lost


@settings(max_examples=40, deadline=None)
@given(rng=st.randoms(use_true_random=False), num_poison=st.integers(0, 6), seed=st.integers(0, 1000))
def test_exactly_the_poisonous_cells_are_quarantined(rng, num_poison, seed):
    units = draw(rng, 40)
    report = simulate(units, replace(ROUGH, num_poison=num_poison, seed=seed))
    assert set(cells(report.quarantined)) == report.poison
    assert len(report.poison) == num_poison
    assert Counter(cells([*report.finished, *report.quarantined])) == every_cell(units)


@settings(max_examples=40, deadline=None)
@given(rng=st.randoms(use_true_random=False), num_units=st.integers(1, 200))
def test_without_failures_the_run_is_as_short_as_longest_first_promises(rng, num_units):
    """The bound of Graham 1969, for independent units: affinity may cost something, but not more."""
    units = draw(rng, num_units)
    report = simulate(units, CALM)
    assert report.makespan_s <= (4 / 3) * report.bound_s + max(unit.flops for unit in units)
    assert report.lost_s == 0.0
    assert report.num_attempts == num_units
    assert report.useful_s == pytest.approx(sum(unit.flops for unit in units))


def test_without_failures_workers_are_kept_busy(random):
    report = simulate(draw(random, 2000), CALM)
    assert report.utilisation > 0.97
    assert report.makespan_s < 1.03 * report.bound_s


@pytest.mark.parametrize("what", ["crashes_per_hour", "node_losses_per_hour"])
def test_lost_work_grows_with_the_rate_of_failures(random, what):
    units = draw(random, 1500)
    lost = [simulate(units, replace(CALM, **{what: rate})).lost_s for rate in (0.0, 0.5, 2.0, 8.0)]
    assert lost == sorted(lost)
    assert lost[0] == 0.0
    assert lost[-1] > 4 * lost[1]


def test_a_hang_costs_its_deadline_and_no_unit(random):
    units = draw(random, 1500)
    rule = DeadlineRule(first=lambda unit: 4000.0, factor=20.0, floor_s=600.0)
    report = simulate(units, replace(CALM, hangs_per_hour=0.3, deadlines=rule))
    assert report.num_lost > 5
    assert sorted(cells(report.finished)) == sorted(every_cell(units))
    assert 600.0 <= report.lost_s / report.num_lost < 4000.0, "what was learned holds"


def test_stragglers_alone_lose_no_worker_to_a_deadline(random):
    """Some units take twenty times as long as others of their cost."""
    report = simulate(draw(random, 3000, seconds=1000.0), replace(CALM, spread=1.0))
    assert report.num_lost == 0


def test_the_same_seed_gives_the_same_run(random):
    units = draw(random, 300)
    chosen = replace(ROUGH, crashes_per_hour=2.0, node_losses_per_hour=1.0, hangs_per_hour=0.5, num_poison=3)
    assert str(simulate(units, chosen)) == str(simulate(units, chosen))
    assert simulate(units, chosen) != simulate(units, replace(chosen, seed=1))


def test_five_hundred_workers_and_fifty_thousand_units_are_played_through(random):
    units = [
        make_unit(f"u{i}", flops=random.uniform(20, 180), networks=(random.randrange(60), random.randrange(60)))
        for i in range(50_000)
    ]
    chosen = replace(
        SimulationSettings(), flops_per_second=1.0, crashes_per_hour=0.05, node_losses_per_hour=0.1, num_poison=5
    )
    report = simulate(units, chosen)
    assert len(report.finished) + len(report.quarantined) == 50_000
    assert report.poison <= set(cells(report.quarantined))
    assert report.utilisation > 0.9
    assert "512 workers" in str(report)


def test_more_poison_than_cells_is_refused():
    with pytest.raises(InputError, match="5 poisonous cells were wanted, but the units have 2; set num_poison lower"):
        simulate([make_unit("u", num_cells=2)], replace(CALM, num_poison=5))


def test_settings_are_read_from_a_text():
    found = parse_settings("num_workers=64, crashes_per_hour=0.5,num_poison=2")
    wanted = SimulationSettings(num_workers=64, crashes_per_hour=0.5, num_poison=2)
    assert SimulationSettings(**found) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers=3", "no setting 'workers'.*num_workers"),
        ("num_workers=many", "num_workers wants a number, got 'many'"),
        ("num_workers=0", "num_workers cannot be 0"),
        ("crashes_per_hour=-1", "crashes_per_hour cannot be -1"),
        ("spread", "spread wants a number, got ''"),
        ("crashes_per_hour=nan", "crashes_per_hour cannot be nan"),
        ("crashes_per_hour=inf", "crashes_per_hour cannot be inf"),
        ("num_workers=9999999999", "num_workers cannot be 9999999999"),
    ],
)
def test_settings_that_cannot_be_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_settings(text)
