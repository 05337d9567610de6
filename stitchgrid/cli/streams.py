"""Make commands robust against stdout and stderr that are closed, full, slow or of another encoding."""

import io
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Thread
from time import monotonic
from typing import TextIO

from stitchgrid.errors import StitchgridError

MOST_WAITING = 1 << 20  # most characters that wait for a slow reader of stderr; further messages are left out
SETTLE_S = 1.0  # longest wait for a slow reader of stderr, before something is written to stdout
LAST_S = 5.0  # longest wait at the end of a command


class OutputError(StitchgridError):
    """An answer could not be written to stdout."""


class Patient(io.TextIOBase):
    """A text stream for messages: writing never fails and never waits, even if the reader is slow or gone.

    A thread writes to the file descriptor. Characters that its encoding lacks become `?`.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self._descriptor = stream.fileno()
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._waiting: deque[str] = deque()
        self._num_waiting = self._num_left_out = 0
        self._is_writing, self._is_gone = False, False
        self._changed = Condition()
        self._thread = Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the underlying stream."""
        return self._encoding

    def fileno(self) -> int:
        """Return the file descriptor, from which libraries read the width of the terminal."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the stream is a terminal that is still there."""
        return not self._is_gone and os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Queue text for writing; it is left out if too much waits, or if the reader is gone.

        Raises:
            TypeError: If it is not text: libraries test in this way whether a stream takes bytes.
        """
        if not isinstance(text, str):
            raise TypeError(f"wanted text, got {type(text).__name__}")
        with self._changed:
            if self._is_gone:
                return len(text)
            if self._num_waiting + len(text) > MOST_WAITING:
                self._num_left_out += 1
            else:
                self._waiting.append(text)
                self._num_waiting += len(text)
            self._changed.notify_all()
        return len(text)

    def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait until everything is written, for at most `seconds`."""
        end = monotonic() + seconds
        with self._changed:
            while (self._waiting or self._is_writing) and not self._is_gone:
                if (left := end - monotonic()) <= 0 or not self._changed.wait(left):
                    return

    def _keep_writing(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                text = "".join(self._waiting)
                if self._num_left_out:
                    text += f"[{self._num_left_out} messages were left out: the reader was too slow]\n"
                self._waiting.clear()
                self._num_waiting = self._num_left_out = 0
                self._is_writing = True
            is_gone = not self._write(text.encode(self._encoding, "replace"))
            with self._changed:
                self._is_writing, self._is_gone = False, is_gone
                self._changed.notify_all()
            if is_gone:
                return

    def _write(self, data: bytes) -> bool:
        """Write bytes; return whether the descriptor can still be written."""
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            return False
        return True


class Closed(io.TextIOBase):
    """Replaces a stream that was closed when the command started."""

    def __init__(self, name: str, *, fails: bool):
        self.name, self.fails = name, fails

    def writable(self) -> bool:
        """Return True: the error, if any, comes from `write`."""
        return True

    def write(self, text: str | bytes, /) -> int:
        """Write nothing.

        Raises:
            OutputError: If the stream is stdout and there is something to write.
        """
        if self.fails and text:
            raise OutputError(f"cannot write the answer: {self.name} is closed; name a file with --out, or open it.")
        return len(text)

    @property
    def buffer(self) -> "Closed":
        """The stream for bytes: this one."""
        return self


@contextmanager
def robust_streams() -> Iterator[None]:
    """Within the block, messages on stderr never stop a command, and stdout replaces characters that it lacks."""
    before = sys.stdout, sys.stderr
    if sys.stdout is None:
        sys.stdout = Closed("stdout", fails=True)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is None:
        sys.stderr = Closed("stderr", fails=False)
    else:
        with suppress(OSError, ValueError):  # the stream has no descriptor
            sys.stderr = Patient(sys.stderr)
    try:
        yield
    finally:
        settle(LAST_S)
        sys.stdout, sys.stderr = before


def settle(seconds: float = SETTLE_S) -> None:
    """Wait, for at most `seconds`, until the messages written to stderr are shown."""
    if isinstance(sys.stderr, Patient):
        sys.stderr.settle(seconds)


@contextmanager
def answering() -> Iterator[None]:
    """Turn failures of stdout within the block into one clear error.

    Raises:
        OutputError: If stdout cannot be written.
        BrokenPipeError: If the reader of a pipe is gone, which is no failure.
    """
    settle()
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head`: the reader has all that it wants
        abandon_stdout()
        raise
    except OSError as problem:
        abandon_stdout()
        raise OutputError(f"cannot write the answer to stdout: {problem.strerror or problem}.") from problem


def abandon_stdout() -> None:
    """Discard what is still buffered for stdout, so that flushing it at exit raises no further error."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def going_on() -> Iterator[None]:
    """Do not fail if the block cannot write to stdout: the command's work is done; stderr says why it is not shown."""
    try:
        yield
    except BrokenPipeError:
        pass
    except OutputError as problem:
        sys.stderr.write(f"{problem}\n")
