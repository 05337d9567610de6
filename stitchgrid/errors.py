"""The errors users meet, each with the exit code of the command line.

Anything else that escapes is a bug and keeps its traceback.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Literal

from stitchgrid.printable import in_one_line

Fault = Literal["memory", "lost device", "hardware"]

#: What errors of torch, cuBLAS, cuDNN and similar libraries mean, by a part of their message. After "lost device" a
#: process can no longer use its device, unless the message also says "memory"; after "hardware" no process can.
FAULTS: dict[str, Fault] = {
    "can't allocate memory": "memory",
    "CUDA error: out of memory": "memory",
    "ALLOC_FAILED": "memory",
    "ALLOCATION_FAILED": "memory",
    "calling `cublasCreate": "memory",
    "calling `cusolverDnCreate": "memory",
    "CUDA error": "lost device",
    "HIP error": "lost device",
    "CUDNN_STATUS_EXECUTION_FAILED": "lost device",
    "CUBLAS_STATUS_EXECUTION_FAILED": "lost device",
    "uncorrectable ECC error": "hardware",
    "uncorrectable NVLink error": "hardware",
}
#: The same by the name of their type, so that torch need not be imported.
FAULTY_TYPES: dict[str, Fault] = {
    "MemoryError": "memory",
    "OutOfMemoryError": "memory",
    "AcceleratorError": "lost device",
}


class StitchgridError(Exception):
    """An error that a user can act on; the message says what was wanted, what came and what to do."""

    exit_code = 1


MAX_PROBLEMS = 200  # of a job file, that a message shows


class JobFileError(StitchgridError):
    """The job file asks for things that do not exist or do not fit; the message lists every problem."""

    exit_code = 2

    def __init__(self, title: str, problems: Sequence[str] = ()):
        self.problems = tuple(problems)
        shown = [f"  - {problem}" for problem in self.problems[:MAX_PROBLEMS]]
        if (more := len(self.problems) - len(shown)) > 0:
            shown.append(f"  and {more:,} more")
        super().__init__("\n".join([title, *shown]))

    def __reduce__(self) -> tuple[type["JobFileError"], tuple[str, ...]]:
        return type(self), (str(self),)


class InputError(StitchgridError):
    """A named file, image, checkpoint, network or store is missing or invalid; nothing has run yet."""

    exit_code = 2


class QueryError(StitchgridError):
    """A query or SQL statement that cannot be run."""

    exit_code = 2


class StoreError(StitchgridError):
    """The store cannot be read or written."""


NO_PERMISSION, NO_ANSWER = "no permission", "no answer"  # first words of messages about content that cannot be seen


class UnseenError(StoreError):
    """The content of a store cannot be seen from here, whether it is damaged or not: no permission, or no answer."""

    def __init__(self, text: str, *, why: str):
        super().__init__(text)
        self.why = why  # one of the two words above

    def __reduce__(self) -> tuple[Callable[..., "UnseenError"], tuple[str, str]]:
        return _unseen, (str(self), self.why)


def _unseen(text: str, why: str) -> UnseenError:
    return UnseenError(text, why=why)


class NoStoreError(StoreError):
    """There is no store at the named place, and nothing else is wrong."""


class ClusterError(StitchgridError):
    """No worker could be started, or the cluster was lost."""


class BrokenProcessError(StitchgridError):
    """The process cannot go on: everything that it computes from now on would fail."""


LONGEST_WORD = 500  # characters of a word that is compared with others; the time grows with their square


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that lists the known words, and names the nearest one.

    >>> nearest("dirct", ["cka", "direct"])
    "did you mean 'direct'? known: cka, direct"
    >>> nearest("xyz", ["cka", "direct"])
    'known: cka, direct'
    """
    names = sorted(map(in_one_line, known))
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    short = [name for name in names if len(name) <= LONGEST_WORD]
    close = get_close_matches(word, short, n=1, cutoff=0.5) if len(word) <= LONGEST_WORD else []
    return f"did you mean {close[0]!r}? known: {shown}" if close else f"known: {shown or 'none'}"


def one_line(problem: BaseException, *, longest: int = 400) -> str:
    """Return an error's type and message in one line of at most `longest` characters.

    >>> one_line(ValueError("two\\nlines")), one_line(SystemExit())
    ('ValueError: two lines', 'SystemExit')
    """
    text = " ".join(type_and_message(problem).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def type_and_message(problem: BaseException) -> str:
    """Return an error's type and message, or its type alone where it has no message.

    >>> type_and_message(ValueError("two\\nlines")), type_and_message(MemoryError())
    ('ValueError: two\\nlines', 'MemoryError')
    """
    said = message_of(problem)
    return f"{type(problem).__name__}: {said}" if said.strip() else type(problem).__name__


def message_of(problem: BaseException) -> str:
    """Return an error's message; empty where it gives none, since the `__str__` of a user's own error may fail."""
    try:
        return str(problem)
    except Exception:
        return ""


def is_out_of_memory(problem: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that there was not enough memory.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    (True, False)
    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"))
    True
    """
    link: BaseException | None = problem
    while link is not None:
        if _says("memory", link):
            return True
        link = link.__cause__  # not __context__: lack of memory that was dealt with is no reason of what came later
    return False


def breaks_worker(problem: BaseException) -> bool:
    """Return whether the process that raised an error can no longer be used, because its CUDA context is lost.

    After an assert, an illegal access or a failed kernel launch, every later call to the device fails too. Only lack of
    memory leaves the context intact. Errors that the error was raised from count as well.

    >>> breaks_worker(RuntimeError("CUDA error: device-side assert triggered"))
    True
    >>> breaks_worker(RuntimeError("CUDA error: out of memory")), breaks_worker(ValueError("no CUDA device"))
    (False, False)
    """
    return any(_says("lost device", link) and not _says("memory", link) for link in _with_reasons(problem))


def is_hardware_fault(problem: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that the device is faulty: no unit is to blame.

    >>> is_hardware_fault(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    True
    >>> is_hardware_fault(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    return any(_says("hardware", link) for link in _with_reasons(problem))


def _with_reasons(problem: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or during."""
    link: BaseException | None = problem
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _says(fault: Fault, problem: BaseException) -> bool:
    text = message_of(problem)
    return any(means == fault and words in text for words, means in FAULTS.items()) or any(
        FAULTY_TYPES.get(kind.__name__) == fault for kind in type(problem).__mro__
    )
