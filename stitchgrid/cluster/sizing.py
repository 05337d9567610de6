"""The number of workers, and the resources of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

from stitchgrid.errors import ClusterError, InputError

WORKER_BYTES = 1.5e9  # a process with torch, a few networks and their images


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSize:
    """A pool of workers."""

    num_workers: int
    cpus: float  # per worker
    gpus: float  # per worker

    def on_host(self, node: Mapping[str, float]) -> int:
        """Return the largest number of workers on one node with these resources.

        >>> ClusterSize(num_workers=6, cpus=2.0, gpus=0.0).on_host({"CPU": 8, "GPU": 1})
        4
        """
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        fitting = [floor(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount]
        return max(1, min([self.num_workers, *fitting]))

    def on_gpu(self, node: Mapping[str, float]) -> int:
        """Return the largest number of workers that share one GPU of a node.

        >>> ClusterSize(num_workers=6, cpus=0.0, gpus=0.5).on_gpu({"CPU": 8, "GPU": 1})
        2
        """
        if not self.gpus:  # all workers of the node may see its GPU
            return self.on_host(node)
        return max(1, min(self.num_workers, round(1 / self.gpus)))


def check_shares(workers: int | None, cpus: float | None, gpus: float | None) -> None:
    """Check the numbers of workers, CPUs and GPUs.

    Raises:
        InputError: If one is not valid; the message names the option.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}.")
    if cpus is not None and (cpus < 0 or (cpus == 0 and not gpus)):
        raise InputError(f"--cpus-per-worker must be positive (0 only for workers with a GPU), got {cpus:g}.")
    if cpus is not None and cpus > 1 and cpus % 1:
        raise InputError(f"--cpus-per-worker above 1 must be a whole number, got {cpus:g}.")
    if gpus is None:
        return
    share = gpus % 1 if gpus >= 1 or gpus <= 0 else 1 / gpus - round(1 / gpus)
    if gpus < 0 or abs(share) > 1e-6:
        raise InputError(f"--gpus-per-worker must be a whole number or 1/k (0.5, 0.25, ...), got {gpus:g}.")


def choose_size(
    resources: Mapping[str, float],
    *,
    workers: int | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    max_units: int | None,
    is_local: bool,
) -> ClusterSize:
    """Return the pool for a cluster's resources: a worker per GPU if there are any, else per CPU.

    Given numbers are used even if a running cluster lacks the resources: nodes may join it later.

    >>> choose_size({"CPU": 8, "memory": 4e9}, workers=None, cpus_per_worker=None, gpus_per_worker=None,
    ...             max_units=None, is_local=True)
    ClusterSize(num_workers=2, cpus=1.0, gpus=0.0)

    Raises:
        ClusterError: If GPUs are asked for on a machine that has none.
    """
    gpus = float(resources.get("GPU", 0) >= 1) if gpus_per_worker is None else float(gpus_per_worker)
    cpus = (0.0 if gpus else 1.0) if cpus_per_worker is None else float(cpus_per_worker)
    if is_local and gpus > resources.get("GPU", 0):
        raise ClusterError(
            f"--gpus-per-worker {gpus:g} needs more GPUs than the {resources.get('GPU', 0):g} that Ray finds on this "
            "machine; leave the option out to run on CPUs."
        )
    bounds = [resources.get("memory", float("inf")) / WORKER_BYTES]
    if gpus:
        bounds.append(resources.get("GPU", 0) / gpus + 1e-6)
    if cpus:
        bounds.append(resources.get("CPU", 0) / cpus + 1e-6)
    num_workers = workers if workers is not None else max(1, floor(min(bounds)))
    if max_units is not None:
        num_workers = max(1, min(num_workers, max_units))
    return ClusterSize(num_workers=num_workers, cpus=cpus, gpus=gpus)
