"""Log messages of the package: shown on stderr as $STITCHGRID_LOG asks, and stored for each unit of work."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from stitchgrid.printable import printable

PACKAGE = logging.getLogger("stitchgrid")


def wanted_level(default: int) -> int:
    """Return the level that $STITCHGRID_LOG names, such as "debug"; `default` if it names none."""
    return logging.getLevelNamesMapping().get(os.environ.get("STITCHGRID_LOG", "").upper(), default)


class Printable(logging.Formatter):
    """Formats a record as text that cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines of a traceback."""
        return printable(super().format(record))


def show_on_stderr() -> None:
    """Show warnings on stderr, or the level that $STITCHGRID_LOG names."""
    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(name)s: %(message)s"))
    handler.setLevel(wanted_level(logging.WARNING))  # not the logger's: stored logs have a level of their own
    logging.getLogger().addHandler(handler)


class Notes(logging.Handler):
    """Keeps log messages as lines of text."""

    def __init__(self, level: int):
        super().__init__(level)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.lines.append(self.format(record))

    @property
    def text(self) -> str:
        """All lines so far."""
        return "".join(f"{line}\n" for line in self.lines)


@contextmanager
def taking_notes() -> Iterator[Notes]:
    """Keep what the package logs within the block: level INFO and above, and DEBUG if $STITCHGRID_LOG asks for it."""
    notes = Notes(min(logging.INFO, wanted_level(logging.INFO)))
    before = PACKAGE.level
    PACKAGE.setLevel(notes.level)
    PACKAGE.addHandler(notes)
    try:
        yield notes
    finally:
        PACKAGE.removeHandler(notes)
        PACKAGE.setLevel(before)
