"""A store of any size, quickly: sweeps of all layer pairs of ten networks under four matchers, values drawn by seed.

`python tests/helpers/helpers_big_store.py FOLDER [SWEEPS [LAYERS]]`; five sweeps of 40 layers are 10,400,000 rows in
20,000 parts.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from stitchgrid.matchers.registry import default_metrics
from stitchgrid.records import digest
from stitchgrid.store import Store
from stitchgrid.store.layout import PARTS, PartName, content_digest
from stitchgrid.store.parts import part_bytes
from stitchgrid.store.schemas import CELLS, LAYERS, MODELS, PART

KINDS = ("direct", "cka", "pwcca", "procrustes")
NUM_MODELS = 10
START = datetime(2026, 11, 1, tzinfo=UTC)


def make_big_store(folder: Path | str, *, num_sweeps: int = 5, num_layers: int = 40) -> Store:
    """Write the store; a part is a target layer with all layers of one source, so `NUM_MODELS ** 2` a layer."""
    store = Store.open(folder, create=True)
    for sweep in range(num_sweeps):
        name = f"sweep-{sweep}"
        cells = _cells(sweep, num_layers)
        revision = store.write_job(name, {"job": {"name": name}, "base": "."})
        models, layers = _models(sweep), _layers(sweep, num_layers)
        store.write_plan(name, revision, cells=cells, models=models, layers=layers, info={})
        _write_parts(store, sweep, cells, num_layers)
    return store


def model_names(sweep: int) -> list[str]:
    """Return the names of a sweep's networks."""
    return [f"s{sweep}-net/{seed}" for seed in range(NUM_MODELS)]


def _cells(sweep: int, num_layers: int) -> pa.Table:
    names = np.array(model_names(sweep))
    shape = (NUM_MODELS, NUM_MODELS, num_layers, num_layers, len(KINDS))
    source, target, j, i, kind = (axis.ravel() for axis in np.indices(shape, dtype=np.int32))
    ids = np.random.default_rng(sweep).bytes(16 * len(kind)).hex()
    layer = np.array([f"layer{n}" for n in range(num_layers)])
    metrics = pa.array([list(default_metrics(name)) for name in KINDS])
    shards = (source * NUM_MODELS + target) * num_layers + j
    columns = {
        "cell_id": [ids[k * 32 : (k + 1) * 32] for k in range(len(kind))],
        "source_model": names[source],
        "source_layer": layer[i],
        "source_index": i,
        "source_depth": (i / num_layers).astype(np.float64),
        "target_model": names[target],
        "target_layer": layer[j],
        "target_index": j,
        "target_depth": (j / num_layers).astype(np.float64),
        "matcher": np.array(KINDS)[kind],
        "params": pa.DictionaryArray.from_arrays(np.zeros(len(kind), dtype=np.int32), ["{}"]).cast(pa.string()),
        "seed": pa.nulls(len(kind), pa.int64()),
        "metrics": metrics.take(pa.array(kind)),
        "shard": np.array([digest(str(sweep), str(n)) for n in range(shards.max() + 1)])[shards],
    }
    return pa.table(columns, schema=CELLS)


def _models(sweep: int) -> pa.Table:
    rows = [
        {"model": name, "entry": name, "weights_digest": digest("w", name), "network_id": digest(name), "accuracy": 0.9}
        for name in model_names(sweep)
    ]
    return pa.Table.from_pylist(rows, schema=MODELS)


def _layers(sweep: int, num_layers: int) -> pa.Table:
    rows = [
        {
            "model": name,
            "layer": f"layer{n}",
            "node": f"layer{n}.relu",
            "layer_index": n,
            "depth": n / num_layers,
            "shape": [8],
        }
        for name in model_names(sweep)
        for n in range(num_layers)
    ]
    return pa.Table.from_pylist(rows, schema=LAYERS)


def _write_parts(store: Store, sweep: int, cells: pa.Table, num_layers: int) -> None:
    rng = np.random.default_rng((sweep, 1))
    networks = {name: (digest(name), digest("w", name)) for name in model_names(sweep)}
    size = num_layers * len(KINDS)
    folder = Path(store.uri) / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(cells.num_rows // size):
        chunk = cells.slice(number * size, size)
        at = (START + timedelta(seconds=sweep * 100_000 + number)).isoformat(timespec="microseconds")
        data = part_bytes(_part(chunk, networks, at, rng))
        rows = int(pa.compute.sum(pa.compute.list_value_length(chunk["metrics"])).as_py())
        name = PartName(shard=chunk["shard"][0].as_py(), digest=content_digest(data), num_rows=rows)
        (folder / str(name)).write_bytes(data)


def _part(cells: pa.Table, networks: dict[str, tuple[str, str]], at: str, rng: np.random.Generator) -> pa.Table:
    parents = pa.compute.list_parent_indices(cells["metrics"]).combine_chunks()
    rows = cells.take(parents)
    num = rows.num_rows
    metric = pa.compute.list_flatten(cells["metrics"])
    source, target = networks[cells["source_model"][0].as_py()], networks[cells["target_model"][0].as_py()]
    same = {
        "status": "done",
        "source_network": source[0],
        "target_network": target[0],
        "num_eval": 1000,
        "num_rows": 64_000,
        "device": "cuda",
        "precision": "fp32",
        "alignment": "resized",
        "source_weights": source[1],
        "target_weights": target[1],
        "data": digest("data"),
        "version": "0.1.0",
        "created_at": at,
    }
    columns = {
        "cell_id": rows["cell_id"],
        "metric": metric,
        "value": rng.random(num).round(6),
        "higher_is_similar": pa.compute.is_in(metric, pa.array(["accuracy", "cka", "r2"])),
        "seconds": rng.random(cells.num_rows)[parents.to_numpy()],
        "flags": pa.array([[]] * num, pa.list_(pa.string())),
        **{name: rows[name] for name in ("source_layer", "target_layer", "matcher", "params", "seed", "shard")},
        **{name: pa.array([value] * num) for name, value in same.items()},
    }
    return pa.table({field.name: columns.get(field.name, pa.nulls(num, field.type)) for field in PART}, schema=PART)


if __name__ == "__main__":
    make_big_store(sys.argv[1], **dict(zip(("num_sweeps", "num_layers"), map(int, sys.argv[2:]), strict=False)))
