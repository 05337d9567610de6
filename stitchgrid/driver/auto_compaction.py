"""Compacts a store's many small parts while a launch computes more of them."""

from collections.abc import Callable
from threading import Thread

from stitchgrid.errors import StoreError
from stitchgrid.store import MANY_PARTS, Store


class AutoCompaction:
    """Compacts a store, in a thread of its own, each time the launch has written `loose_parts` parts."""

    def __init__(self, store: Store, say: Callable[[str], None], *, loose_parts: int = MANY_PARTS):
        self.store, self.say, self.loose_parts = store, say, loose_parts
        self._num_written = 0
        self._thread: Thread | None = None

    def part_written(self) -> None:
        """Count one more written part, and start a compaction if there are enough."""
        self._num_written += 1
        if self._num_written >= self.loose_parts and (self._thread is None or not self._thread.is_alive()):
            self._num_written = 0
            self._thread = Thread(target=self._compact, daemon=True)  # may be interrupted at any point
            self._thread.start()

    def finish(self) -> None:
        """Wait for a running compaction, then compact the parts that are left if they are many."""
        if self._thread is not None:
            self._thread.join()
        self._compact()

    def _compact(self) -> None:
        try:
            self.store.compact_if_many(self.loose_parts)
        except StoreError as problem:  # the parts stay as they are, and stay readable
            self.say(f"the store could not be compacted: {problem}")
