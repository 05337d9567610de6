"""The speed that is assumed of a worker when a sweep is cut into shards: that of the sweep's plan, or by the device.

The plan comes first, so that a sweep which is continued on another machine keeps the shards with which it began.
"""

from typing import Any

import torch

from stitchgrid.cluster import cluster_resources
from stitchgrid.cluster.placement import Placement
from stitchgrid.errors import StoreError
from stitchgrid.planning import CPU_SPEED, GPU_SPEED
from stitchgrid.store import Store

FIRST_SPEED = 1e11  # FLOP/s: plans of the first versions were cut for it, and do not note it
KEY = "assumed_flops_per_second"  # among a plan's information in the store


def planned_speed(store: Store | None, sweep: str, *, update: bool) -> float | None:
    """Return the speed (FLOP/s) for which a sweep's latest complete revision was cut, None if there is none yet.

    With `update` a damaged revision counts as none, since the next one will replace it.

    Raises:
        StoreError: If the plan cannot be read, and `update` is off.
    """
    try:
        info: dict[str, Any] = {} if store is None else store.read_plan_info(sweep)
    except StoreError:
        if not update:
            raise
        info = {}
    return float(info.get(KEY, FIRST_SPEED)) if info else None


def speed_there(device: str, where: Placement) -> float:
    """Return the speed (FLOP/s) that is assumed of each worker that a launch would start for a job's `device`.

    Raises:
        ClusterError: If the cluster has to be asked for GPUs and there is none at the address.
    """
    if computes_on_gpus(device, where):
        return GPU_SPEED * min(1.0, where.gpus_per_worker or 1.0)
    return CPU_SPEED * max(1.0, where.cpus_per_worker or 1.0)


def computes_on_gpus(device: str, where: Placement) -> bool:
    """Return whether workers will have a GPU, as far as that can be known before they start."""
    device = where.device(device)
    if device != "auto":
        return device == "cuda"
    if where.gpus_per_worker is not None and where.address != "none":
        return True
    if where.address in (None, "local", "none"):
        return torch.cuda.is_available()
    return cluster_resources(where.address).get("GPU", 0) >= 1
