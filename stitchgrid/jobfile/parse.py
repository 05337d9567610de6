"""A parsed TOML table -> a `Job`, or every problem in it at once."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stitchgrid.datasets.catalogue import TORCHVISION, WITH_KEYS, known_splits, own_parts
from stitchgrid.errors import JobFileError, nearest
from stitchgrid.jobfile.job import Job, MatcherEntry
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.questions import (
    ControlsTable,
    DiagnosticsTable,
    GridTable,
    IntervalsTable,
    MatcherTable,
    ProbesTable,
    TrainedMatcherTable,
)
from stitchgrid.jobfile.tables import (
    DataTable,
    HeadTable,
    LimitsTable,
    ModelTable,
    NumericsTable,
    OutliersTable,
    RecipeTable,
)
from stitchgrid.jobfile.values import check_name
from stitchgrid.live import LIVE
from stitchgrid.matchers.metrics import LABEL_METRICS, OOD_METRICS
from stitchgrid.matchers.registry import MATCHERS, default_metrics
from stitchgrid.paths import check_path, with_home
from stitchgrid.records import FEATURES, EnergyRecipe, MatcherSpec

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECTIONS = (
    *("name", "seed", "data", "numerics", "models", "recipes", "grid", "matchers", "probes", "diagnostics"),
    *("controls", "intervals", "limits"),
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a job asks of all of its stitchers."""

    ood: tuple[str, ...]
    energy: EnergyRecipe
    has_labels: bool = True


def parse_job(table: Mapping[str, Any], *, title: str, base: Path | None = None) -> Job:
    """Return the job in a table: a parsed job file, or what `Job.to_dict` returned.

    `base` is the folder in which relative paths start; the key `base` of a stored job comes before it.

    Raises:
        JobFileError: With every problem found.
    """
    problems = Problems()
    stored = _as_understood_now(table) if "base" in table else dict(table)
    job = read_job(stored, _base(stored.pop("base", None), problems) or base or Path.cwd(), problems)
    if job is None or problems.found:
        raise JobFileError(title, problems.found)
    return job


def _base(folder: object, problems: Problems) -> Path | None:
    """Return the folder that a stored job names, None where it names none."""
    try:
        return Path(check_path(folder)) if isinstance(folder, str) and folder else None
    except ValueError as problem:
        problems.add("base", str(problem))
        return None


def _as_understood_now(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored job with what version 0.1.0 meant by leaving it out.

    There, trained kinds and detectors took the whole fit split, whatever number of samples `fit` had.
    """
    stored = deepcopy(dict(table))
    try:
        return _with_samples(stored)
    except (AttributeError, KeyError, TypeError):  # not a job: what reads it says why
        return dict(table)


def _with_samples(stored: dict[str, Any]) -> dict[str, Any]:
    if stored["data"].get("fit", {}).get("samples") is None:
        return stored
    for item in stored["matchers"]:
        if item["kind"] in MATCHERS and MATCHERS[item["kind"]].is_trained:
            item.setdefault("samples", "all")
    metrics = {metric for item in stored["matchers"] for metric in item["metrics"]}
    if not metrics.isdisjoint(OOD_METRICS["energy"]):
        stored.setdefault("diagnostics", {}).setdefault("energy", {}).setdefault("samples", "all")
    return stored


def read_job(given: Mapping[str, Any], base: Path, problems: Problems) -> Job | None:
    """Return the job in a table, or None after noting what is wrong."""
    table = deepcopy(dict(given))
    _expand_variables(table, problems)
    for key in sorted(table.keys() - set(SECTIONS)):
        problems.add(key, f"unknown key; {nearest(key, SECTIONS)}")
    head = problems.check(HeadTable, {key: table[key] for key in ("name", "seed") if key in table}, "")
    data = _data(table, problems)
    numerics = problems.check(NumericsTable, table.get("numerics", {}), "numerics")
    recipes = _recipes(table, problems)
    models = [_model(item, where, recipes, problems) for where, item in _items(table, "models", problems)]
    grid = problems.check(GridTable, table.get("grid", {}), "grid")
    _check_names(table, grid, problems)
    probes = problems.check(ProbesTable, table["probes"], "probes") if "probes" in table else None
    controls = problems.check(ControlsTable, table.get("controls", {}), "controls") or ControlsTable()
    intervals = problems.check(IntervalsTable, table.get("intervals", {}), "intervals") or IntervalsTable()
    diagnostics = problems.check(DiagnosticsTable, table.get("diagnostics", {}), "diagnostics") or DiagnosticsTable()
    limits = problems.check(LimitsTable, table.get("limits", {}), "limits") or LimitsTable()
    if data is not None and data.outliers is not None and diagnostics.energy.outliers is not None:
        problems.add("diagnostics.energy.outliers", "there is [data.outliers] as well; leave one of them out")
    has_labels = data is None or data.labels != "none"
    asked = Asked(ood=diagnostics.ood, energy=_energy(diagnostics, data), has_labels=has_labels)
    items = [one for where, item in _items(table, "matchers", problems) for one in _swept(where, item, problems)]
    matchers = [_matcher(item, where, asked, problems) for where, item in items]
    _check_repeated(matchers, data.fit.samples if data else None, problems)
    if controls.shuffled and matchers and all(m is not None and MATCHERS[m.kind].is_trained for m in matchers):
        problems.add(
            "controls.shuffled", "no map is trained anew on shuffled images; add a matcher that is not trained"
        )
    if not has_labels:
        _check_unlabelled(probes, matchers, recipes, problems)
    if problems.found or head is None or data is None or numerics is None or grid is None:
        return None
    return Job(
        base=base.resolve(),
        name=head.name,
        seed=head.seed,
        data=data,
        numerics=numerics,
        models=tuple(model for model in models if model),
        recipes={name: recipe for name, recipe in recipes.items() if recipe},
        grid=grid,
        matchers=tuple(matcher for matcher in matchers if matcher),
        probes=probes,
        diagnostics=diagnostics,
        controls=controls,
        intervals=intervals,
        limits=limits,
    )


NO_LABELS = 'and the images have none (labels = "none" under [data])'


def _check_unlabelled(
    probes: ProbesTable | None,
    matchers: Sequence[MatcherEntry | None],
    recipes: Mapping[str, object],
    problems: Problems,
) -> None:
    """Refuse what is made with labels, where there are none."""
    if probes is not None:
        problems.add("probes", f"probes are fitted on labels, {NO_LABELS}; leave [probes] out, or give the labels")
    for name in recipes:
        problems.add(
            f"recipes.{name}", f"networks are trained on labels, {NO_LABELS}; give checkpoints as `weights` instead"
        )
    if any(matcher and matcher.energy for matcher in matchers):
        problems.add(
            "diagnostics.ood", f'detectors by energy are trained on labels, {NO_LABELS}; "mahalanobis" needs none'
        )


def _expand_variables(table: dict[str, Any], problems: Problems) -> None:
    """Replace ${VAR}, and ~ at the beginning, where paths stand: of images, weights and architectures."""
    data = table.get("data")
    places = [("data", data, "root")]
    if isinstance(data, dict):
        places.append(("data.outliers", data.get("outliers"), "root"))
    models = table.get("models")
    for position, model in enumerate(models if isinstance(models, list) else []):
        places += [(f"models[{position}]", model, key) for key in ("weights", "features", "architecture")]
        if isinstance(model, dict):
            places.append((f"models[{position}].weights", model.get("weights"), "file"))
    for where, item, key in places:
        if isinstance(item, dict) and isinstance(text := item.get(key), str):
            for name in sorted(set(VARIABLE.findall(text)) - os.environ.keys()):
                problems.add(f"{where}.{key}", f"environment variable {name} is not set, and {text!r} needs it")
            text = VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)
            try:
                item[key] = str(with_home(text)) if text.startswith("~") else text
            except ValueError as problem:
                problems.add(f"{where}.{key}", str(problem))


def _items(table: Mapping[str, Any], key: str, problems: Problems) -> list[tuple[str, Any]]:
    items = table.get(key)
    if not isinstance(items, list) or not items:
        problems.add(key, f"at least one [[{key}]] is needed" if items in (None, []) else f"write each as [[{key}]]")
        return []
    return [(f"{key}[{position}]", item) for position, item in enumerate(items)]


def _data(table: Mapping[str, Any], problems: Problems) -> DataTable | None:
    if "data" not in table:
        problems.add("data", "missing, but needed: which images to look at")
        return None
    data = problems.check(DataTable, table["data"], "data")
    if data is None:
        return None
    if (splits := known_splits(data.dataset)) is not None:
        for role, split in (("fit", data.fit.split), ("eval", data.eval.split)):
            if split not in splits:
                problems.add(f"data.{role}.split", f"{data.dataset} has no split {split!r}; {nearest(split, splits)}")
    _check_source(data, table["data"], "data", problems)
    if (other := data.outliers) is not None:
        splits = known_splits(other.dataset)
        if splits is not None and other.split not in splits:
            what = f"{other.dataset} has no split {other.split!r}; {nearest(other.split, splits)}"
            problems.add("data.outliers.split", what)
        _check_source(other, table["data"]["outliers"], "data.outliers", problems)
    if data.download and not (data.dataset in TORCHVISION and TORCHVISION[data.dataset].can_download):
        problems.add("data.download", f"{data.dataset} cannot be downloaded; leave `download` out")
    if data.classes is not None and data.class_order is not None:
        problems.add("data.class_order", "`classes` says the order already; leave one of them out")
    if data.labels == "none" and (data.classes is not None or data.class_order is not None):
        problems.add(
            "data.labels", 'images without labels ("none") have no classes; leave out `classes` and `class_order`'
        )
    return data


def _check_source(data: DataTable | OutliersTable, given: Mapping[str, Any], where: str, problems: Problems) -> None:
    """Note what a data set lacks, or takes no notice of; `given` is the table as it was written."""
    is_own = own_parts(data.dataset) is not None
    if data.root is None and data.dataset not in ("digits", LIVE) and not is_own and "root" not in given:
        problems.add(f"{where}.root", f"missing, but needed: where the images of {data.dataset} are")
    if isinstance(data, DataTable):
        if data.keys is not None and data.dataset not in WITH_KEYS:
            problems.add(f"{where}.keys", f"only {', '.join(WITH_KEYS)} have names to give; leave it out")
        if data.folder is not None and data.dataset != "list":
            problems.add(f"{where}.folder", "only the paths of a list start at a folder; leave it out")
    if data.args is not None and not is_own:
        problems.add(f"{where}.args", f"only FILE.py:function takes arguments, and not {data.dataset}; leave it out")


def _recipes(table: Mapping[str, Any], problems: Problems) -> dict[str, RecipeTable | None]:
    recipes = table.get("recipes", {})
    if not isinstance(recipes, Mapping):
        problems.add("recipes", "write each as [recipes.NAME]")
        return {}
    for name in recipes:
        try:
            check_name(name)
        except ValueError as problem:
            problems.add(f"recipes.{name}", str(problem))
    return {name: problems.check(RecipeTable, recipe, f"recipes.{name}") for name, recipe in recipes.items()}


NOT_OF_FEATURES = ("head", "inputs", "output", "preprocess", "seed")  # keys that say how a network is run


def _model(item: Any, where: str, recipes: Mapping[str, object], problems: Problems) -> ModelTable | None:
    if isinstance(item, Mapping) and item.get("architecture") == FEATURES:
        item = _features(item, where, problems)
    model = problems.check(ModelTable, item, where)
    if not isinstance(item, Mapping):
        return None
    seeds, weights = item.get("seeds"), item.get("weights", "random")
    if seeds is not None and item.get("seed") is not None:
        problems.add(f"{where}.seed", "give `seed` for one network or `seeds` for several, not both")
    if isinstance(weights, Mapping) and "train" in weights:
        if isinstance(name := weights.get("train"), str) and name not in recipes:
            problems.add(f"{where}.weights", f"no [recipes.{name}]; {nearest(name, recipes)}")
        return model
    if isinstance(weights, Mapping):
        weights = weights.get("file", "random")
    if isinstance(seeds, list) and len(seeds) > 1 and weights != "random" and "{seed}" not in str(weights):
        what = f"{weights!r} is the same for all `seeds`; put {{seed}} where the paths differ"
        problems.add(f"{where}.weights", what)
    return model


def _features(item: Mapping[str, Any], where: str, problems: Problems) -> Mapping[str, Any]:
    """Return an entry of features, whose files may be called `features` as well as `weights`."""
    for key in NOT_OF_FEATURES:
        if item.get(key):
            problems.add(f"{where}.{key}", "features are read, not run, so that it means nothing; leave it out")
    if "features" in item and "weights" in item:
        problems.add(f"{where}.features", "`weights` says where they are already; leave one of them out")
    item = {key: value for key, value in item.items() if key != "features"} | (
        {"weights": item["features"]} if "features" in item else {}
    )
    weights = item.get("weights")
    if isinstance(weights, Mapping) or weights == "random":
        problems.add(f"{where}.weights", "a file or folder of activations is wanted for features, got " + repr(weights))
    return item


def _check_names(table: Mapping[str, Any], grid: GridTable | None, problems: Problems) -> None:
    """Refuse repeated names of models, and pairs that name none or are none."""
    raw = table.get("models")
    items = [item if isinstance(item, Mapping) else {} for item in (raw if isinstance(raw, list) else [])]
    networks: dict[str, list[str]] = {}  # entry -> its networks
    for position, item in enumerate(items):
        if (name := str(item.get("name", ""))) in networks:
            problems.add(f"models[{position}].name", f"{name!r} is also the name of an earlier model")
        seeds = item.get("seeds")
        networks.setdefault(name, []).extend(
            [f"{name}/{seed}" for seed in seeds] if isinstance(seeds, list) else [name]
        )
    known = [name for name in dict.fromkeys([*networks, *itertools.chain(*networks.values())]) if name]
    if grid is None or grid.pairs in ("all", "within"):
        return
    if grid.pairs == "across":
        if sum(map(len, networks.values())) == 1:
            problems.add("grid.pairs", "'across' needs two networks, and there is one; add a model or `seeds`")
        return
    for position, pair in enumerate(grid.pairs):
        for name in dict.fromkeys(pair):
            if name not in known:
                problems.add(f"grid.pairs[{position}]", f"no model {name!r}; {nearest(name, known)}")


def _energy(diagnostics: DiagnosticsTable, data: DataTable | None) -> EnergyRecipe:
    made = diagnostics.energy.outliers or EnergyRecipe().outliers
    outliers = made if data is None or data.outliers is None else "data"
    samples = diagnostics.energy.samples
    known = samples if isinstance(samples, int) else None  # of others `Job.energy_recipe` knows
    return EnergyRecipe(**{**dict(diagnostics.energy), "outliers": outliers, "samples": known})


def _swept(where: str, item: Any, problems: Problems) -> list[tuple[str, Any]]:
    """Return an entry for each number of images in a list of `samples`; others as they are."""
    if not isinstance(item, Mapping) or not isinstance(samples := item.get("samples"), list):
        return [(where, item)]
    if not samples or any(one in samples[:position] for position, one in enumerate(samples)):
        problems.add(f"{where}.samples", f"a list of different numbers of images is needed, got {samples}")
        return []
    return [(where, {**item, "samples": one}) for one in samples]


def _matcher(item: Any, where: str, asked: Asked, problems: Problems) -> MatcherEntry | None:
    kind = item.get("kind") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or kind is None:
        problems.check(MatcherTable, item, where)
        return None
    if not isinstance(kind, str) or kind not in MATCHERS:
        problems.add(f"{where}.kind", f"{kind!r} is unknown; {nearest(str(kind), MATCHERS)}")
        return None
    matcher = MATCHERS[kind]
    shared = TrainedMatcherTable.model_fields if matcher.is_trained else MatcherTable.model_fields
    if "seeds" in item and not matcher.is_trained:
        trained = ", ".join(sorted(name for name, known in MATCHERS.items() if known.is_trained))
        problems.add(f"{where}.seeds", f"{kind} is not trained, so seeds mean nothing to it (trained: {trained})")
    own = {key: value for key, value in item.items() if key not in TrainedMatcherTable.model_fields}
    table = {key: value for key, value in item.items() if key in shared}
    common = problems.check(TrainedMatcherTable if matcher.is_trained else MatcherTable, table, where)
    params = problems.check(matcher.params, own, where, also_known=tuple(shared))
    if common is None or params is None:
        return None
    if any(common.rank) and item.get("cls") == "drop":
        what = 'a map that is zero on the prefix tokens is no longer of low rank about its mean; leave cls = "drop" out'
        problems.add(f"{where}.rank", what)
    if matcher.needs_labels and not asked.has_labels:
        followers = "soft_label or final_feature, which follow the target's own outputs"
        problems.add(f"{where}.kind", f"{kind} is trained on labels, {NO_LABELS}; take {followers}, or give the labels")
    if common.samples == "fit" and matcher.family == "index":
        problems.add(f"{where}.samples", f'{kind} is not fitted: a number of evaluation images, or "all"')
    for metric in common.metrics or ():
        if metric not in matcher.metric_names:
            problems.add(
                f"{where}.metrics", f"{kind} has no metric {metric!r}; {nearest(metric, matcher.metric_names)}"
            )
    if not asked.has_labels and (some := [metric for metric in common.metrics or () if metric in LABEL_METRICS]):
        problems.add(
            f"{where}.metrics",
            f"{', '.join(some)} need labels, {NO_LABELS}; agreement compares with the target's own answers",
        )
    added = (metric for word in asked.ood for metric in OOD_METRICS[word])
    wanted = {*(common.metrics or default_metrics(kind)), *added} & set(matcher.metric_names)
    wanted -= set() if asked.has_labels else set(LABEL_METRICS)
    return MatcherEntry(
        kind=kind,
        params=params,
        seeds=common.seeds if isinstance(common, TrainedMatcherTable) else None,
        samples=None if common.samples == "fit" else common.samples,
        ranks=common.rank,
        metrics=tuple(metric for metric in matcher.metric_names if metric in wanted),
        energy=None if wanted.isdisjoint(OOD_METRICS["energy"]) else asked.energy,
    )


def _check_repeated(matchers: Sequence[MatcherEntry | None], fit_samples: int | None, problems: Problems) -> None:
    """Refuse two entries that would compute the same cells, whatever their metrics."""
    first: dict[MatcherSpec, int] = {}
    for position, matcher in enumerate(matchers):
        for spec in matcher.specs(fit_samples=fit_samples, energy=matcher.energy) if matcher else ():
            if (other := first.setdefault(replace(spec, metrics=()), position)) != position:
                seed = "" if spec.seed is None else f" with seed {spec.seed}"
                rank = "" if spec.rank is None else f" of rank {spec.rank}"
                what = f"the same as matchers[{other}]: {spec.kind}{rank}{seed} and equal parameters; leave one out"
                problems.add(f"matchers[{position}]", what)
