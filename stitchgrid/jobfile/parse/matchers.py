"""Reads the tables [[matchers]] and [diagnostics]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stitchgrid.errors import nearest
from stitchgrid.jobfile.comparison_tables import DiagnosticsTable, MatcherTable, TrainedMatcherTable
from stitchgrid.jobfile.job import MatcherEntry
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.tables import DataTable
from stitchgrid.matchers.metrics import LABEL_METRICS, OOD_METRICS
from stitchgrid.matchers.registry import MATCHERS, default_metrics
from stitchgrid.records import EnergyRecipe, MatcherSpec


@dataclass(frozen=True, kw_only=True)
class StitcherContext:
    """What a job asks of all of its stitchers."""

    ood: tuple[str, ...]
    energy: EnergyRecipe
    has_labels: bool = True


NO_LABELS = 'and the images have none (labels = "none" under [data])'


def read_energy(diagnostics: DiagnosticsTable, data: DataTable | None) -> EnergyRecipe:
    """Return the recipe of detectors by energy."""
    made = diagnostics.energy.outliers or EnergyRecipe().outliers
    outliers = made if data is None or data.outliers is None else "data"
    samples = diagnostics.energy.samples
    known = samples if isinstance(samples, int) else None  # `Job.energy_recipe` resolves "all" and None
    return EnergyRecipe(**{**dict(diagnostics.energy), "outliers": outliers, "samples": known})


def swept(where: str, item: Any, problems: Problems) -> list[tuple[str, Any]]:
    """Return one entry for each number of images in a list of `samples`, or the entry itself if it has no list."""
    if not isinstance(item, Mapping) or not isinstance(samples := item.get("samples"), list):
        return [(where, item)]
    if not samples or any(one in samples[:position] for position, one in enumerate(samples)):
        problems.add(f"{where}.samples", f"a list of different numbers of images is needed, got {samples}")
        return []
    return [(where, {**item, "samples": one}) for one in samples]


def read_matcher(item: Any, where: str, asked: StitcherContext, problems: Problems) -> MatcherEntry | None:
    """Return a matcher's entry, None if it is unusable; note its problems."""
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
        problems.add(
            f"{where}.seeds", f"{kind} is not trained, so it has no seeds; leave them out (trained kinds: {trained})"
        )
    own = {key: value for key, value in item.items() if key not in TrainedMatcherTable.model_fields}
    table = {key: value for key, value in item.items() if key in shared}
    common = problems.check(TrainedMatcherTable if matcher.is_trained else MatcherTable, table, where)
    params = problems.check(matcher.params, own, where, also_known=tuple(shared))
    if common is None or params is None:
        return None
    if any(common.rank) and item.get("cls") == "drop":
        what = 'a source of low rank cannot have its prefix tokens dropped; leave cls = "drop" out'
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


def check_repeated(matchers: Sequence[MatcherEntry | None], fit_samples: int | None, problems: Problems) -> None:
    """Refuse two entries that would compute the same cells, whatever their metrics."""
    first: dict[MatcherSpec, int] = {}
    for position, matcher in enumerate(matchers):
        for spec in matcher.specs(fit_samples=fit_samples, energy=matcher.energy) if matcher else ():
            if (other := first.setdefault(replace(spec, metrics=()), position)) != position:
                seed = "" if spec.seed is None else f" with seed {spec.seed}"
                rank = "" if spec.rank is None else f" of rank {spec.rank}"
                what = f"the same as matchers[{other}]: {spec.kind}{rank}{seed} and equal parameters; leave one out"
                problems.add(f"matchers[{position}]", what)
