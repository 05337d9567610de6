"""A sweep as tables with names: what its folder in the store says of cells, models and layers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pyarrow as pa

from stitchgrid.records import Shard, Sweep, canonical
from stitchgrid.store.schemas import CELLS, LAYERS, MODELS


def cell_table(sweep: Sweep, shards: Sequence[Shard]) -> pa.Table:
    """Return the cells of a sweep with their names, as the sweep's folder keeps them."""
    columns: dict[str, list[object]] = {name: [] for name in CELLS.names}
    for shard in shards:
        for cell in sweep.cells(replace(shard, wanted=None)):
            spec = sweep.matchers[cell.matcher]
            values: dict[str, object] = {"cell_id": cell.cell_id}
            for side, (network, layer) in (("source", cell.source_key), ("target", cell.target_key)):
                record = sweep.networks[network].layers[layer]
                values |= {
                    f"{side}_model": sweep.networks[network].name,
                    f"{side}_layer": record.name,
                    f"{side}_index": layer,
                    f"{side}_depth": record.depth,
                }
            values |= {
                "matcher": spec.kind,
                "params": spec.params,
                "seed": spec.seed,
                "metrics": list(spec.metrics),
                "shard": shard.unit_id,
            }
            for name, value in values.items():
                columns[name].append(value)
    return pa.table(columns, schema=CELLS)


def model_table(sweep: Sweep, evaluations: Sequence[Mapping[str, float | None]]) -> pa.Table:
    """Return the networks of a sweep, with what was measured of each of them unstitched."""
    networks = sweep.networks
    columns: dict[str, list[object]] = {
        "model": [network.name for network in networks],
        "entry": [network.spec.entry for network in networks],
        "architecture": [network.spec.architecture for network in networks],
        "args": [network.spec.args for network in networks],
        "weights_digest": [network.weights_digest for network in networks],
        "network_id": [network.network_id for network in networks],
        "preprocess": [canonical(asdict(network.preprocess)) for network in networks],
        "num_parameters": [network.num_parameters for network in networks],
        "num_classes": [network.num_classes for network in networks],
        "num_cuts": [network.num_cuts for network in networks],
        "flops": [network.flops for network in networks],
        "accuracy": [found["accuracy"] for found in evaluations],
        "loss": [found["loss"] for found in evaluations],
        "num_eval": [found["num_eval"] for found in evaluations],
    }
    return pa.table(columns, schema=MODELS)


def layer_table(sweep: Sweep) -> pa.Table:
    """Return the selected layers of a sweep's networks."""
    found = [(network, index, layer) for network in sweep.networks for index, layer in enumerate(network.layers)]
    columns: dict[str, list[object]] = {
        "model": [network.name for network, _, _ in found],
        "layer": [layer.name for _, _, layer in found],
        "node": [layer.node for _, _, layer in found],
        "layer_index": [index for _, index, _ in found],
        "depth": [layer.depth for _, _, layer in found],
        "kind": [layer.kind for _, _, layer in found],
        "shape": [list(layer.shape) for _, _, layer in found],
        "width": [layer.width for _, _, layer in found],
        "num_prefix": [layer.num_prefix for _, _, layer in found],
        "flops": [layer.flops for _, _, layer in found],
    }
    return pa.table(columns, schema=LAYERS)
