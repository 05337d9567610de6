"""Running the forward of a user's network: what it prints goes to stderr, and its errors become one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from stitchgrid.errors import is_out_of_memory, message_of

LONGEST = 300  # characters of an error's text
FAILURES = (Exception, SystemExit)  # exceptions that a network's forward may raise


@contextmanager
def quietly() -> Iterator[None]:
    """Let what is printed within the block go to stderr: stdout is for results."""
    with redirect_stdout(sys.stderr):
        yield


def error_line(problem: BaseException) -> str:
    """Return an error's type and text in one line.

    >>> error_line(ValueError("no such size\\n  at: 3"))
    'ValueError: no such size at: 3'
    """
    text = " ".join(message_of(problem).split())
    if len(text) > LONGEST and not is_out_of_memory(problem):  # which is recognised by its text
        text = f"{text[:LONGEST]}..."
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__
