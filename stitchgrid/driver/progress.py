"""Follows a stage as it runs: shows its progress, journals its attempts, and tells the heartbeat what goes on."""

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from threading import Lock
from time import monotonic
from typing import Any

from stitchgrid.cluster import Attempt, Progress
from stitchgrid.cluster.protocol import GIVEN_BACK
from stitchgrid.display import Stage
from stitchgrid.errors import StoreError
from stitchgrid.planning import planned_shard
from stitchgrid.store import Store

HAPPENED = ("worker_died", "retried", "bisected", "quarantined", "failed")  # events that the status counts


class StageProgress:
    """The observer of one stage of one launch."""

    def __init__(self, store: Store, sweep: str, launch_id: str, stage: Stage, *, num_done: int):
        self.store, self.sweep, self.launch_id, self.stage = store, sweep, launch_id, stage
        self.num_done = num_done  # before this launch
        self.workers: dict[str, dict[str, Any]] = {}  # by name: its node, what it has, what it did
        self.happened: Counter[str] = Counter()
        self._lock = Lock()

    def before_submit(self, attempts: list[Attempt]) -> None:
        """Journal attempts before they start, so that a crash leaves evidence of them."""
        entries = [{**_unit(one.unit_id), "worker": one.worker, "node": one.node} for one in attempts]
        self.store.journal(self.sweep, self.launch_id, entries)

    def on_event(self, event: Progress) -> None:
        """Record one event, and show it."""
        self._note(event)
        if event.kind == "finished" and event.report is not None:
            self.stage.advance(done=event.report.num_cells, failed=event.report.num_failed)
        elif event.kind in ("failed", "quarantined") and event.unit is not None:
            self.stage.advance(failed=event.unit.num_cells)
            self.stage.say(f"{event.kind}: {event.detail}")
        elif event.kind in ("worker_died", "retried", "bisected", "waiting", "node_unfit"):
            if event.kind == "worker_died" and event.unit is not None:
                self._keep_last_words(event, event.unit.unit_id)
            self.stage.say(f"{event.kind.replace('_', ' ')}: {event.detail}")

    def _keep_last_words(self, event: Progress, unit_id: str) -> None:
        """Log how a worker ended, since it could not do so itself."""
        more = f"; its process wrote to {event.log}" if event.log else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(StoreError):
            self.store.write_log(self.sweep, unit_id, f"{now} {event.worker} died at this unit: {event.detail}{more}\n")

    def tell(self) -> dict[str, Any]:
        """Return what is going on now, for the heartbeat."""
        with self._lock:
            workers = [{"worker": name, **about} for name, about in self.workers.items()]
            happened = dict(self.happened)
        return {
            "stage": self.stage.title,
            "running": [worker for worker in workers if "unit" in worker],
            "workers": workers,
            "happened": happened,
            "num_done": self.stage.done,
            "num_failed": self.stage.failed,
            "num_total": self.stage.total,
            "num_done_before": self.num_done,
            "seconds": round(monotonic() - self.stage.started, 1),
            "noun": self.stage.noun,
        }

    def _note(self, event: Progress) -> None:
        with self._lock:
            if event.kind in HAPPENED:
                self.happened[event.kind] += 1
            if event.kind in ("worker_died", "worker_stopped"):
                self.workers.pop(event.worker, None)
            elif event.kind in GIVEN_BACK and event.unit is not None:
                self._free(event.unit.unit_id)
            elif event.kind in ("worker_started", "worker_ready", "submitted", "finished"):
                self._note_worker(event, self.workers.setdefault(event.worker, {"state": "starting", "num_units": 0}))

    def _note_worker(self, event: Progress, worker: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if event.node:
            worker["node"] = event.node
        if event.kind == "submitted" and event.unit is not None:
            worker |= {"state": "busy", **_unit(event.unit.unit_id), "since": now}
        elif event.kind == "finished":
            worker["num_units"] += 1
            worker["last_finished"] = now
            _idle(worker)
        elif event.kind == "worker_ready":
            _idle(worker)

    def _free(self, unit_id: str) -> None:
        for worker in self.workers.values():
            if worker.get("unit") == unit_id:
                _idle(worker)


def _idle(worker: dict[str, Any]) -> None:
    worker["state"] = "ready"
    for key in ("unit", "shard", "since"):
        worker.pop(key, None)


def _unit(unit_id: str) -> dict[str, str]:
    return {"unit": unit_id, "shard": planned_shard(unit_id)}
