"""What a signal does to a launch: the first leaves it some time to finish running units, a second one ends it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from stitchgrid.cluster import Executor

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Shutdown:
    """Turns SIGINT, SIGTERM (of Slurm or Kubernetes before a machine is taken away) and SIGHUP into an orderly end.

    SIGHUP comes when a terminal is closed; where it is ignored, as under nohup, it stays so.

    While units run, the first signal asks the run to end; a second signal, or the end of `seconds` after the first,
    raises KeyboardInterrupt. While no units run, the first signal raises it. Only the main thread gets signals.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]):
        self.seconds, self.say = seconds, say
        self.is_draining = False
        self._executor: Executor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals within the block, and put back what handled them before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP]
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def stopping(self, executor: Executor) -> Iterator[None]:
        """Let the first signal within the block stop an executor's run; afterwards KeyboardInterrupt is raised."""
        self._executor = executor
        try:
            yield
        finally:
            self._executor = None
        if self.is_draining:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Ask the current run, if any, to end after the units that are running; may be called from any thread."""
        if (executor := self._executor) is not None:
            executor.request_stop()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._executor is None or self.is_draining:
            raise KeyboardInterrupt
        self.is_draining = True
        if self.seconds <= 0:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        self._executor.request_stop()
        again = "Ctrl-C again" if number == signal.SIGINT else "the signal again"
        self.say(
            f"\nStopping: what is in flight has {self.seconds:g} s to finish and is given up then ({again}: at once)."
        )

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt
