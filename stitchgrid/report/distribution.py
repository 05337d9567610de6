"""Sections on the claims of trained stitches: whether they left the distribution, and which claims are misleading."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from stitchgrid.catalog.misleading import count_misleading, misleading_limits, misleading_rule
from stitchgrid.catalog.missing_checks import OOD
from stitchgrid.report.content import Picture, ReportTable, Section, Verdict, make_table, share
from stitchgrid.report.figures import Cloud, draw_clouds
from stitchgrid.report.report_queries import Asker, Row, by_label

TOP = 20  # misleading layer pairs that are listed
SCORED = "list_contains(metrics, 'ood_mahalanobis_auroc') or list_contains(metrics, 'ood_energy_auroc')"
TRAINED = "list_contains(metrics, 'accuracy') and matcher in (select matcher from matchers where trained)"
POINTS = """
with accuracies as (
    select cell_id, value as accuracy from measurements where metric = 'accuracy'
)
select matcher, params, coalesce(num_fit, num_eval) as samples, split_part(metric, '_', 2) as detector, value as auroc,
       accuracy,
       if(source_model = target_model, if(source_layer = target_layer, 'self', 'within'), 'across') as relation
from results
join accuracies using (cell_id)
where sweep = $sweep and metric in ('ood_mahalanobis_auroc', 'ood_energy_auroc') and not isnan(value)
      and not list_contains(flags, 'diverged')
order by all
"""


def out_of_distribution(ask: Asker) -> Section:
    """Return the section on whether stitched rows are like the target's own."""
    rows = [row for row in ask.rows("paper_ood") if row["rank"] is None]
    groups = by_label(row | {"label": f"{row['label']}, {row['detector']}"} for row in rows)
    columns = ("num_cells", "num_scored", "num_in", "num_left", "num_collapsed", "mean_auroc", "mean_fpr95")
    return Section(
        title="Do stitched representations stay in the target's distribution?",
        rule="A detector distinguishes stitched rows from the target's own on the same images. In: AUROC within 0.1 of "
        "0.5. Left: above 0.6, rows such as the target never makes. Collapsed: below 0.4, rows nearer to the centre "
        "than the target's own, as least squares shrinks them. Self: one layer into itself; within: two layers of one "
        "network; corresponding: the same layer of two networks of one architecture; across: any others.",
        query="paper_ood",
        verdicts=tuple(_spread(label, group) for label, group in groups.items()),
        tables=(
            make_table(
                "By matcher, detector and relation", rows, ("label", "detector", "relation", *columns, "mean_accuracy")
            ),
        ),
        pictures=_scores(ask) if rows else (),
        missing="" if rows else ask.missing((ask.plans(SCORED), OOD.what)),
    )


def _spread(label: str, rows: list[Row]) -> Verdict:
    scored, stayed, left, collapsed = (
        sum(row[name] for row in rows) for name in ("num_scored", "num_in", "num_left", "num_collapsed")
    )
    parts = [f"{share(stayed, scored)} cells in the distribution", f"{left} left it", f"{collapsed} collapsed"]
    by_relation = ", ".join(
        f"{row['relation']} {row['mean_auroc']:.2f}" for row in rows if row["mean_auroc"] is not None
    )
    return Verdict(subject=label, text=f"{', '.join(parts)}; mean AUROC: {by_relation or 'none'}", holds=None)


def _scores(ask: Asker) -> tuple[Picture, ...]:
    points = [row for row in ask.told(ask.sql(POINTS)) if row["rank"] is None]
    clouds = [
        Cloud(
            title=label,
            x=[row["auroc"] for row in rows],
            y=[row["accuracy"] for row in rows],
            groups=[row["relation"] for row in rows],
        )
        for label, rows in by_label(row | {"label": f"{row['label']}, {row['detector']}"} for row in points).items()
    ]
    if not clouds:
        return ()
    draw = partial(draw_clouds, clouds, x_label="AUROC", y_label="accuracy", x_lines=(0.4, 0.6), x_limits=(-0.05, 1.05))
    return (
        Picture(caption="Accuracy of a stitch against its AUROC; between the lines it is in distribution.", draw=draw),
    )


def misleading(ask: Asker) -> Section:
    """Return the section on trained stitches whose claimed similarity direct matching and the detectors contradict."""
    limits = misleading_limits()
    rows = [row for row in ask.rows("misleading", all="true") if row["rank"] is None]
    listed = [row for row in rows if row["misleading"]]
    tables = (
        make_table("By pair of networks", _by_pair(ask, rows), PAIR_COLUMNS),
        _listed(listed),
    )
    return Section(
        title="Which claims of trained stitches are misleading?",
        rule=misleading_rule(),
        query="misleading",
        verdicts=tuple(_claims(label, group) for label, group in by_label(rows).items()),
        tables=tuple(table for table in tables if table.rows),
        pictures=_claimed(rows, limits) if rows else (),
        missing="" if rows else ask.missing((ask.plans(TRAINED), '[[matchers]] kind = "task_loss", with its accuracy')),
    )


def _listed(rows: list[Row]) -> ReportTable:
    """Return a table of misleading layer pairs, grouped by matcher."""
    shown = sorted(rows[:TOP], key=lambda row: str(row["label"]))  # keeps the order within a matcher
    table = make_table(f"The {TOP} with the highest residual of direct matching", shown, LISTED)
    return replace(table, groups=tuple(row["label"] for row in shown), num_left_out=len(rows) - len(shown))


PAIR_COLUMNS = ("source_model", "target_model", "label", "num_cells", "num_claims", "num_misleading", "num_unchecked")
LISTED = (
    "source_model",
    "source_layer",
    "target_model",
    "target_layer",
    "label",
    "seed",
    "relative_accuracy",
    "stitch_residual",
    "direct_residual",
    "ood_mahalanobis_auroc",
    "ood_energy_auroc",
)


def _claims(label: str, rows: list[Row]) -> Verdict:
    claims = [row for row in rows if row["claims"]]
    wrong = sum(row["misleading"] is True for row in claims)
    unchecked = sum(row["misleading"] is None for row in claims)
    text = f"{share(wrong, len(claims))} claims of similarity are misleading, of {len(rows)} cells"
    return Verdict(
        subject=label,
        text=text + (f"; {unchecked} claims could not be checked" if unchecked else ""),
        holds=None if unchecked == len(claims) else not wrong,
        shown_by=label if wrong else None,
    )


def _by_pair(ask: Asker, rows: list[Row]) -> list[Row]:
    return [
        row | {"source_model": row["source"], "target_model": row["target"]}
        for row in ask.told(asdict(one) for one in count_misleading(rows))
    ]


def _claimed(rows: list[Row], limits: Mapping[str, object]) -> tuple[Picture, ...]:
    words = {True: "misleading", False: "not", None: "unchecked"}
    known = [row for row in rows if row["direct_residual"] is not None]
    clouds = [
        Cloud(
            title=label,
            x=[row["direct_residual"] for row in group],
            y=[row["relative_accuracy"] for row in group],
            groups=[words[row["misleading"]] for row in group],
        )
        for label, group in by_label(known).items()
    ]
    if not clouds:
        return ()
    draw = partial(
        draw_clouds,
        clouds,
        x_label="residual of direct matching",
        y_label="relative accuracy",
        x_lines=(float(str(limits["residual"])),),
        y_lines=(float(str(limits["claim"])),),
    )
    caption = "Relative accuracy of a trained stitch against the residual of direct matching."
    return (Picture(caption=caption, draw=draw),)
