"""Checks features (activations from files) before anything is measured with them: all rows must be finite.

Shape suffixes: N images.
"""

from typing import Any

import torch

from stitchgrid.engine.workspace import Workspace
from stitchgrid.models.features import FeaturesNetwork, Role


def look_at_features(work: Workspace, position: int) -> dict[str, Any]:
    """Return the evaluation of features, as it is stored: why they are refused, if they are, and remarks on them."""
    problems, remarks = [], []
    network, record = work.network(position), work.sweep.networks[position]
    assert isinstance(network, FeaturesNetwork), record.name
    roles: dict[Role, int] = {"eval": work.sweep.num_eval}
    if work.sweep.num_fit and network.has_rows("fit"):
        roles["fit"] = work.sweep.num_fit
    for layer in record.layers:
        for role, num in roles.items():
            rows = network.all_rows(layer.node, role)[:num]
            wrong_N = (~torch.isfinite(rows)).flatten(1).any(1).nonzero().flatten().tolist()
            if wrong_N:
                problems.append(
                    f"its rows at {layer.name} are infinite or NaN for {len(wrong_N)} of {num} {role} images, the "
                    f"first of them at position {wrong_N[0]} in drawn order; take the features again, in float32"
                )
            elif num > 1 and bool((rows == rows[:1]).all()):
                remarks.append(f"its rows at {layer.name} are the same for all {num} {role} images")
    counts = " and ".join(f"{num} {role}" for role, num in roles.items())
    remarks.append(
        f"activations from {record.spec.weights}, no network: {len(record.layers)} layers of {counts} images"
    )
    return without_accuracy(work, problems=problems, remarks=remarks)


def without_accuracy(
    work: Workspace, *, problems: list[str], remarks: list[str], libraries: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the evaluation of a network without a known accuracy, as it is stored."""
    return {
        "accuracy": None,
        "loss": None,
        "chance": None,
        "is_at_chance": None,
        "order": None,
        "num_eval": work.sweep.num_eval,
        "libraries": libraries or {},
        "problems": problems,
        "remarks": remarks,
    }
