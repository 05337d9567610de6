"""How many CPUs this process may use."""

import os
from contextlib import suppress
from math import ceil
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")


def num_cpus() -> int:
    """Return the number of CPUs that affinity (taskset, Slurm) and a container's quota leave, at least 1.

    A fraction of a CPU counts as a whole one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, ceil(quota)))


def _quota() -> float | None:
    """Return the CPUs that the control group of a container may use (its versions 2 and 1); None without a limit."""
    for limit, period in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            numbers = (GROUP / limit).read_text().split() + ([(GROUP / period).read_text()] if period else [])
            quota, length = (float(number) for number in numbers[:2])  # "max" is no number
            if quota > 0 < length:
                return quota / length
    return None
