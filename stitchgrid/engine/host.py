"""Where and how something is computed: torch's settings, the host, the device, and the load of other processes."""

import os
from dataclasses import dataclass
from pathlib import Path
from platform import node
from time import perf_counter, process_time

import torch

from stitchgrid.allocator import keep_freed_memory
from stitchgrid.cpus import num_cpus
from stitchgrid.engine.memory import available_bytes


def set_up_torch(threads: int | None) -> bool:
    """Set up this process's torch for the engine, with a number of threads (None: one per CPU it may use).

    Return whether freed memory is kept.
    """
    torch.set_num_threads(threads or num_cpus())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # unless a job asks for it
    torch.backends.cudnn.deterministic = True  # as far as cuDNN decides, trained maps are equal to the bit
    return keep_freed_memory()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where and how something was measured."""

    host: str
    device: str  # cpu | cuda
    name: str  # of the processor or GPU
    memory_bytes: int  # free on the device
    threads: int
    precision: str
    num_cpus: int  # of the host
    others_cpus: float  # used by other processes meanwhile

    @property
    def is_busy(self) -> bool:
        """Whether other processes left too few CPUs, so that the measured speed is less certain."""
        return self.device == "cpu" and self.others_cpus > 0.2 and self.others_cpus + self.threads > self.num_cpus


def place_of(device: torch.device, precision: str, others: "Others") -> Host:
    """Return where this process computes, and how many CPUs other processes used since `others` was made."""
    return Host(
        host=node(),
        device=device.type,
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        memory_bytes=available_bytes(device),
        threads=torch.get_num_threads(),
        precision=precision,
        num_cpus=os.cpu_count() or 1,
        others_cpus=others.average(),
    )


class Others:
    """Measures how many of the host's CPUs other processes use from now on, as far as the system tells."""

    def __init__(self) -> None:
        self._start, self._own, self._all = perf_counter(), process_time(), _cpu_seconds()

    def average(self) -> float:
        """Return the number of CPUs that other processes used, on average; 0 if the system does not tell."""
        taken = _cpu_seconds() - self._all - (process_time() - self._own)
        return max(0.0, taken / (perf_counter() - self._start))


def _cpu_seconds() -> float:
    """Return the seconds that all CPUs of the host have worked; 0 if the system does not tell."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts = (int(word) for word in line.split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """Return the name of this machine's processor, "unknown processor" if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or "unknown processor"
