"""Merges a store's many small parts while a launch goes on, beside its work."""

from collections.abc import Callable
from threading import Thread

from stitchgrid.errors import StoreError
from stitchgrid.store import MANY_PARTS, Store


class AutoCompaction:
    """Compacts a store each time so many parts were written, in a thread: units are handed out meanwhile."""

    def __init__(self, store: Store, say: Callable[[str], None], *, loose_parts: int = MANY_PARTS):
        self.store, self.say, self.loose_parts = store, say, loose_parts
        self._num_written = 0
        self._thread: Thread | None = None

    def part_written(self) -> None:
        """Take note of one more part."""
        self._num_written += 1
        if self._num_written >= self.loose_parts and (self._thread is None or not self._thread.is_alive()):
            self._num_written = 0
            self._thread = Thread(target=self._compact, daemon=True)  # safe to be cut off at any point
            self._thread.start()

    def finish(self) -> None:
        """Wait for a compaction that is on, and compact what is left if it is much."""
        if self._thread is not None:
            self._thread.join()
        self._compact()

    def _compact(self) -> None:
        try:
            self.store.compact_if_many(self.loose_parts)
        except StoreError as problem:  # the parts stay as they are, and are as good
            self.say(f"the store could not be compacted: {problem}")
