"""Reads the report on sweeps from a catalog, and renders it as a page of HTML or as Markdown."""

from collections.abc import Callable, Sequence

from stitchgrid.catalog import Catalog
from stitchgrid.catalog.answers import Answer
from stitchgrid.catalog.missing_checks import additions
from stitchgrid.report.content import Lack, Section, SweepReport, make_table
from stitchgrid.report.distribution import misleading, out_of_distribution
from stitchgrid.report.markdown import render_markdown
from stitchgrid.report.matching import monotonicity, sanity_across, sanity_within
from stitchgrid.report.networks import answers_of, your_networks
from stitchgrid.report.page import render_page
from stitchgrid.report.probing import sensitivity, specificity
from stitchgrid.report.report_queries import Asker

SECTIONS: tuple[Callable[[Asker], Section], ...] = (
    sanity_within,
    sanity_across,
    out_of_distribution,
    misleading,
    sensitivity,
    specificity,
    monotonicity,
)
RENDERERS: dict[str, Callable[[Sequence[SweepReport]], str]] = {"html": render_page, "markdown": render_markdown}
STATUSES = "select status, count(*) as num_cells from cells where sweep = $sweep group by status order by status"
DIVERGED = (
    "select count(distinct cell_id) as num from results where sweep = $sweep and list_contains(flags, 'diverged')"
)
MATCHERS = "select distinct matcher from cells where sweep = $sweep order by matcher"
NETWORK_COLUMNS = ("model", "architecture", "accuracy", "num_layers", "num_parameters", "num_eval", "remarks")


def read_report(catalog: Catalog, sweep: str) -> SweepReport:
    """Return the report on a sweep."""
    ask = Asker(catalog, sweep)
    states = [f"{row['num_cells']:,} cells {row['status']}" for row in ask.sql(STATUSES)]
    matchers = ", ".join(row["matcher"] for row in ask.sql(MATCHERS))
    [diverged] = ask.sql(DIVERGED)
    if diverged["num"]:
        states.append(f"{diverged['num']:,} cells whose training diverged, left out of all that follows")
    networks = ask.rows("networks")
    answers = answers_of(ask)
    found, sections = your_networks(ask, answers), tuple(section(ask) for section in SECTIONS)
    return SweepReport(
        sweep=sweep,
        facts=(f"{len(networks)} networks", f"matched by {matchers}", *states),
        networks=make_table("Networks", networks, NETWORK_COLUMNS),
        found=found,
        sections=sections,
        lacks=_lacks(ask, answers, (found, *sections)),
    )


def _lacks(ask: Asker, answers: Sequence[Answer], sections: Sequence[Section]) -> tuple[Lack, ...]:
    """Return what to add to the job, each item once, with all the questions that it answers."""
    whys: dict[str, list[str]] = {one.what: [one.why] for one in additions(ask.catalog, ask.sweep, answers)}
    for section in sections:
        if section.missing:
            whys.setdefault(section.missing, []).append(section.title)
    return tuple(Lack(what=what, why="; ".join(why)) for what, why in whys.items())


def render_report(catalog: Catalog, sweeps: Sequence[str], form: str) -> str:
    """Return the report on some sweeps as `html` or `markdown`; the same store gives the same text.

    Raises:
        QueryError: If there is no such sweep.
    """
    for sweep in sweeps:
        catalog.require_sweep(sweep)
    return catalog.reading(lambda: RENDERERS[form]([read_report(catalog, sweep) for sweep in dict.fromkeys(sweeps)]))
