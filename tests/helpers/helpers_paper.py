"""A synthetic sweep of random values with which tests of an index can be recomputed: three networks, four layers.

Two networks are seeds of one entry, the third is of another architecture. Stitchers have accuracies, residuals and
scores of the distribution, CKA also sources of reduced rank. `VALUES` is what was planted, for oracles without SQL.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from helpers_store import make_row

from stitchgrid.records import Row, canonical, digest
from stitchgrid.store import Store

SWEEP = "paper"
MODELS = ("net/0", "net/1", "other")
LAYERS = ("a", "b", "c", "d")
WIDTHS = (4, 8, 8, 16)
ACCURACY = {"net/0": 0.8, "net/1": 0.7, "other": 0.75}
OOD = ("ood_mahalanobis_auroc", "ood_mahalanobis_fpr95")
METRICS = {
    "direct": ("accuracy", "relative_accuracy", "residual", *OOD),
    "task_loss": ("accuracy", "relative_accuracy", "residual", *OOD),
    "cka": ("cka",),
}
SEEDS: dict[str, tuple[int | None, ...]] = {"direct": (None,), "task_loss": (0, 1), "cka": (None,)}
RANKS = (8, 4, 2, 1)  # of CKA's sources, beside the whole layers

# Planted: (source model, source layer, target model, target layer)
TIE = ("net/0", "d", "net/0", "b")  # cka: as good as the layer itself, which is the best
ON_THE_LINE = ("net/0", "a", "net/1", "a")  # direct: AUROC 0.6; the other way round 0.4: both in the distribution
UNSCORED = ("net/1", "a", "net/1", "b")  # direct: the AUROC is undefined
UNASKED = ("other", "a", "other", "b")  # task_loss: nobody asked for the detector
WITHOUT_DIRECT = ("other", "a", "other", "c")  # direct failed there
WITHOUT_RELATIVE = ("net/0", "a", "net/0", "c")  # task_loss has accuracy alone


@dataclass(frozen=True, kw_only=True)
class PaperCell:
    """One cell of the sweep."""

    source_model: str
    source_layer: str
    target_model: str
    target_layer: str
    matcher: str
    seed: int | None = None
    rank: int | None = None  # of the source, None: all of it

    @property
    def pair(self) -> tuple[str, str, str, str]:
        return self.source_model, self.source_layer, self.target_model, self.target_layer

    @property
    def cell_id(self) -> str:
        return digest("paper", *self.pair, self.matcher, str(self.seed), str(self.rank))

    @property
    def shard(self) -> str:
        return digest("paper", self.source_model, self.target_model)

    @property
    def params(self) -> str:
        epochs = {"epochs": 3} if self.matcher == "task_loss" else {}
        return canonical(epochs | ({} if self.rank is None else {"rank": self.rank}))

    @property
    def metrics(self) -> tuple[str, ...]:
        metrics = METRICS[self.matcher]
        if (self.pair, self.matcher) == (UNASKED, "task_loss"):
            metrics = tuple(metric for metric in metrics if metric not in OOD)
        if (self.pair, self.matcher) == (WITHOUT_RELATIVE, "task_loss"):
            metrics = tuple(metric for metric in metrics if metric != "relative_accuracy")
        return metrics


def paper_cells() -> Iterator[PaperCell]:
    """Yield all cells: every layer pair, and CKA of each layer of lower rank with the layer itself."""
    for pair in [(f, i, g, j) for f in MODELS for g in MODELS for j in LAYERS for i in LAYERS]:
        names = dict(zip(("source_model", "source_layer", "target_model", "target_layer"), pair, strict=True))
        for matcher, seeds in SEEDS.items():
            yield from (PaperCell(**names, matcher=matcher, seed=seed) for seed in seeds)
        if pair[:2] == pair[2:]:
            yield from (PaperCell(**names, matcher="cka", rank=rank) for rank in RANKS)


def _planted() -> dict[tuple[PaperCell, str], float | None]:
    """Return the value of every metric of every cell that has one."""
    rng = np.random.default_rng(20)
    found: dict[tuple[PaperCell, str], float | None] = {}
    for cell in paper_cells():
        gap = abs(LAYERS.index(cell.source_layer) - LAYERS.index(cell.target_layer))
        accuracy = float(rng.uniform(0.5, 0.8))
        drawn = {
            "accuracy": accuracy,
            "relative_accuracy": accuracy / ACCURACY[cell.target_model],
            "residual": float(rng.uniform(0, 0.5)) * bool(gap) + 0.01 * gap,
            "ood_mahalanobis_auroc": float(rng.uniform(0, 1)),
            "ood_mahalanobis_fpr95": float(rng.uniform(0, 1)),
            "cka": float(rng.uniform(0.2, 0.9)),
        }
        found |= {(cell, metric): drawn[metric] for metric in cell.metrics}
        if cell.matcher == "cka" and cell.rank is None and cell.pair in (TIE, (*TIE[2:], *TIE[2:])):
            found[cell, "cka"] = 0.95
        if cell.matcher == "direct" and cell.pair in (ON_THE_LINE, ON_THE_LINE[2:] + ON_THE_LINE[:2]):
            found[cell, OOD[0]] = 0.6 if cell.pair == ON_THE_LINE else 0.4
        if (cell.matcher, cell.pair) == ("direct", UNSCORED):
            found |= dict.fromkeys([(cell, OOD[0]), (cell, OOD[1])])
        if (cell.matcher, cell.pair) == ("direct", WITHOUT_DIRECT):
            found = {key: value for key, value in found.items() if key[0] != cell}
    return found


VALUES = _planted()
_rng = np.random.default_rng(21)
# Of the probe of each layer, whole (None) and of lower rank; rank 8 is that of no layer less wide.
PROBES = {
    (model, layer, rank): float(_rng.uniform(0.2, 0.8))
    for model in MODELS
    for layer in LAYERS
    for rank in (None, *RANKS)
}


def make_paper_store(
    folder: Path | str,
    *,
    sweep: str = SWEEP,
    rename: Mapping[str, str] | None = None,
    keep: Callable[[PaperCell, str], bool] = lambda cell, metric: True,
    flags: Callable[[PaperCell], tuple[str, ...]] = lambda cell: (),
    probes: bool = True,
) -> Store:
    """Write the sweep into a store at `folder`; `rename` gives networks and layers other names.

    `keep` says which metrics of which cells are stored, `flags` what is said of a cell besides.
    """
    names = rename or {}
    store = Store.open(folder, create=True)
    revision = store.write_job(sweep, {"job": {"name": sweep}, "base": "."})
    tables = paper_tables(names) | ({"probes": _probes(names)} if probes else {})
    store.write_plan(sweep, revision, **tables, info={})
    rows: dict[str, list[Row]] = {}
    for (cell, metric), value in VALUES.items():
        if not keep(cell, metric):
            continue
        row = replace(
            make_row(cell, None, None),
            source_layer=names.get(cell.source_layer, cell.source_layer),
            target_layer=names.get(cell.target_layer, cell.target_layer),
            metric=metric,
            value=value,
            params=cell.params,
            flags=flags(cell) if value is not None else ("undefined", *flags(cell)),
        )
        rows.setdefault(cell.shard, []).append(row)
    for shard, values in rows.items():
        store.write_part(shard, values)
    return store


def paper_tables(names: Mapping[str, str]) -> dict[str, pa.Table]:
    """Return the tables of the sweep's plan."""
    depth = {layer: index / (len(LAYERS) - 1) for index, layer in enumerate(LAYERS)}
    cells = [
        {
            "cell_id": cell.cell_id,
            "matcher": cell.matcher,
            "params": cell.params,
            "seed": cell.seed,
            "metrics": list(cell.metrics),
            "shard": cell.shard,
            **_end("source", cell.source_model, cell.source_layer, depth, names),
            **_end("target", cell.target_model, cell.target_layer, depth, names),
        }
        for cell in paper_cells()
    ]
    models = [_model(name, names) for name in MODELS]
    layers = [
        {
            "model": names.get(model, model),
            "layer": names.get(layer, layer),
            "node": f"{layer}.relu",
            "layer_index": index,
            "depth": depth[layer],
            "kind": "map",
            "shape": [WIDTHS[index], 4, 4],
            "width": WIDTHS[index],
            "num_prefix": 0,
            "flops": 1e5,
        }
        for model in MODELS
        for index, layer in enumerate(LAYERS)
    ]
    tables = {"cells": cells, "models": models, "layers": layers}
    return {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}


def _end(side: str, model: str, layer: str, depth: Mapping[str, float], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        f"{side}_model": names.get(model, model),
        f"{side}_layer": names.get(layer, layer),
        f"{side}_index": LAYERS.index(layer),
        f"{side}_depth": depth[layer],
    }


def _probes(names: Mapping[str, str]) -> pa.Table:
    rows = [
        {
            "model": names.get(model, model),
            "layer": names.get(layer, layer),
            "layer_index": LAYERS.index(layer),
            "layer_depth": LAYERS.index(layer) / (len(LAYERS) - 1),
            "rank": rank,
            "accuracy": accuracy,
            "loss": 1.0,
            "fit_accuracy": 0.9,
            "C": 1.0,
            "max_iter": 1000,
            "num_fit": 200,
            "num_eval": 1000,
            "num_iter": 50,
            "converged": True,
            "flags": [],
            "error": None,
        }
        for (model, layer, rank), accuracy in PROBES.items()
    ]
    return pa.Table.from_pylist(rows)


def _model(name: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model": names.get(name, name),
        "entry": name.partition("/")[0],
        "architecture": "stitchgrid:tiny10" if name == "other" else "stitchgrid:resnet20",
        "args": canonical({"width": 8}),
        "weights_digest": digest("weights", name),
        "network_id": digest(name),
        "preprocess": canonical({"mean": [0.5]}),
        "num_parameters": 12_345,
        "num_classes": 10,
        "num_cuts": 7,
        "flops": 1e6,
        "accuracy": ACCURACY[name],
        "loss": 0.3,
        "num_eval": 1000,
    }
