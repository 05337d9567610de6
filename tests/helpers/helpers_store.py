"""A small synthetic sweep with known answers: two networks of three layers, five matchers, nothing computed.

`make_synthetic_store(folder)` writes it; the constants below say what was planted.
"""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, Phase

from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import Row, canonical, digest
from stitchgrid.store import Store

TEMPORARY = tempfile.gettempdir()
SWEEP = "synthetic"
MODELS = ("net/0", "net/1")
LAYERS = ("conv1", "block1", "block2")
NUM_EVAL = 1000
STITCHER_METRICS = ("accuracy", "residual", "negative_mass")
MATCHER_SEEDS: dict[str, tuple[int | None, ...]] = {
    "direct": (None,),
    "task_loss": (0, 1),
    "cka": (None,),
    "pwcca": (None,),
    "procrustes": (None,),
}

# Planted: (source model, source layer, target model, target layer)
VIOLATION = ("net/0", "block2", "net/0", "conv1")  # under task_loss alone; also where it and direct disagree most
TIE = ("net/1", "block1", "net/1", "block2")  # procrustes: as good as the layer itself
FAILED = ("net/1", "block2", "net/0", "conv1")  # cka, with ERROR
PENDING = ("net/1", "conv1", "net/1", "block2")  # procrustes
FLAGGED = ("net/0", "conv1", "net/1", "block2")  # direct: FLAG
ERROR = "ValueError: planted | failure"
FLAG = "subsampled"


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One cell of the synthetic sweep; its id is as stable as its names."""

    source_model: str
    source_layer: str
    target_model: str
    target_layer: str
    matcher: str
    seed: int | None

    @property
    def pair(self) -> tuple[str, str, str, str]:
        return self.source_model, self.source_layer, self.target_model, self.target_layer

    @property
    def cell_id(self) -> str:
        return digest(*self.pair, self.matcher, str(self.seed))

    @property
    def shard(self) -> str:
        return digest(self.source_model, self.target_model)

    @property
    def metrics(self) -> tuple[str, ...]:
        return STITCHER_METRICS if MATCHERS[self.matcher].family == "stitcher" else MATCHERS[self.matcher].metric_names


#: Of hypothesis: examples are drawn, not shrunk, and the same each time.
QUICK: dict[str, Any] = {
    "phases": (Phase.explicit, Phase.generate),
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """The store, and the ids of the two cells without a value."""

    store: Store
    sweep: str
    failed: str
    pending: str


def make_synthetic_store(folder: Path | str, *, sweep: str = SWEEP) -> Synthetic:
    """Return the synthetic sweep in a store at `folder`: four shards, one failed and one pending cell.

    A new store is a copy of one that each process writes once.
    """
    is_new = isinstance(folder, Path) and not (folder.is_dir() and any(folder.iterdir()))
    if not is_new or sweep != SWEEP:
        return write_synthetic_store(folder, sweep=sweep)
    shutil.copytree(written_once().store.uri, folder, dirs_exist_ok=True)
    return replace(written_once(), store=Store.open(folder))


def sweeps_like_it(folder: Path | str, number: int) -> list[str]:
    """Add copies of the sweep, so that one store holds many things to look at; return the names of all `number`."""
    names = [SWEEP, *(f"{SWEEP}-{k}" for k in range(1, number))]
    for name in names[1:]:
        shutil.copytree(Path(folder, "sweeps", SWEEP), Path(folder, "sweeps", name))
    return names


@cache
def written_once() -> Synthetic:
    """Return the synthetic store that others are copies of."""
    folder = tempfile.mkdtemp(dir=TEMPORARY)  # not where the test that asks first has its temporary files
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_synthetic_store(Path(folder, "grid"))


def write_synthetic_store(folder: Path | str, *, sweep: str = SWEEP) -> Synthetic:
    """Write the synthetic sweep into a store at `folder`."""
    store = Store.open(folder, create=True)
    revision = store.write_job(sweep, {"job": {"name": sweep}, "base": "."})
    store.write_plan(sweep, revision, **plan_tables(), info={"num_shards": 4})
    rows: dict[str, list[Row]] = {}
    for cell in planned_cells():
        rows.setdefault(cell.shard, []).extend(rows_of(cell))
    store.journal(sweep, "launch-1", [{"unit": shard, "worker": "w0"} for shard in rows])
    store.journal(sweep, "launch-1", [{"unit": find_cell(FAILED, "cka").shard, "worker": "w1"}])
    for shard, values in rows.items():
        store.write_part(shard, values)
    failed, pending = find_cell(FAILED, "cka").cell_id, find_cell(PENDING, "procrustes").cell_id
    return Synthetic(store=store, sweep=sweep, failed=failed, pending=pending)


def planned_cells() -> Iterator[PlannedCell]:
    """Yield all 216 cells of the sweep."""
    pairs = [(f, i, g, j) for f in MODELS for g in MODELS for j in LAYERS for i in LAYERS]
    for source_model, source_layer, target_model, target_layer in pairs:
        for matcher, seeds in MATCHER_SEEDS.items():
            for seed in seeds:
                yield PlannedCell(
                    source_model=source_model,
                    source_layer=source_layer,
                    target_model=target_model,
                    target_layer=target_layer,
                    matcher=matcher,
                    seed=seed,
                )


def find_cell(pair: tuple[str, str, str, str], matcher: str) -> PlannedCell:
    """Return the cell of a layer pair, the first seed's where there are several."""
    return next(cell for cell in planned_cells() if (cell.pair, cell.matcher) == (pair, matcher))


def value_of(cell: PlannedCell, metric: str) -> float | None:
    """Return the synthetic value: the nearer two layers and the same the network, the more similar."""
    gap = abs(LAYERS.index(cell.source_layer) - LAYERS.index(cell.target_layer))
    other = cell.source_model != cell.target_model
    spread = int(cell.cell_id[:4], 16) % 7 / 1000 if gap or other else 0.0
    distance = 0.3 * gap + 0.1 * other + spread
    if cell.matcher == "procrustes" and cell.pair == TIE:
        distance = 0.0
    if metric == "negative_mass":
        return None if cell.target_layer == "block2" else 0.25
    if cell.matcher == "task_loss":
        accuracy = 0.95 if cell.pair == VIOLATION else 0.9 - distance / 4
        return accuracy - (cell.seed or 0) / 1000 if metric == "accuracy" else 1.5 + gap
    values = {"accuracy": 0.9 - distance, "cka": 1 - distance, "pwcca_reverse": distance / 2 + 0.01}
    return values.get(metric, distance)


def rows_of(cell: PlannedCell) -> list[Row]:
    """Return the rows that the cell's worker wrote: none where it is pending, its error where it failed."""
    if (cell.pair, cell.matcher) == (PENDING, "procrustes"):
        return []
    if (cell.pair, cell.matcher) == (FAILED, "cka"):
        return [replace(make_row(cell, None, None), status="failed", error=ERROR)]
    return [make_row(cell, metric, value_of(cell, metric)) for metric in cell.metrics]


def make_row(cell: PlannedCell, metric: str | None, value: float | None, **changes: Any) -> Row:
    """Return a row of the cell; `changes` replaces fields."""
    stitcher = MATCHERS[cell.matcher].family == "stitcher"
    flags = [FLAG] if (cell.pair, cell.matcher) == (FLAGGED, "direct") else []
    row = Row(
        cell_id=cell.cell_id,
        status="done",
        metric=metric,
        value=value,
        higher_is_similar=None if metric is None else MATCHERS[cell.matcher].metric(metric).higher_is_similar,
        error=None,
        source_network=digest(cell.source_model),
        source_layer=cell.source_layer,
        target_network=digest(cell.target_model),
        target_layer=cell.target_layer,
        matcher=cell.matcher,
        params="{}",
        seed=cell.seed,
        num_fit=200 if stitcher else None,
        num_eval=NUM_EVAL,
        num_rows=64_000,
        seconds=0.5 if stitcher else 0.125,
        device="cpu",
        precision="fp32",
        alignment="resized" if cell.source_layer != cell.target_layer else None,
        flags=(*flags, *(["undefined"] if metric and value is None else [])),
        source_weights=digest("weights", cell.source_model),
        target_weights=digest("weights", cell.target_model),
        data=digest("data"),
        shard=cell.shard,
        version="0.1.0",
        created_at="2026-01-02T03:04:05.678900+00:00",
    )
    return replace(row, **changes)


def plan_tables() -> dict[str, pa.Table]:
    """Return the tables `cells`, `models` and `layers` of the sweep's plan."""
    depth = {layer: index / (len(LAYERS) - 1) for index, layer in enumerate(LAYERS)}
    cells = [
        {
            "cell_id": cell.cell_id,
            "source_model": cell.source_model,
            "source_layer": cell.source_layer,
            "source_index": LAYERS.index(cell.source_layer),
            "source_depth": depth[cell.source_layer],
            "target_model": cell.target_model,
            "target_layer": cell.target_layer,
            "target_index": LAYERS.index(cell.target_layer),
            "target_depth": depth[cell.target_layer],
            "matcher": cell.matcher,
            "params": "{}",
            "seed": cell.seed,
            "metrics": list(cell.metrics),
            "shard": cell.shard,
        }
        for cell in planned_cells()
    ]
    models = [_model(number, name) for number, name in enumerate(MODELS)]
    layers = [_layer(model, index, depth[layer]) for model in MODELS for index, layer in enumerate(LAYERS)]
    return {
        name: pa.Table.from_pylist(rows) for name, rows in (("cells", cells), ("models", models), ("layers", layers))
    }


def _model(number: int, name: str) -> dict[str, Any]:
    return {
        "model": name,
        "entry": "net",
        "architecture": "stitchgrid:resnet20",
        "args": canonical({"width": 8}),
        "weights_digest": digest("weights", name),
        "network_id": digest(name),
        "preprocess": canonical({"mean": [0.5]}),
        "num_parameters": 12_345,
        "num_classes": 10,
        "num_cuts": 7,
        "flops": 1e6,
        "accuracy": 0.9 - number / 100,
        "loss": 0.3 + number / 100,
        "num_eval": NUM_EVAL,
        "head": "logits",
        "is_untrained": False,
        "chance": 0.1,
        "is_at_chance": False,
        "problem": None,
        "remarks": ["rounding alone changes its scores"],
    }


def _layer(model: str, index: int, depth: float) -> dict[str, Any]:
    width, side = 8 * 2**index, 32 // 2**index
    return {
        "model": model,
        "layer": LAYERS[index],
        "node": f"{LAYERS[index]}.relu",
        "layer_index": index,
        "depth": depth,
        "kind": "map",
        "shape": [width, side, side],
        "width": width,
        "num_prefix": 0,
        "flops": 1e5 * (index + 1),
    }
