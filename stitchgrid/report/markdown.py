"""A report as Markdown, to paste into a README: verdicts and tables, no figures."""

from collections.abc import Iterable, Sequence

from stitchgrid.printable import as_markdown
from stitchgrid.report.content import (
    LACKS,
    NO_TESTS,
    TESTS,
    ReportTable,
    Section,
    SweepReport,
    Verdict,
    as_text,
    is_number,
)

MARKS = {True: "passed", False: "failed", None: "-"}


def render_markdown(reports: Sequence[SweepReport]) -> str:
    """Return the report on these sweeps as Markdown."""
    if not reports:
        return "# Report\n\nThe store holds no planned sweep: launch a job, then write the report again.\n"
    return "\n".join(line for report in reports for line in _sweep(report)) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows literally, in one line.

    >>> escape("a\\n <b>")
    'a &lt;b&gt;'
    """
    return as_markdown(" ".join(text.split()))


def _sweep(report: SweepReport) -> Iterable[str]:
    yield from (f"# {escape(report.sweep)}", "", escape(", ".join(report.facts)), "")
    yield from _section(report.found, "##")
    yield from _table(report.networks)
    yield from (f"## {TESTS}", "")
    for section in report.answered:
        yield from _section(section, "###")
    if not report.answered:
        yield from (NO_TESTS, "")
    if report.lacks:
        yield from (f"## {LACKS}", "")
        yield from (f"- **{escape(lack.what)}**: {escape(lack.why)}" for lack in report.lacks)
        yield ""


def _section(section: Section, level: str) -> Iterable[str]:
    yield from (f"{level} {escape(section.title)}", "", escape(section.rule), "")
    if section.missing:
        return
    yield from map(_verdict, section.verdicts)
    yield ""
    for table in section.tables:
        yield from _table(table)
    if section.left_out:
        yield from (section.left_out, "")
    yield from (f"All rows: `{section.source}`", "")


def _verdict(verdict: Verdict) -> str:
    mark = f" ({MARKS[verdict.holds]})" if verdict.holds is not None else ""
    return f"- **{escape(verdict.subject)}**: {escape(verdict.text)}{mark}"


def _table(table: ReportTable) -> Iterable[str]:
    yield from (f"{escape(table.caption)}:", "")
    numeric = [any(is_number(row[k]) for row in table.rows) for k in range(len(table.columns))]
    yield f"| {' | '.join(map(escape, table.columns))} |"
    yield f"| {' | '.join('---:' if number else '---' for number in numeric)} |"
    for row in table.rows:
        yield f"| {' | '.join(escape(as_text(value)) for value in row)} |"
    if table.num_left_out:
        yield from ("", f"{table.num_left_out} more rows are left out.")
    yield ""
