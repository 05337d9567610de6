"""Writes into the store, every few seconds, that a launch is alive and what it does; notices if another takes over."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self

from stitchgrid.errors import StoreError
from stitchgrid.store import Claim, Store

HEARTBEAT_SECONDS = 5.0


class Heartbeat:
    """The heartbeat of one launch, kept going by a thread within `with`."""

    def __init__(self, store: Store, sweep: str, claim: Claim, *, on_lost: Callable[[], None]):
        self.store, self.sweep, self.claim = store, sweep, claim
        self.successor: Claim | None = None  # who has taken the sweep over
        self._on_lost = on_lost
        self._tell: Callable[[], Mapping[str, Any]] = dict
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
        if self.successor is None:
            self._beat_if_possible()

    @contextmanager
    def telling(self, tell: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Let the heartbeat say what `tell` returns, from any thread, until the block ends."""
        self._tell = tell
        self._beat_if_possible()
        try:
            yield
        finally:
            self._beat_if_possible()
            self._tell = dict

    def require_lease(self) -> None:
        """Raise a StoreError if another launch has taken the sweep over."""
        if self.successor is not None:
            raise StoreError(
                f"sweep {self.sweep!r} was taken over by {self.successor}; this launch has stopped, and what it "
                "finished is kept."
            )

    def _keep_beating(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            self._beat_if_possible()

    def _beat_if_possible(self) -> None:
        try:
            self._beat()
        except StoreError:  # the store may come back; writes that matter raise their own errors
            return

    def _beat(self) -> None:
        with self._lock:
            if self.successor is not None:
                return
            self.successor = self.store.leases.successor(self.sweep, self.claim)
            if self.successor is None:
                self.store.write_heartbeat(self.sweep, self._heartbeat())
                return
        self._on_lost()

    def _heartbeat(self) -> dict[str, Any]:
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "launch": self.claim.launch,
            "host": platform.node(),
            "pid": os.getpid(),
            "is_over": self._over.is_set(),
            "running": [],
            **({} if self._over.is_set() else self._tell()),
        }
