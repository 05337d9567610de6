"""A store with one sweep of many networks, quickly: all layer pairs of all pairs, values that follow depth and family.

`python tests/helpers/helpers_many_networks.py FOLDER [NETWORKS [LAYERS]]`; 141 networks of 5 layers are 497,025 cells.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import digest
from stitchgrid.store import Store
from stitchgrid.store.layout import PARTS, PartName, content_digest
from stitchgrid.store.parts import part_bytes
from stitchgrid.store.schemas import CELLS, LAYERS, MODELS, PART

SWEEP = "many"
FAMILY = 12  # networks


def make_many_networks(
    folder: Path | str, *, num_networks: int = 141, num_layers: int = 5, kinds: tuple[str, ...] = ("cka",)
) -> Store:
    """Write the store: one part for each source, of all its cells under indices with one metric each."""
    store = Store.open(folder, create=True)
    names = [f"family{n // FAMILY:02d}/net{n:03d}" for n in range(num_networks)]
    cells = _cells(names, num_layers, kinds)
    revision = store.write_job(SWEEP, {"name": SWEEP})
    models = [
        {"model": name, "entry": name, "architecture": f"stitchgrid:{name.split('/')[0]}", "num_parameters": 1000}
        | {"weights_digest": digest("w", name), "network_id": digest(name), "accuracy": 0.9, "args": "{}"}
        for name in names
    ]
    layers = [
        {"model": name, "layer": f"layer{n}", "node": f"layer{n}", "layer_index": n, "depth": (n + 1) / num_layers}
        | {"kind": "map", "shape": [8, 4, 4]}
        for name in names
        for n in range(num_layers)
    ]
    tables = {"models": pa.Table.from_pylist(models, MODELS), "layers": pa.Table.from_pylist(layers, LAYERS)}
    store.write_plan(SWEEP, revision, cells=cells, **tables, info={})
    parts = Path(store.uri) / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    for number in range(num_networks):
        part = _part(cells.slice(number * (cells.num_rows // num_networks), cells.num_rows // num_networks), number)
        data = part_bytes(part)
        name = PartName(shard=part["shard"][0].as_py(), digest=content_digest(data), num_rows=part.num_rows)
        (parts / str(name)).write_bytes(data)
    return store


def _cells(names: list[str], num_layers: int, kinds: tuple[str, ...]) -> pa.Table:
    shape = (len(names), len(names), num_layers, num_layers, len(kinds))
    source, target, j, i, kind = (axis.ravel() for axis in np.indices(shape, dtype=np.int32))
    ids = np.random.default_rng(0).bytes(16 * len(kind)).hex()
    words, layer = np.array(names), np.array([f"layer{n}" for n in range(num_layers)])
    columns = {
        "cell_id": [ids[k * 32 : (k + 1) * 32] for k in range(len(kind))],
        "source_model": words[source],
        "source_layer": layer[i],
        "source_index": i,
        "source_depth": (i + 1) / num_layers,
        "target_model": words[target],
        "target_layer": layer[j],
        "target_index": j,
        "target_depth": (j + 1) / num_layers,
        "matcher": np.array(kinds)[kind],
        "params": pa.DictionaryArray.from_arrays(np.zeros(len(kind), dtype=np.int32), ["{}"]).cast(pa.string()),
        "seed": pa.nulls(len(kind), pa.int64()),
        "metrics": pa.array([[MATCHERS[name].score] for name in kinds]).take(pa.array(kind)),
        "shard": np.array([digest(name) for name in names])[source],
    }
    return pa.table(columns, schema=CELLS)


def _part(cells: pa.Table, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    num = cells.num_rows
    names = {side: cells[f"{side}_model"].to_pylist() for side in ("source", "target")}
    strange = np.array(
        [f.split("/")[0] != g.split("/")[0] for f, g in zip(names["source"], names["target"], strict=True)]
    )
    other = np.array([f != g for f, g in zip(names["source"], names["target"], strict=True)])
    gap = np.abs(cells["source_depth"].to_numpy() - cells["target_depth"].to_numpy())
    same = (gap == 0) & ~other
    value = np.where(same, 1.0, np.exp(-gap) - 0.15 * other - 0.2 * strange + rng.normal(0, 0.02, num))
    higher = [MATCHERS[kind].metrics[0].higher_is_similar for kind in cells["matcher"].to_pylist()]
    constant = {
        "status": "done",
        "num_eval": 1000,
        "num_rows": 16_000,
        "device": "cuda",
        "precision": "fp32",
        "alignment": "identity",
        "data": digest("data"),
        "version": "0.2.0",
        "created_at": "2026-11-01T00:00:00.000000+00:00",
    }
    columns = {
        "metric": pa.compute.list_flatten(cells["metrics"]),
        "value": np.where(higher, value, 1 - value),
        "higher_is_similar": higher,
        "flags": pa.array([[]] * num, pa.list_(pa.string())),
        **{f"{side}_network": [digest(name) for name in names[side]] for side in names},
        **{f"{side}_weights": [digest("w", name) for name in names[side]] for side in names},
        **{
            name: cells[name]
            for name in ("cell_id", "source_layer", "target_layer", "matcher", "params", "seed", "shard")
        },
        **{name: pa.array([word] * num) for name, word in constant.items()},
    }
    return pa.table({one.name: columns.get(one.name, pa.nulls(num, one.type)) for one in PART}, schema=PART)


if __name__ == "__main__":
    make_many_networks(sys.argv[1], **dict(zip(("num_networks", "num_layers"), map(int, sys.argv[2:]), strict=False)))
