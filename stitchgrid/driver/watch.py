"""Follows a stage as it runs: progress for people, the journal and the heartbeat for everybody else."""

import os
import platform
from datetime import UTC, datetime
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import Any, Self

from stitchgrid.cluster import Attempt, Progress
from stitchgrid.display import Stage
from stitchgrid.plan import planned_shard
from stitchgrid.store import Store

HEARTBEAT_SECONDS = 5.0


class Watch:
    """The observer of one stage of one launch; within `with`, a thread keeps the heartbeat going."""

    def __init__(self, store: Store, sweep: str, launch_id: str, stage: Stage, *, num_done: int):
        self.store, self.sweep, self.launch_id, self.stage = store, sweep, launch_id, stage
        self.num_done = num_done  # before this launch
        self.running: dict[str, dict[str, Any]] = {}  # worker -> what it has
        self._over = Event()
        self._lock = Lock()
        self._thread = Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._beat()

    def before_submit(self, attempts: list[Attempt]) -> None:
        """Journal attempts before they start, so that a crash leaves evidence of them."""
        entries = [{**_unit(one.unit_id), "worker": one.worker, "node": one.node} for one in attempts]
        self.store.journal(self.sweep, self.launch_id, entries)

    def on_event(self, event: Progress) -> None:
        """Take note of one thing that happened."""
        self._note_running(event)
        if event.kind == "finished" and event.report is not None:
            self.stage.advance(done=event.report.num_cells, failed=event.report.num_failed)
        elif event.kind in ("failed", "quarantined") and event.unit is not None:
            self.stage.advance(failed=event.unit.num_cells)
            self.stage.say(f"{event.kind}: {event.detail}")
        elif event.kind in ("worker_died", "retried", "bisected", "waiting", "node_unfit"):
            self.stage.say(f"{event.kind.replace('_', ' ')}: {event.detail}")
        self.stage.tick()

    def _note_running(self, event: Progress) -> None:
        with self._lock:
            if event.kind == "submitted" and event.unit is not None:
                since = datetime.now(UTC).isoformat(timespec="seconds")
                self.running[event.worker] = {**_unit(event.unit.unit_id), "worker": event.worker, "since": since}
            elif event.kind in ("finished", "worker_died"):
                self.running.pop(event.worker, None)
            elif event.kind == "failed" and event.unit is not None:
                unit_id = event.unit.unit_id
                self.running = {who: what for who, what in self.running.items() if what["unit"] != unit_id}

    def _keep_beating(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        """Say in the store what is going on now."""
        with self._lock:
            running = list(self.running.values())
        self.store.write_heartbeat(
            self.sweep,
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "launch": self.launch_id,
                "host": platform.node(),
                "pid": os.getpid(),
                "stage": self.stage.title,
                "is_over": self._over.is_set(),
                "running": [] if self._over.is_set() else running,
                "num_done": self.stage.done,
                "num_failed": self.stage.failed,
                "num_total": self.stage.total,
                "num_done_before": self.num_done,
                "seconds": round(monotonic() - self.stage.started, 1),
                "noun": self.stage.noun,
            },
        )


def _unit(unit_id: str) -> dict[str, str]:
    return {"unit": unit_id, "shard": planned_shard(unit_id)}
