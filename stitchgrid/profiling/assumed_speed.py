"""How fast a worker is taken to be when a sweep is cut into shards: as the sweep's plan says, else by where it runs.

The plan has the last word, so that a sweep that goes on elsewhere has the very shards with which it began.
"""

from typing import Any

import torch

from stitchgrid.cluster import cluster_resources
from stitchgrid.cluster.placement import Placement
from stitchgrid.errors import StoreError
from stitchgrid.planning import CPU_SPEED, GPU_SPEED
from stitchgrid.store import Store

FIRST_SPEED = 1e11  # the only one that the first versions knew
KEY = "assumed_flops_per_second"  # in what is kept with a plan


def planned_speed(store: Store | None, sweep: str, *, update: bool) -> float | None:
    """Return the speed for which a sweep's latest complete revision was cut, None if there is none yet.

    With `update` a damaged revision, which the next one is to replace, counts as none.
    """
    try:
        info: dict[str, Any] = {} if store is None else store.read_plan_info(sweep)
    except StoreError:
        if not update:
            raise
        info = {}
    return float(info.get(KEY, FIRST_SPEED)) if info else None


def speed_there(device: str, where: Placement) -> float:
    """Return the speed (FLOP/s) taken for one of the workers that a launch would start for a job's `device`.

    Raises:
        ClusterError: If the cluster has to be asked for GPUs and there is none at the address.
    """
    if computes_on_gpus(device, where):
        return GPU_SPEED * min(1.0, where.gpus_per_worker or 1.0)
    return CPU_SPEED * max(1.0, where.cpus_per_worker or 1.0)


def computes_on_gpus(device: str, where: Placement) -> bool:
    """Return whether workers will find a GPU, told before there are any as far as can be."""
    device = where.device(device)
    if device != "auto":
        return device == "cuda"
    if where.gpus_per_worker is not None and where.address != "none":
        return True
    if where.address in (None, "local", "none"):
        return torch.cuda.is_available()
    return cluster_resources(where.address).get("GPU", 0) >= 1
