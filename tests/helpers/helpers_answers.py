"""Stores with evidence of which every number is given, and the answers that follow from them, found without SQL."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from helpers_store import make_row
from scipy.stats import t

from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import canonical, digest
from stitchgrid.store import Store

LAYERS = ("l0", "l1", "l2", "l3")
GROUPS, DRAWS = 8, 40
UNSOUND = {"saturated", "underdetermined", "diverged", "unsound", "energy_unsound"}
TWIN = "@untrained"
TIE = 1e-6
OOD = ("ood_mahalanobis_auroc", "ood_energy_auroc")
DRAWN_MATCHERS = (("direct", None), ("cka_unbiased", None), ("pwcca", None), ("task_loss", 0), ("task_loss", 1))


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell, with what is stored of it."""

    source_model: str
    source_layer: str
    target_model: str
    target_layer: str
    matcher: str
    values: Mapping[str, float | None]  # by metric
    replicates: Sequence[float] | None = None  # of the score
    null: Sequence[float] | None = None
    params: str = "{}"
    seed: int | None = None
    num_fit: int = 200
    flags: tuple[str, ...] = ()

    @property
    def pair(self) -> tuple[str, str, str, str]:
        return self.source_model, self.source_layer, self.target_model, self.target_layer

    @property
    def cell_id(self) -> str:
        return digest(*self.pair, self.matcher, self.params, str(self.seed), str(self.num_fit))

    @property
    def shard(self) -> str:
        return digest("answers", self.source_model, self.target_model)

    @property
    def score(self) -> str:
        return MATCHERS[self.matcher].score

    @property
    def sign(self) -> int:
        return 1 if MATCHERS[self.matcher].metric(self.score).higher_is_similar else -1

    @property
    def similarity(self) -> float:
        value = self.values.get(self.score)
        return np.nan if value is None else self.sign * value

    @property
    def samples(self) -> int:
        return 1000 if MATCHERS[self.matcher].family == "index" else self.num_fit

    @property
    def stored(self) -> tuple[str, ...]:
        evidence = [f"{self.score}@groups={len(self.replicates)}"] if self.replicates is not None else []
        evidence += [f"{self.score}@shuffles={len(self.null)}"] if self.null is not None else []
        return (*self.values, *evidence)

    def rows(self) -> list[Any]:
        found = [self._row(metric, value) for metric, value in self.values.items()]
        value = self.values.get(self.score)
        for name in self.stored[len(self.values) :]:
            evidence: dict[str, Any] = {"null": tuple(self.null or ())}
            if "@groups=" in name:
                value_ = value or 0.0
                evidence = {"low": value_ - 0.01, "high": value_ + 0.01, "replicates": tuple(self.replicates or ())}
            found.append(self._row(name, value, **evidence))
        return found

    def _row(self, metric: str, value: float | None, **changes: Any) -> Any:
        num_fit = None if MATCHERS[self.matcher].family == "index" else self.num_fit
        told = {"params": self.params, "seed": self.seed, "num_fit": num_fit, "flags": self.flags}
        return make_row(self, metric, value, **told, **changes)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A sweep: its networks, each with what differs from the ordinary, and its cells."""

    cells: Sequence[PlannedCell]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"a": {}, "b": {}, f"a{TWIN}": {}})
    sweep: str = "planted"
    info: Mapping[str, Any] = field(default_factory=lambda: {"groups": GROUPS, "shuffles": DRAWS})

    def write(self, folder: Path | str) -> Store:
        """Return the store at `folder`, with this sweep in it."""
        store = Store.open(folder, create=True)
        revision = store.write_job(self.sweep, {"job": {"name": self.sweep}, "base": "."})
        store.write_plan(self.sweep, revision, **self.tables(), info=dict(self.info))
        shards: dict[str, list[Any]] = {}
        for cell in self.cells:
            shards.setdefault(cell.shard, []).extend(cell.rows())
        for shard, rows in shards.items():
            if rows:
                store.write_part(shard, rows)
        return store

    def tables(self) -> dict[str, pa.Table]:
        cells = [_cell(cell) for cell in self.cells]
        models = [_model(name) | dict(changes) for name, changes in self.models.items()]
        layers = [_layer(model, index) for model in self.models for index in range(len(LAYERS))]
        return {
            name: pa.Table.from_pylist(rows)
            for name, rows in (("cells", cells), ("models", models), ("layers", layers))
        }


def _cell(cell: PlannedCell) -> dict[str, Any]:
    ends = {
        f"{side}_{what}": value
        for side, layer in (("source", cell.source_layer), ("target", cell.target_layer))
        for what, value in (
            ("model", getattr(cell, f"{side}_model")),
            ("layer", layer),
            ("index", LAYERS.index(layer)),
            ("depth", LAYERS.index(layer) / 3),
        )
    }
    told = {"matcher": cell.matcher, "params": cell.params, "seed": cell.seed, "shard": cell.shard}
    return {"cell_id": cell.cell_id, **ends, **told, "metrics": list(cell.stored)}


def _model(name: str) -> dict[str, Any]:
    is_twin = name.endswith(TWIN)
    return {
        "model": name,
        "entry": name,
        "architecture": "stitchgrid:resnet20",
        "args": "{}",
        "weights_digest": digest("weights", name),
        "network_id": digest(name),
        "preprocess": canonical({}),
        "num_parameters": 100,
        "num_classes": 10,
        "num_cuts": 7,
        "flops": 1e6,
        "accuracy": 0.1 if is_twin else 0.9,
        "loss": 0.3,
        "num_eval": 1000,
        "head": "logits",
        "is_untrained": is_twin,
        "chance": 0.1,
        "is_at_chance": is_twin,
        "problem": None,
        "remarks": [],
    }


def _layer(model: str, index: int) -> dict[str, Any]:
    return {
        "model": model,
        "layer": LAYERS[index],
        "node": LAYERS[index],
        "layer_index": index,
        "depth": index / 3,
        "kind": "map",
        "shape": [8, 4, 4],
        "width": 8,
        "num_prefix": 0,
        "flops": 1e5,
    }


# The oracle -----------------------------------------------------------------------------------------------------------

Key = tuple[Any, ...]


def oracle(planted: Planted) -> dict[Key, dict[str, Any]]:
    """Return the answers of a sweep by (target, target layer, source, matcher, params, samples, seed)."""
    groups: dict[Key, list[PlannedCell]] = {}
    for cell in planted.cells:
        if not np.isnan(cell.similarity) and "diverged" not in cell.flags:
            source = cell.source_model.removesuffix(TWIN)
            key = (*cell.pair[2:], source, cell.matcher, cell.params, cell.samples, cell.seed)
            groups.setdefault(key, []).append(cell)
    found = {key: _answer(key[2], cells) for key, cells in groups.items() if any(_is_own(key[2], c) for c in cells)}
    for key, one in found.items():
        one["checks"] = _checks(planted, key, one, found)
        one["verdict"] = verdict(one["checks"], classless=_is_classless(planted, key))
    return found


def _is_own(source: str, cell: PlannedCell) -> bool:
    return cell.source_model == source


def _rank(cell: PlannedCell) -> tuple[Any, ...]:
    return -cell.similarity, LAYERS.index(cell.source_layer)


def _first(cells: Iterable[PlannedCell]) -> list[PlannedCell]:
    ordered = sorted(cells, key=_rank)
    for cell in ordered:
        if cell.pair[:2] == cell.pair[2:] and cell.similarity >= ordered[0].similarity - 1e-6:
            return [cell, *(other for other in ordered if other is not cell)]
    return ordered


def interval_of_difference(one: PlannedCell, other: PlannedCell) -> tuple[float, float] | None:
    """Return the 95 % interval of how much better the one is, from paired replicates."""
    left, right = one.replicates, other.replicates
    if left is None or right is None or len(left) != len(right) or len(left) < 2:
        return None
    d = one.sign * (np.array(left, np.float32).astype(float) - np.array(right, np.float32).astype(float))
    num = len(d)
    if not np.isfinite(d).all():
        return None
    error = np.sqrt((num - 1) / num * ((d - d.mean()) ** 2).sum())
    width = t.ppf(0.975, num - 1) * error
    middle = one.similarity - other.similarity
    return (middle - width, middle + width) if np.isfinite(width) and np.isfinite(middle) else None


def _answer(source: str, cells: list[PlannedCell]) -> dict[str, Any]:
    own = _first(cell for cell in cells if _is_own(source, cell))
    twins = _first(cell for cell in cells if not _is_own(source, cell))
    best, rivals = own[0], own[1:]
    intervals = [interval_of_difference(best, rival) for rival in rivals]
    is_usable = best.replicates is not None and len(best.replicates) > 1 and bool(np.isfinite(best.replicates).all())
    near = None
    if is_usable and all(interval is not None for interval in intervals):
        near = [best, *(rival for rival, interval in zip(rivals, intervals, strict=True) if interval[0] <= TIE)]
    low, high = intervals[0] if rivals and intervals[0] else (None, None)
    return {
        "best": best,
        "value": best.values[best.score],
        "runner_up": rivals[0].source_layer if rivals else None,
        "margin": best.similarity - rivals[0].similarity if rivals else None,
        "margin_low": low,
        "margin_high": high,
        "candidates": None if near is None else sorted(cell.source_layer for cell in near),
        "p": _p(best, own),
        "untrained_value": twins[0].values[best.score] if twins else None,
        "twin": twins[0] if twins else None,
    }


def _p(best: PlannedCell, own: Sequence[PlannedCell]) -> float | None:
    nulls = [cell.null for cell in own]
    if any(null is None or len(null) != len(nulls[0]) or len(null) == 0 for null in nulls):
        return None
    draws = best.sign * np.array(nulls, np.float32)  # None is NaN
    if not np.isfinite(draws).all():
        return None
    return (1 + (draws.max(0) >= np.float32(best.similarity)).sum()) / (1 + draws.shape[1])


def _checks(planted: Planted, key: Key, one: dict[str, Any], every: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    best, twin = one["best"], one["twin"]
    trained_kind, values = MATCHERS[best.matcher].is_trained, best.values
    interval = interval_of_difference(best, twin) if twin else None
    place = LAYERS.index(best.source_layer)

    def near(layer: str) -> bool:
        return abs(LAYERS.index(layer) - place) <= 1

    judges = [
        other["best"].source_layer
        for name, other in every.items()
        if name[:3] == key[:3] and name[3] != key[3] and not MATCHERS[name[3]].is_trained and name[4] == "{}"
    ]
    rivals = [cell for cell in planted.cells if cell.pair == best.pair and cell.matcher == "direct"]
    direct = [
        cell.values["residual"] for cell in rivals if "diverged" not in cell.flags and not np.isnan(cell.similarity)
    ]
    aurocs = [v for m, v in values.items() if m in ("ood_mahalanobis_auroc", "ood_energy_auroc") and v is not None]
    ratio = values.get("variance_ratio")
    ends = [planted.models[best.source_model], planted.models[best.target_model]]
    ends = [_model(name) | dict(end) for name, end in zip((best.source_model, best.target_model), ends, strict=True)]
    with_classes = [end for end in ends if end["head"] not in ("regression", "embedding")]
    above_untrained = None
    if twin and best.similarity <= twin.similarity + TIE:
        above_untrained = False
    elif interval:
        above_untrained = bool(interval[0] > TIE)
    return {
        "trained": not any(end["is_untrained"] for end in ends),
        "above_chance": not any(end["is_at_chance"] for end in with_classes) if with_classes else None,
        "localised": None if one["candidates"] is None else all(map(near, one["candidates"])),
        "above_untrained": above_untrained,
        "above_shuffled": None if one["p"] is None else bool(one["p"] < 0.05),
        "others_agree": sum(map(near, judges)) >= len(judges) / 2 if judges else None,
        "in_distribution": max(aurocs) <= 0.6 if aurocs else None,
        "not_collapsed": None if ratio is None else ratio >= 0.25,
        "undenied": min(direct) < 0.25 if direct and trained_kind else None,
        "sound": not UNSOUND & set(best.flags) and not _is_left_out(planted, key),
    }


def _is_left_out(planted: Planted, key: Key) -> bool:
    """Return whether a source layer of the question diverged."""
    return any(
        (*cell.pair[2:], cell.source_model, cell.matcher, cell.params, cell.samples, cell.seed) == key
        and "diverged" in cell.flags
        for cell in planted.cells
    )


def _is_classless(planted: Planted, key: Key) -> bool:
    heads = [planted.models[name].get("head", "logits") for name in (key[0], key[2])]
    return all(head in ("regression", "embedding") for head in heads)


def verdict(checks: Mapping[str, bool | None], *, classless: bool = False) -> str:
    """Return the verdict by its rule."""
    hard = ("trained", "above_chance", "above_untrained", "above_shuffled")
    if any(checks[name] is False for name in hard):
        return "not supported"
    needed = {*hard, "localised"} - ({"above_chance"} if classless else set())
    has_all = all(checks[name] for name in needed)
    return "supported" if has_all and False not in checks.values() else "weak"


def drawn(seed: int, *, keep: float = 1.0, spread: float = 0.05) -> Planted:
    """Return a sweep of which every number is drawn; `spread` is how far replicates lie about their value."""
    rng = np.random.default_rng(seed)
    names = ("a", "b", f"a{TWIN}", f"b{TWIN}")
    pairs = [(f, i, g, j) for f in names for g in ("a", "b") for i in LAYERS for j in LAYERS]
    cells = [
        _drawn_cell(rng, pair, matcher, matcher_seed, spread)
        for pair in pairs
        for matcher, matcher_seed in DRAWN_MATCHERS
        if rng.random() < keep
    ]
    models = {name: {"is_at_chance": name.endswith(TWIN) or bool(rng.random() < 0.2)} for name in names}
    return Planted(cells=cells, models=models)


def _drawn_cell(rng, pair, matcher, seed, spread):
    ends = dict(zip(("source_model", "source_layer", "target_model", "target_layer"), pair, strict=True))
    cell = PlannedCell(**ends, matcher=matcher, seed=seed, values={})
    gap = abs(LAYERS.index(pair[1]) - LAYERS.index(pair[3])) + 2 * pair[0].endswith(TWIN)
    likeness = 0.9 - 0.15 * gap + rng.normal(0, 0.1)
    value = likeness if cell.sign > 0 else 1 - likeness
    values = {cell.score: value}
    if matcher in ("direct", "task_loss"):
        values |= {"variance_ratio": rng.uniform(0.1, 1.2), OOD[0]: rng.uniform(0.3, 0.7)}
    if matcher == "direct":
        values[OOD[1]] = None if rng.random() < 0.3 else rng.uniform(0.3, 0.7)
    closed = matcher != "task_loss"
    return replace(
        cell,
        values=values,
        replicates=list(rng.normal(value, spread, GROUPS)),
        null=list(rng.normal(0.2 if cell.sign > 0 else 0.8, 0.25, DRAWS)) if closed else None,
        flags=tuple(flag for flag in ("saturated", "subsampled", "diverged") if rng.random() < 0.06),
    )
