"""From a parsed TOML table to a `Job`, or to all problems in it at once."""

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from stitchgrid.errors import JobFileError, nearest
from stitchgrid.jobfile.comparison_tables import ControlsTable, DiagnosticsTable, GridTable, IntervalsTable, ProbesTable
from stitchgrid.jobfile.job import Job, MatcherEntry
from stitchgrid.jobfile.naming import named_networks
from stitchgrid.jobfile.parse.data import read_data
from stitchgrid.jobfile.parse.earlier import as_understood_now
from stitchgrid.jobfile.parse.matchers import (
    NO_LABELS,
    StitcherContext,
    check_repeated,
    read_energy,
    read_matcher,
    swept,
)
from stitchgrid.jobfile.parse.models import read_model, read_recipes
from stitchgrid.jobfile.parse.variables import expand_variables, tables_of
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.tables import LimitsTable, NumericsTable, TopLevelTable
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.paths import check_path

SECTIONS = (
    *("name", "seed", "data", "numerics", "models", "recipes", "grid", "matchers", "probes", "diagnostics"),
    *("controls", "intervals", "limits"),
)


def parse_job(table: Mapping[str, Any], *, title: str, base: Path | None = None) -> Job:
    """Return the job in a table: a parsed job file, or what `Job.to_dict` returned.

    `base` is the folder in which relative paths start, unless a stored job has a key `base` of its own.

    Raises:
        JobFileError: If the job has problems; it lists all of them.
    """
    problems = Problems()
    stored = as_understood_now(table) if "base" in table else dict(table)
    job = read_job(stored, _base(stored.pop("base", None), problems) or base or Path.cwd(), problems)
    if job is None or problems.found:
        raise JobFileError(title, problems.found)
    return job


def _base(folder: object, problems: Problems) -> Path | None:
    """Return the folder that a stored job names, None if it names none."""
    try:
        return Path(check_path(folder)) if isinstance(folder, str) and folder else None
    except ValueError as problem:
        problems.add("base", str(problem))
        return None


def read_job(given: Mapping[str, Any], base: Path, problems: Problems) -> Job | None:
    """Return the job in a table, None if it has problems, which are noted."""
    table = deepcopy(dict(given))
    expand_variables(table, problems)
    for key in sorted(table.keys() - set(SECTIONS)):
        problems.add(key, f"unknown key; {nearest(key, SECTIONS)}")
    top_level = problems.check(TopLevelTable, {key: table[key] for key in ("name", "seed") if key in table}, "")
    data = read_data(table, problems)
    numerics = problems.check(NumericsTable, table.get("numerics", {}), "numerics")
    recipes = read_recipes(table, problems)
    models = [read_model(item, where, recipes, problems) for where, item in tables_of(table, "models", problems)]
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
    asked = StitcherContext(ood=diagnostics.ood, energy=read_energy(diagnostics, data), has_labels=has_labels)
    items = [one for where, item in tables_of(table, "matchers", problems) for one in swept(where, item, problems)]
    matchers = [read_matcher(item, where, asked, problems) for where, item in items]
    check_repeated(matchers, data.fit.samples if data else None, problems)
    if controls.shuffled and matchers and all(m is not None and MATCHERS[m.kind].is_trained for m in matchers):
        problems.add(
            "controls.shuffled", "no map is trained anew on shuffled images; add a matcher that is not trained"
        )
    if not has_labels:
        _check_unlabelled(probes, matchers, recipes, problems)
    if problems.found or top_level is None or data is None or numerics is None or grid is None:
        return None
    return Job(
        base=base.resolve(),
        name=top_level.name,
        seed=top_level.seed,
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


def _check_unlabelled(
    probes: ProbesTable | None,
    matchers: Sequence[MatcherEntry | None],
    recipes: Mapping[str, object],
    problems: Problems,
) -> None:
    """Refuse probes, recipes and detectors, which need labels, if the images have none."""
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


def _check_names(table: Mapping[str, Any], grid: GridTable | None, problems: Problems) -> None:
    """Refuse repeated names of models, pairs of unknown models, and `across` for a single network."""
    raw = table.get("models")
    items = [item if isinstance(item, Mapping) else {} for item in (raw if isinstance(raw, list) else [])]
    networks: dict[str, list[str]] = {}  # entry -> its networks
    for position, item in enumerate(items):
        if (name := str(item.get("name", ""))) in networks:
            problems.add(f"models[{position}].name", f"{name!r} is also the name of an earlier model")
        seeds, steps = (one if isinstance(one := item.get(key), list) else None for key in ("seeds", "steps"))
        networks.setdefault(name, []).extend(word for word, *_ in named_networks(name, seeds, 0, steps))
    known = [name for name in dict.fromkeys([*networks, *itertools.chain(*networks.values())]) if name]
    if grid is None or grid.pairs in ("all", "within"):
        return
    if grid.pairs == "across":
        if sum(map(len, networks.values())) == 1:
            problems.add("grid.pairs", "'across' needs two networks, and there is one; add a model, `seeds` or `steps`")
        return
    for position, pair in enumerate(grid.pairs):
        for name in dict.fromkeys(pair):
            if name not in known:
                problems.add(f"grid.pairs[{position}]", f"no model {name!r}; {nearest(name, known)}")
