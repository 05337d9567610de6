"""Metrics of a run for the dashboard of a Ray cluster, and for programs that scrape them."""

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from time import monotonic
from typing import Any

from stitchgrid.cluster.protocol import GIVEN_BACK, OnEvent, Progress

TAGS = ("sweep",)
SECONDS = [1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]  # boundaries of the histogram


class Metrics:
    """Counts the progress events of a run; a cluster whose metrics are off ignores the counts."""

    def __init__(self, kinds: Any = None):
        """Make the metrics; `kinds` has the classes Counter, Gauge and Histogram; None: those of Ray."""
        kinds = kinds or import_module("ray.util.metrics")

        def make(kind: str, name: str, description: str, **options: Any) -> Any:
            return getattr(kinds, kind)(f"stitchgrid_{name}", description=description, tag_keys=TAGS, **options)

        self.done = make("Counter", "cells_done", "Cells that got values")
        self.failed = make("Counter", "cells_failed", "Cells that ended with an error")
        self.retried = make("Counter", "units_retried", "Attempts that were lost, after which the unit is tried again")
        self.quarantined = make("Counter", "units_quarantined", "Units that were given up")
        self.busy = make("Gauge", "workers_busy", "Workers that have a unit")
        self.seconds = make("Histogram", "unit_seconds", "Time from a unit's submission to its end", boundaries=SECONDS)

    def observing(self, on_event: OnEvent, *, sweep: str) -> OnEvent:
        """Return a callback that counts an event and then passes it to `on_event`."""
        count = _Count(self, {"sweep": sweep})

        def observe(event: Progress) -> None:
            with suppress(Exception):  # a failure of metrics must not end a run
                count(event)
            on_event(event)

        return observe


class _Count:
    """Updates the metrics from the events of one run."""

    def __init__(self, metrics: Metrics, tags: dict[str, str], clock: Callable[[], float] = monotonic):
        self.metrics, self.tags, self.clock = metrics, tags, clock
        self.since: dict[str, tuple[str, float]] = {}  # worker -> its unit, and the time of submission
        metrics.busy.set(0, tags)

    def __call__(self, event: Progress) -> None:
        metrics, tags = self.metrics, self.tags
        if event.kind == "submitted" and event.unit is not None:
            self.since[event.worker] = event.unit.unit_id, self.clock()
        elif event.kind == "finished" and event.report is not None:
            self._add(metrics.done, event.report.num_cells)
            self._add(metrics.failed, event.report.num_failed)
            if event.worker in self.since:
                metrics.seconds.observe(self.clock() - self.since[event.worker][1], tags)
        elif event.kind in ("failed", "quarantined") and event.unit is not None:
            self._add(metrics.failed, event.unit.num_cells)
            self._add(metrics.quarantined, int(event.kind == "quarantined"))
        elif event.kind == "retried":
            self._add(metrics.retried, 1)
        self._forget(event)
        if event.kind != "tick":
            metrics.busy.set(len(self.since), tags)

    def _add(self, counter: Any, amount: int) -> None:
        if amount:  # Ray refuses to add 0
            counter.inc(amount, self.tags)

    def _forget(self, event: Progress) -> None:
        """Forget the worker that has its unit no longer; events of units that were given back name only the unit."""
        if event.kind in ("finished", "worker_died"):
            self.since.pop(event.worker, None)
        elif event.kind in GIVEN_BACK and event.unit is not None:
            ended = event.unit.unit_id
            self.since = {worker: has for worker, has in self.since.items() if has[0] != ended}
