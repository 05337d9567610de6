"""Follows a stage as it runs: progress for people, the journal and the heartbeat for everybody else."""

import os
import platform
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from stitchgrid.cluster import Attempt, Progress
from stitchgrid.display import Stage
from stitchgrid.store import Store

HEARTBEAT_SECONDS = 5.0


class Watch:
    """The observer of one stage of one launch."""

    def __init__(self, store: Store, sweep: str, launch_id: str, stage: Stage, *, num_done: int):
        self.store, self.sweep, self.launch_id, self.stage = store, sweep, launch_id, stage
        self.num_done = num_done  # before this launch
        self.running: dict[str, dict[str, Any]] = {}  # worker -> what it has
        self._beat_at = -HEARTBEAT_SECONDS

    def before_submit(self, attempts: list[Attempt]) -> None:
        """Journal attempts before they start, so that a crash leaves evidence of them."""
        self.store.journal(
            self.sweep,
            self.launch_id,
            [{"unit": one.unit_id, "worker": one.worker, "node": one.node} for one in attempts],
        )

    def on_event(self, event: Progress) -> None:
        """Take note of one thing that happened."""
        if event.kind == "submitted" and event.unit is not None:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            self.running[event.worker] = {"unit": event.unit.unit_id, "worker": event.worker, "since": since}
        elif event.kind in ("finished", "worker_died"):
            self.running.pop(event.worker, None)
        if event.kind == "finished" and event.report is not None:
            self.stage.advance(done=event.report.num_cells, failed=event.report.num_failed)
        elif event.kind in ("failed", "quarantined") and event.unit is not None:
            self.running = {who: what for who, what in self.running.items() if what["unit"] != event.unit.unit_id}
            self.stage.advance(failed=event.unit.num_cells)
            self.stage.say(f"{event.kind}: {event.detail}")
        elif event.kind in ("worker_died", "retried", "bisected", "waiting"):
            self.stage.say(f"{event.kind.replace('_', ' ')}: {event.detail}")
        self.stage.tick()
        if monotonic() - self._beat_at >= HEARTBEAT_SECONDS:
            self.beat()

    def beat(self, *, is_over: bool = False) -> None:
        """Say in the store what is going on now."""
        self._beat_at = monotonic()
        self.store.write_heartbeat(
            self.sweep,
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "launch": self.launch_id,
                "host": platform.node(),
                "pid": os.getpid(),
                "stage": self.stage.title,
                "is_over": is_over,
                "running": [] if is_over else list(self.running.values()),
                "num_done": self.stage.done,
                "num_failed": self.stage.failed,
                "num_total": self.stage.total,
                "num_done_before": self.num_done,
                "seconds": round(monotonic() - self.stage.started, 1),
                "noun": self.stage.noun,
            },
        )
