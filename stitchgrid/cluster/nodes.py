"""Nodes of a Ray cluster: which are alive, and on which no worker can be made."""

from time import monotonic
from typing import Any

from stitchgrid.cluster.sizing import ClusterSize

UNFIT_S = 600.0  # after this time a node is tried again
NODE_ID = "ray.io/node-id"  # the label by which Ray knows a node


class UnfitNodes:
    """Nodes on which no worker could be made, because the store, the data or a Python package is missing there."""

    def __init__(self, size: ClusterSize):
        self.size = size  # of a worker
        self._until: dict[str, float] = {}

    def note(self, node: str) -> bool:
        """Record a node on which no worker could be made; return whether this is the first time."""
        is_first = node not in self._until
        self._until[node] = monotonic() + UNFIT_S
        return is_first

    def avoid(self) -> dict[str, Any]:
        """Return options that keep an actor off unfit nodes; empty if there is no other node."""
        unfit = sorted(node for node, until in self._until.items() if until > monotonic())
        if not unfit or not set(self._able()) - set(unfit):
            return {}
        return {"label_selector": {NODE_ID: f"!in({', '.join(unfit)})"}}

    def _able(self) -> list[str]:
        """Return the nodes that are alive and large enough for a worker."""
        import ray

        wanted = {"CPU": self.size.cpus, "GPU": self.size.gpus}
        return [
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items())
        ]


def tell_neighbours(worker: object, size: ClusterSize) -> None:
    """Call a worker's `set_num_workers`, if it has one, with how many workers may share its node, and its GPU."""
    set_num_workers = getattr(worker, "set_num_workers", None)
    if set_num_workers is None:
        return
    import ray

    here = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    set_num_workers(on_host=size.on_host(resources), on_gpu=size.on_gpu(resources))


def node_lives(node: str) -> bool:
    """Return whether Ray says that a node is alive; True for the empty id, which means an unknown node."""
    import ray

    return not node or any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())
