"""What a run tells is counted, by metrics that keep what they are given."""

import pytest
from helpers_cluster import make_unit

from stitchgrid.cluster.metrics import Metrics, _Count
from stitchgrid.cluster.protocol import Progress
from stitchgrid.records import UnitReport


class Kinds:
    """Stands in for ray.util.metrics."""

    def __init__(self):
        self.made = {}

    def _kind(self, name, *, description, tag_keys, boundaries=()):
        assert tag_keys == ("sweep",)
        self.made[name.removeprefix("stitchgrid_")] = metric = Metric()
        return metric

    Counter = Gauge = Histogram = property(lambda self: self._kind)


class Metric:
    def __init__(self):
        self.total, self.calls = 0, []

    def inc(self, amount, tags):
        assert amount > 0, "Ray refuses it"
        self.total += amount
        self.calls.append(tags)

    def set(self, value, tags):
        self.total = value
        self.calls.append(tags)

    observe = inc


@pytest.fixture
def kinds():
    return Kinds()


def test_what_a_run_tells_is_counted_and_told_on(kinds):
    told = []
    observe = Metrics(kinds).observing(told.append, sweep="depths")
    units = [make_unit(name, num_cells=4) for name in "abcd"]

    def submit(worker, unit):
        observe(Progress(kind="submitted", worker=worker, unit=unit))

    for worker, unit in zip("1234", units, strict=True):
        submit(worker, unit)
    assert kinds.made["workers_busy"].total == 4
    report = UnitReport(unit_id=units[0].unit_id, num_cells=3, num_failed=1)
    observe(Progress(kind="finished", worker="1", unit=units[0], report=report))
    observe(Progress(kind="failed", unit=units[1], detail="ValueError"))
    observe(Progress(kind="worker_died", worker="3", unit=units[2]))
    observe(Progress(kind="retried", unit=units[2]))
    submit("1", units[2])
    observe(Progress(kind="tick"))
    assert kinds.made["workers_busy"].total == 2
    observe(Progress(kind="worker_died", worker="1", unit=units[2]))
    observe(Progress(kind="quarantined", unit=units[2]))
    totals = {name: metric.total for name, metric in kinds.made.items() if name != "unit_seconds"}
    assert totals == {
        "cells_done": 3,
        "cells_failed": 1 + 4 + 4,
        "units_retried": 1,
        "units_quarantined": 1,
        "workers_busy": 1,
    }
    assert len(kinds.made["unit_seconds"].calls) == 1
    assert {tags["sweep"] for metric in kinds.made.values() for tags in metric.calls} == {"depths"}
    assert len(told) == 12


@pytest.mark.parametrize("kind", ["failed", "retried", "bisected", "quarantined"])
def test_a_worker_that_gave_its_unit_back_is_not_busy(kinds, kind):
    observe, unit = Metrics(kinds).observing(lambda _: None, sweep="depths"), make_unit("a")
    observe(Progress(kind="submitted", worker="1", unit=unit))
    observe(Progress(kind=kind, unit=unit))
    assert kinds.made["workers_busy"].total == 0


def test_metrics_that_fail_cost_nothing(kinds):
    told = []
    metrics = Metrics(kinds)
    observe = metrics.observing(told.append, sweep="depths")
    kinds.made["units_retried"].inc = None
    observe(Progress(kind="retried", unit=make_unit("a")))
    assert [event.kind for event in told] == ["retried"]


def test_an_observer_that_fails_is_heard(kinds):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Metrics(kinds).observing(stop, sweep="depths")(Progress(kind="tick"))


def test_ray_has_what_is_asked_for():
    metrics = Metrics()
    _Count(metrics, {"sweep": "depths"})(Progress(kind="retried", unit=make_unit("a")))  # an observer hides errors
    assert metrics.retried.info["tag_keys"] == ("sweep",)
