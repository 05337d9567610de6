"""Commands that are timed as processes of their own, and the machine on which they ran."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import NamedTuple

import torch

from stitchgrid.engine.host import processor
from stitchgrid.errors import StitchgridError

KIBI = 1 if sys.platform == "darwin" else 1024  # bytes in the unit of the operating system's peak of memory


class Spent(NamedTuple):
    """What a process took."""

    seconds: float  # wall-clock time from start to end
    cpu_seconds: float  # of all cores, its children included
    peak_bytes: int  # memory


def run_timed(command: Sequence[str], name: str) -> Spent:
    """Run a command and return what it took.

    Raises:
        StitchgridError: If it fails; the error names it by `name`, with the last line that it wrote to stderr.
    """
    with tempfile.TemporaryFile() as said:
        start = perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["it printed no message"])[-1]
            raise StitchgridError(f"{name} ended with exit code {process.returncode}: {last}")
    return Spent(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * KIBI)


def machine() -> dict[str, str | int]:
    """Return the processor, the number of cores that this process may use, and the version of torch."""
    return {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}


def today() -> str:
    """Return the date, UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
