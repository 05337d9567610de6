"""A report as one HTML page that needs nothing else: no script, figures inside, in the style of the atlas."""

import base64
import html
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from stitchgrid import __version__
from stitchgrid.atlas.page import asset, source_hash
from stitchgrid.printable import printable
from stitchgrid.report.content import (
    LACKS,
    NO_TESTS,
    TESTS,
    Lack,
    Picture,
    Section,
    SweepReport,
    Table,
    Verdict,
    as_text,
    is_number,
)

WORDS = {True: "passed", False: "failed", None: ""}


def render_page(reports: Sequence[SweepReport]) -> str:
    """Return the page about these sweeps."""
    style = asset("page.css") + _own("report.css")
    body = "\n".join(map(_sweep, reports)) or (
        "<p>The store holds no planned sweep: launch a job, then write the report again.</p>"
    )
    return Template(_own("report.html")).substitute(
        title=_text(" · ".join([*(report.sweep for report in reports), "stitchgrid report"])),
        style=style,
        style_hash=source_hash(style),
        body=body,
        version=_text(__version__),
    )


def _own(name: str) -> str:
    return files("stitchgrid.report").joinpath(name).read_text("utf-8")


def _text(text: str) -> str:
    """Return text as HTML shows it; whatever it holds, it stays text."""
    return html.escape(printable(text))


def _sweep(report: SweepReport) -> str:
    parts = [
        f'<h1>{_text(report.sweep)}</h1>\n<p class="lede">{_text(" · ".join(report.facts))}</p>',
        _section(report.found, "h2"),
        _table(report.networks),
        f"<h2>{_text(TESTS)}</h2>",
        *(_section(section, "h3") for section in report.answered),
        *([] if report.answered else [f'<p class="absent">{_text(NO_TESTS)}</p>']),
        *([_lacks(report.lacks)] if report.lacks else []),
    ]
    return "<article>\n" + "\n".join(parts) + "\n</article>"


def _lacks(lacks: Sequence[Lack]) -> str:
    items = "".join(f"<li><b>{_text(lack.what)}</b>: {_text(lack.why)}</li>" for lack in lacks)
    return f'<h2>{_text(LACKS)}</h2>\n<ul class="verdicts">{items}</ul>'


def _section(section: Section, tag: str) -> str:
    head = f'<{tag}>{_text(section.title)}</{tag}>\n<p class="small">{_text(section.rule)}</p>'
    if section.missing:
        return f"<section>\n{head}\n</section>"
    verdicts = '<ul class="verdicts">' + "".join(map(_verdict, section.verdicts)) + "</ul>"
    rest = [*map(_picture, section.pictures), *map(_table, section.tables)]
    source = f'<p class="small">All rows: <code>{_text(section.source)}</code></p>'
    return "\n".join(["<section>", head, verdicts, *rest, source, "</section>"])


def _verdict(verdict: Verdict) -> str:
    mark = f' <span class="{WORDS[verdict.holds]}">{WORDS[verdict.holds]}</span>' if WORDS[verdict.holds] else ""
    return f"<li><b>{_text(verdict.subject)}</b>: {_text(verdict.text)}{mark}</li>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.draw()).decode()
    caption = _text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f'<figcaption class="small">{caption}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    numeric = [any(is_number(row[k]) for row in table.rows) for k in range(len(table.columns))]

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if numeric[column] else ""
        return f"<{tag}{kind}>{_text(text)}</{tag}>"

    head = "".join(cell("th", k, name) for k, name in enumerate(table.columns))
    body = "\n".join(
        f"<tr>{''.join(cell('td', k, as_text(value)) for k, value in enumerate(row))}</tr>" for row in table.rows
    )
    left_out = f'<p class="small">{table.num_left_out:,} more rows are left out.</p>' if table.num_left_out else ""
    return (
        f'<div class="scroll"><table><caption class="small">{_text(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{left_out}"
    )
