"""A sweep's tables of cells, models, layers and probes, with names, as its folder in the store has them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from stitchgrid.driver.network_remarks import problem_of
from stitchgrid.matchers.registry import stored_metrics
from stitchgrid.records import Cell, Shard, Sweep
from stitchgrid.store.schemas import CELLS, LAYERS, MODELS, PROBES, TEXT


def cell_table(sweep: Sweep, shards: Sequence[Shard]) -> pa.Table:
    """Return the cells of a sweep with their names, as the sweep's folder keeps them.

    Python makes only ids and positions, and Arrow looks up the names, so that a million cells stay cheap.
    """
    names = _Names(sweep)
    return pa.Table.from_batches([names.batch(shard) for shard in shards], schema=CELLS)


class _Names:
    """Columns of what the cells of a sweep are called, by the positions of networks, layers and matchers."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        layers = [layer for network in sweep.networks for layer in network.layers]
        self.first_layer = np.cumsum([0, *(len(network.layers) for network in sweep.networks[:-1])])
        self.model = pa.array([network.name for network in sweep.networks], TEXT)
        self.layer = pa.array([layer.name for layer in layers], TEXT)
        self.depth = pa.array([layer.depth for layer in layers], pa.float64())
        self.matcher = {
            "matcher": [spec.kind for spec in sweep.matchers],
            "params": [spec.params for spec in sweep.matchers],
            "seed": [spec.seed for spec in sweep.matchers],
        }
        self.metrics = {  # (matcher, target network, target layer) -> metrics
            (matcher, target, layer): list(stored_metrics(sweep, matcher, network, layer))
            for matcher in range(len(sweep.matchers))
            for target, network in enumerate(sweep.networks)
            for layer in range(len(network.layers))
        }

    def batch(self, shard: Shard) -> pa.RecordBatch:
        """Return the cells of one shard, finished or not."""
        cells = list(self.sweep.cells(replace(shard, wanted=None)))
        columns = {"cell_id": pa.array([cell.cell_id for cell in cells], TEXT)}
        for side in ("source", "target"):
            network, layer = _positions(cells, side), _positions(cells, f"{side}_layer")
            position = self.first_layer[network.to_numpy()] + layer.to_numpy()
            columns |= {
                f"{side}_model": self.model.take(network),
                f"{side}_layer": self.layer.take(position),
                f"{side}_index": layer,
                f"{side}_depth": self.depth.take(position),
            }
        matcher = _positions(cells, "matcher")
        for name, values in self.matcher.items():
            columns[name] = pa.array(values, CELLS.field(name).type).take(matcher)
        asked = [self.metrics[cell.matcher, cell.target, cell.target_layer] for cell in cells]
        columns["metrics"] = pa.array(asked, CELLS.field("metrics").type)
        columns["shard"] = pa.repeat(shard.unit_id, len(cells))
        return pa.record_batch([columns[name] for name in CELLS.names], schema=CELLS)


def _positions(cells: Sequence[Cell], what: str) -> pa.Array:
    return pa.array(np.fromiter(map(attrgetter(what), cells), dtype=np.int32, count=len(cells)))


def model_table(sweep: Sweep, evaluations: Sequence[Mapping[str, Any]], remarks: Sequence[Sequence[str]]) -> pa.Table:
    """Return the networks of a sweep, each with its own measurements, unstitched, and its remarks."""
    networks = sweep.networks
    columns: dict[str, list[object]] = {
        "model": [network.name for network in networks],
        "entry": [network.spec.entry for network in networks],
        "architecture": [network.spec.architecture for network in networks],
        "args": [network.spec.args for network in networks],
        "weights_digest": [network.weights_digest for network in networks],
        "network_id": [network.network_id for network in networks],
        "preprocess": [network.preprocess.address for network in networks],
        "num_parameters": [network.num_parameters for network in networks],
        "num_classes": [network.num_classes for network in networks],
        "num_cuts": [network.num_cuts for network in networks],
        "flops": [network.flops for network in networks],
        "accuracy": [found.get("accuracy") for found in evaluations],
        "loss": [found.get("loss") for found in evaluations],
        "num_eval": [found.get("num_eval") for found in evaluations],
        "head": [network.head.kind for network in networks],
        "is_untrained": [network.spec.is_untrained for network in networks],
        "chance": [found.get("chance") for found in evaluations],
        "is_at_chance": [found.get("is_at_chance") for found in evaluations],
        "problem": [problem_of(found) for found in evaluations],
        "remarks": [list(some) for some in remarks],
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


def probe_table(sweep: Sweep, found: Sequence[Mapping[str, Any] | None]) -> pa.Table:
    """Return the stored probes of a sweep's networks; `found` has None for a network without any."""
    spec = sweep.probes
    assert spec is not None
    rows = []
    for network, stored in zip(sweep.networks, found, strict=True):
        if stored is None:
            continue
        of_all = {"model": network.name, "C": spec.C, "max_iter": spec.max_iter}
        of_all |= {"num_fit": stored["num_fit"], "num_eval": stored["num_eval"]}
        for probe in stored["probes"]:
            layer = network.layers[probe["layer_index"]]
            rows.append({**probe, **of_all, "layer": layer.name, "layer_depth": layer.depth})
    return pa.Table.from_pylist(rows, schema=PROBES)
