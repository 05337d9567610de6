"""stdout and stderr as commands find them: closed, full, slow, of another encoding. Work goes on without a reader."""

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

MOST_WAITING = 1 << 20  # characters that wait for a reader of stderr; what comes then is left out
SETTLE_S = 1.0  # to wait for a slow reader before something else is shown
LAST_S = 5.0  # and at the end


class OutputError(StitchgridError):
    """An answer could not be written to stdout."""


class Patient(io.TextIOBase):
    """A text stream of messages whose writer never fails and never waits, whatever becomes of who reads them.

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
        """The encoding of the stream behind."""
        return self._encoding

    def fileno(self) -> int:
        """Return the descriptor, as whoever asks for a terminal's width needs it."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether a terminal shows what is written."""
        return not self._is_gone and os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Take text to be written soon; it is left out where too much waits, or nobody is left to read.

        Raises:
            TypeError: If it is no text: libraries ask so whether a stream takes bytes.
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
        """Wait until all is written, for so long at most."""
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
                    text += f"[{self._num_left_out} messages were left out: nobody read them]\n"
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
        """Write bytes; return whether somebody may still read what comes next."""
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            return False
        return True


class Closed(io.TextIOBase):
    """Stands in for a stream that is closed from the start: it says so to whoever writes."""

    def __init__(self, name: str, *, fails: bool):
        self.name, self.fails = name, fails

    def writable(self) -> bool:
        """Return True: writing is what tells."""
        return True

    def write(self, text: str | bytes, /) -> int:
        """Refuse.

        Raises:
            OutputError: If what is written is an answer.
        """
        if self.fails and text:
            raise OutputError(f"cannot write the answer: {self.name} is closed; name a file with --out, or open it.")
        return len(text)

    @property
    def buffer(self) -> "Closed":
        """The stream for bytes, which is closed as well."""
        return self


@contextmanager
def robust_streams() -> Iterator[None]:
    """Have messages on stderr never stop a command, and stdout take whatever text there is, within the block."""
    before = sys.stdout, sys.stderr
    if sys.stdout is None:
        sys.stdout = Closed("stdout", fails=True)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is None:
        sys.stderr = Closed("stderr", fails=False)
    else:
        with suppress(OSError, ValueError):  # of a stream without a descriptor
            sys.stderr = Patient(sys.stderr)
    try:
        yield
    finally:
        settle(LAST_S)
        sys.stdout, sys.stderr = before


def settle(seconds: float = SETTLE_S) -> None:
    """Let messages that were written be shown before anything else, where somebody reads them."""
    if isinstance(sys.stderr, Patient):
        sys.stderr.settle(seconds)


@contextmanager
def answering() -> Iterator[None]:
    """Turn what goes wrong with stdout within the block into one clear error; a reader who has left is none.

    Raises:
        OutputError: If stdout takes no more.
    """
    settle()
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head`: whoever asked has what they wanted
        abandon_stdout()
        raise
    except OSError as problem:
        abandon_stdout()
        raise OutputError(f"cannot write the answer to stdout: {problem.strerror or problem}.") from problem


def abandon_stdout() -> None:
    """Let what is still buffered for stdout go nowhere, so that no other error follows at the end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def going_on() -> Iterator[None]:
    """Let what cannot be shown within the block be no failure: what a command did is done; stderr says why."""
    try:
        yield
    except BrokenPipeError:
        pass
    except OutputError as problem:
        sys.stderr.write(f"{problem}\n")
