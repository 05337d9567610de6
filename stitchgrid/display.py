"""Shows a running launch on stderr: a progress bar at a terminal, and a line from time to time elsewhere."""

from contextlib import suppress
from threading import Event, Thread
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from stitchgrid.printable import printable

SECONDS_PER_LINE = 60.0  # between progress lines without a terminal
SECONDS_IN_NOTEBOOK = 5.0  # between progress lines in a notebook


class Rate(ProgressColumn):
    """Items per second, and the time left."""

    def render(self, task: Task) -> Text:
        """Return "3.2 cells/s, 0:41 left"."""
        done, expected = task.completed, task.fields["expected"]
        if not done and expected is not None:
            return Text(expected_text(expected))
        return Text(pace(done, task.total or 0, task.elapsed or 0.0, task.fields["noun"]))


def pace(done: float, total: float, seconds: float, noun: str) -> str:
    """Return rate and time left in words; nothing before the first item is done.

    >>> pace(30, 120, 10.0, "cells")
    '3.0 cells/s, 0:00:30 left'
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    shown = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
    return f"{shown} {noun}/s, {clock((total - done) / rate)} left"


def expected_text(seconds: float) -> str:
    """Return in words how long a stage is expected to take.

    >>> expected_text(441)
    'about 0:07:21 in all'
    """
    return f"about {clock(seconds)} in all"


def clock(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds.

    >>> clock(3725.4)
    '1:02:05'
    """
    whole = round(max(seconds, 0.0))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Display:
    """Shows messages, and the progress of one stage at a time; shows nothing if it is quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)

    def say(self, text: str) -> None:
        """Show one line (or several) of text."""
        _show(self.console, text)

    def stage(self, title: str, total: int, noun: str, *, expected: float | None = None) -> "Stage":
        """Return a context in which `total` items are counted; `expected` are the seconds that they may take."""
        return Stage(self.console, title, total, noun, expected=expected)


class Stage:
    """The progress of one stage."""

    def __init__(self, console: Console, title: str, total: int, noun: str, *, expected: float | None = None):
        self.console, self.title, self.total, self.noun, self.expected = console, title, total, noun, expected
        self.done = self.failed = 0
        self.seconds_per_line = SECONDS_IN_NOTEBOOK if console.is_jupyter else SECONDS_PER_LINE
        self.started = self.line_at = self.ended_at = monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=total, noun=noun, expected=expected)
        self._is_over = Event()
        self._lines = Thread(target=self._write_lines, name="progress-lines", daemon=True)

    def __enter__(self) -> "Stage":
        self.progress.start()
        if not self.console.is_terminal:
            if self.expected is not None:
                self._line()
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()
        self._is_over.set()
        if not self.console.is_terminal:
            self._lines.join()
            if self.line_at < self.ended_at:
                self._line()

    def advance(self, done: int = 0, failed: int = 0) -> None:
        """Count items that ended."""
        self.done += done
        self.failed += failed
        self.ended_at = monotonic()
        self.progress.update(self.task, completed=self.done + self.failed)

    def say(self, text: str) -> None:
        """Show one line beside the bar."""
        _show(self.progress.console, text)

    def _write_lines(self) -> None:
        """Show now and then where things stand, in a thread of its own: one item may take long."""
        while not self._is_over.wait(self.seconds_per_line):
            self._line()

    def _line(self) -> None:
        self.line_at = monotonic()
        ended = self.done + self.failed
        rest = pace(ended, self.total, self.line_at - self.started, self.noun)
        if not ended and self.expected is not None:
            rest = expected_text(self.expected)
        failed = f", {self.failed} failed" if self.failed else ""
        _show(self.console, f"{self.title}: {ended}/{self.total} {self.noun}{failed}{', ' + rest if rest else ''}")


def _show(console: Console, text: str) -> None:
    """Print lines; if stderr is closed, the work goes on."""
    with suppress(OSError, ValueError):
        console.print(Text(printable(text)), soft_wrap=True)
