"""The errors users meet, each with the exit code of the command line.

Anything else that escapes is a bug and keeps its traceback.
"""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from stitchgrid.printable import in_one_line

#: Parts of error messages of torch, cuBLAS, cuDNN and similar libraries that mean that memory ran out.
MEMORY_ERRORS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "calling `cublasCreate",
    "calling `cusolverDnCreate",
)
#: Parts of the errors after which a process can no longer use its device.
LOST_DEVICE_ERRORS = ("CUDA error", "HIP error", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")
#: Parts of those of CUDA and HIP that mean that the device is faulty, whatever was computed on it.
HARDWARE_ERRORS = ("uncorrectable ECC error", "uncorrectable NVLink error")


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

    Errors of torch are recognised by name, so that torch need not be imported.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    (True, False)
    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"))
    True
    """
    link: BaseException | None = problem
    while link is not None:
        if _says_memory(link):
            return True
        link = link.__cause__  # not __context__: lack of memory that was dealt with is no reason of what came later
    return False


def _says_memory(problem: BaseException) -> bool:
    by_name = any(kind.__name__ == "OutOfMemoryError" for kind in type(problem).__mro__)
    return by_name or isinstance(problem, MemoryError) or any(words in message_of(problem) for words in MEMORY_ERRORS)


def breaks_worker(problem: BaseException) -> bool:
    """Return whether the process that raised an error can no longer be used, because its CUDA context is lost.

    After an assert, an illegal access or a failed kernel launch, every later call to the device fails too. Only lack of
    memory leaves the context intact. Errors are recognised by name and text, so that torch need not be imported; those
    that the error was raised from count as well.

    >>> breaks_worker(RuntimeError("CUDA error: device-side assert triggered"))
    True
    >>> breaks_worker(RuntimeError("CUDA error: out of memory")), breaks_worker(ValueError("no CUDA device"))
    (False, False)
    """
    link: BaseException | None = problem
    while link is not None:
        by_name = any(kind.__name__ == "AcceleratorError" for kind in type(link).__mro__)
        if (by_name or any(words in message_of(link) for words in LOST_DEVICE_ERRORS)) and not _says_memory(link):
            return True
        link = link.__cause__ or link.__context__
    return False


def is_hardware_fault(problem: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that the device is faulty: no unit is to blame.

    >>> is_hardware_fault(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    True
    >>> is_hardware_fault(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    link: BaseException | None = problem
    while link is not None:
        if any(words in message_of(link) for words in HARDWARE_ERRORS):
            return True
        link = link.__cause__ or link.__context__
    return False
