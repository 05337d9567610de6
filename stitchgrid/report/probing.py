"""Sections that compare a matcher with linear probes: sensitivity to lost directions, specificity between seeds."""

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from stitchgrid.report.content import Picture, Section, Verdict, make_table
from stitchgrid.report.correlation import FEWEST, RankCorrelation, rank_correlation, rho_interval
from stitchgrid.report.figures import Cloud, draw_clouds
from stitchgrid.report.report_queries import Asker, Row, by_label

LEVEL = 0.05  # of significance
RANKED = "try_cast(params ->> 'rank' as bigint) is not null"
SEEDS = """
source_model <> target_model and exists (
    select 1 from models as f join models as g
    on g.sweep = f.sweep and g.entry = f.entry and g.step is not distinct from f.step
    where f.sweep = cells.sweep and f.model = source_model and g.model = target_model
)
"""
CORRELATED = (
    "Dissimilarity is the matcher's score, with its sign chosen so that a higher value is less similar. rho is "
    "Spearman's, tau Kendall's rank correlation (tau-b) over all pairs; p is two-sided. Passed: rho above 0 with p "
    f"below {LEVEL}. Layers of one network are not independent, so p is too small. The mean rho is over single "
    "{groups}; groups is their number."
)
COLUMNS = ("label", "metric", "num_pairs", "rho", "rho_p", "tau", "tau_p", "mean_rho", "num_groups")


def sensitivity(ask: Asker) -> Section:
    """Return the section on whether a matcher notices that a layer loses directions which carry the labels."""
    rows = ask.rows("paper_sensitivity")
    return Section(
        title="Does a matcher see what a probe loses?",
        rule="Sensitivity (Ding et al. 2021): a layer's approximations of lower rank are matched with the whole layer. "
        "The more accuracy a linear probe loses by an approximation, the less similar the matcher must find it. "
        + CORRELATED.format(groups="layers"),
        query="paper_sensitivity",
        **_answer(rows, "accuracy_loss", lambda row: (row["model"], row["layer"])),
        missing=""
        if rows
        else ask.missing(
            (ask.plans(RANKED), "rank = [8, 4, 2, 1] on a matcher"),
            (ask.has_probes("rank is not null"), '[probes] rank = ["full", 8, 4, 2, 1]'),
        ),
    )


def specificity(ask: Asker) -> Section:
    """Return the section on whether a matcher finds layers of two seeds more alike if their probes' accuracies are."""
    rows = ask.rows("paper_specificity")
    return Section(
        title="Does a matcher distinguish layers of two seeds as probes do?",
        rule="Specificity (Ding et al. 2021): of two networks that differ in their seed, layers must be less similar "
        "if the accuracies of their linear probes differ more. " + CORRELATED.format(groups="pairs of networks"),
        query="paper_specificity",
        **_answer(rows, "accuracy_gap", lambda row: (row["source_model"], row["target_model"])),
        missing=""
        if rows
        else ask.missing(
            (ask.plans(SEEDS), 'two seeds of a model compared: seeds = [0, 1], [grid] pairs = "across"'),
            (ask.has_probes("rank is null"), "[probes]"),
        ),
    )


def correlate(rows: list[Row], against: str, group: Callable[[Row], Any]) -> Row:
    """Return the rank correlation of one matcher's dissimilarities with a column, over all rows and within groups."""
    found = _of(rows, against)
    parts: dict[Any, list[Row]] = {}
    for row in rows:
        parts.setdefault(group(row), []).append(row)
    single = [one.rho for part in parts.values() if (one := _of(part, against)).rho is not None]
    return {
        "label": rows[0]["label"],
        "metric": rows[0]["metric"],
        "num_pairs": found.num_pairs,
        "rho": found.rho,
        "rho_p": found.rho_p,
        "tau": found.tau,
        "tau_p": found.tau_p,
        "mean_rho": fmean(single) if single else None,
        "num_groups": len(single),
    }


def _of(rows: list[Row], against: str) -> RankCorrelation:
    return rank_correlation([row["dissimilarity"] for row in rows], [row[against] for row in rows])


def _answer(rows: list[Row], against: str, group: Callable[[Row], Any]) -> dict[str, Any]:
    """Return verdicts, table and figure of a section; nothing if there are no rows."""
    if not rows:
        return {}
    groups = by_label(rows)
    found = [correlate(part, against, group) for part in groups.values()]
    clouds = [
        Cloud(
            title=label,
            x=[row["dissimilarity"] for row in part],
            y=[row[against] for row in part],
            groups=[row.get("model", "") for row in part],
        )
        for label, part in groups.items()
    ]
    words = against.replace("_", " ")
    draw = partial(draw_clouds, clouds, x_label="dissimilarity", y_label=words)
    return {
        "verdicts": tuple(map(judge, found)),
        "tables": (make_table("By matcher", found, COLUMNS),),
        "pictures": (Picture(caption=f"Dissimilarity against the probes' {words}.", draw=draw),),
    }


def judge(found: Row) -> Verdict:
    """Return the verdict on a matcher by a rank correlation, or why there is none."""
    if found["rho"] is None:
        reason = "too few pairs" if found["num_pairs"] < FEWEST else "one side is constant"
        return Verdict(subject=found["label"], text=f"no rank correlation: {reason}", holds=None)
    p = "below 0.0001" if found["rho_p"] < 1e-4 else f"{found['rho_p']:.2g}"
    interval = rho_interval(found["rho"], found["num_pairs"])
    ends = "" if interval is None else f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})"
    text = f"rho {found['rho']:.2f}{ends}, p {p}, tau {found['tau']:.2f}, over {found['num_pairs']} pairs"
    return Verdict(subject=found["label"], text=text, holds=found["rho"] > 0 and found["rho_p"] < LEVEL)
