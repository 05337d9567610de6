"""A report as one HTML page without scripts or other files: figures are inside, and the style is the atlas's."""

import base64
import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from operator import itemgetter
from string import Template
from typing import Any
from xml.sax.saxutils import quoteattr

from stitchgrid import __version__
from stitchgrid.atlas.page import asset, source_hash
from stitchgrid.printable import printable
from stitchgrid.report.content import (
    LACKS,
    NO_TESTS,
    TESTS,
    Judged,
    Lack,
    Picture,
    ReportTable,
    Section,
    SweepReport,
    Verdict,
    as_text,
    is_number,
)

WORDS = {True: "passed", False: "failed", None: ""}


def render_page(reports: Sequence[SweepReport]) -> str:
    """Return the report on these sweeps as an HTML page."""
    style = asset("page.css") + _own("report.css")
    body = "\n".join(_sweep(report, number) for number, report in enumerate(reports)) or (
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
    """Return text escaped for HTML, so that none of it is read as markup."""
    return html.escape(printable(text))


def _sweep(report: SweepReport, number: int) -> str:
    parts = [
        f'<h1>{_text(report.sweep)}</h1>\n<p class="lede">{_text(" · ".join(report.facts))}</p>',
        _section(report.found, "h2", f"s{number}"),
        _table(report.networks, {}),
        f"<h2>{_text(TESTS)}</h2>",
        *(_section(section, "h3", f"s{number}t{k}") for k, section in enumerate(report.answered)),
        *([] if report.answered else [f'<p class="absent">{_text(NO_TESTS)}</p>']),
        *([_lacks(report.lacks)] if report.lacks else []),
    ]
    return "<article>\n" + "\n".join(parts) + "\n</article>"


def _lacks(lacks: Sequence[Lack]) -> str:
    items = "".join(f"<li><b>{_text(lack.what)}</b>: {_text(lack.why)}</li>" for lack in lacks)
    return f'<h2>{_text(LACKS)}</h2>\n<ul class="verdicts">{items}</ul>'


def _section(section: Section, tag: str, name: str) -> str:
    head = f'<{tag}>{_text(section.title)}</{tag}>\n<p class="small">{_text(section.rule)}</p>'
    if section.missing:
        return f"<section>\n{head}\n</section>"
    groups = dict.fromkeys(group for table in section.tables for group in table.groups)
    ids = {group: f"{name}g{k}" for k, group in enumerate(groups)}
    verdicts = '<ul class="verdicts">' + "".join(_verdict(one, ids) for one in section.verdicts) + "</ul>"
    rest = [*map(_picture, section.pictures), *(_table(table, ids) for table in section.tables)]
    rest += [f'<p class="small">{_text(section.left_out)}</p>'] if section.left_out else []
    source = f'<p class="small">All rows: <code>{_text(section.source)}</code></p>'
    return "\n".join(["<section>", head, verdicts, *rest, source, "</section>"])


def _verdict(verdict: Verdict, ids: Mapping[str, str]) -> str:
    """Return a sentence, with a link to the rows that show it."""
    mark = f' <span class="{WORDS[verdict.holds]}">{WORDS[verdict.holds]}</span>' if WORDS[verdict.holds] else ""
    shown = ids.get(verdict.shown_by or "")
    link = f' <a href="#{shown}">Show them</a>' if shown else ""
    return f"<li><b>{_text(verdict.subject)}</b>: {_text(verdict.text)}{mark}{link}</li>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.draw()).decode()
    caption = _text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f'<figcaption class="small">{caption}</figcaption></figure>'
    )


def _table(table: ReportTable, ids: Mapping[str, str]) -> str:
    """Return a table; the rows of a group form one table body, which a link to it highlights."""
    numeric = [any(is_number(row[k]) for row in table.rows) for k in range(len(table.columns))]
    head = "".join(_cell("th", name, is_numeric=numeric[k]) for k, name in enumerate(table.columns))
    bodies = []
    grouped = zip(table.groups or [""] * len(table.rows), table.rows, strict=True)
    for group, rows in groupby(grouped, key=itemgetter(0)):
        lines = "\n".join(
            f"<tr>{''.join(_cell('td', value, is_numeric=numeric[k]) for k, value in enumerate(row))}</tr>"
            for _, row in rows
        )
        bodies.append(f"<tbody{f' id={quoteattr(ids[group])}' if group in ids else ''}>\n{lines}\n</tbody>")
    left_out = f'<p class="small">{table.num_left_out:,} more rows are left out.</p>' if table.num_left_out else ""
    caption = _text(table.caption)
    inside = f"<thead><tr>{head}</tr></thead>\n{''.join(bodies)}"
    if table.is_folded:
        shown = f'<div class="scroll"><table>{inside}</table></div>{left_out}'
        return f'<details><summary class="small">{caption}</summary>{shown}</details>'
    return f'<div class="scroll"><table><caption class="small">{caption}</caption>{inside}</table></div>{left_out}'


def _cell(tag: str, value: Any, *, is_numeric: bool) -> str:
    kinds = ["number"] * is_numeric
    kinds += [value.verdict.replace(" ", "-")] if isinstance(value, Judged) else []
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{attribute}>{_text(as_text(value))}</{tag}>"
