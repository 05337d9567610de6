"""The parts of a report, free of SQL and of markup."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stitchgrid.matchers.evidence import wilson_interval

TESTS = "How the matchers do in tests"  # the second part of a report
NO_TESTS = "The job has no data for any of them."
LACKS = "What to add to the job, so that more checks are computed"  # the last

#: The sign of each verdict on a best source.
MARKS = {"supported": "\N{CHECK MARK}", "weak": "~", "not supported": "\N{MULTIPLICATION SIGN}"}

Rows = Sequence[Mapping[str, Any]]


#: Headings for columns of queries; other columns only lose their underscores.
HEADINGS = {
    "label": "matcher",
    "num_layers": "layers",
    "num_parameters": "parameters",
    "num_eval": "evaluation images",
    "num_networks": "networks",
    "num_pairs": "pairs",
    "num_groups": "groups",
    "num_judged": "layers judged",
    "num_violations": "violations",
    "violation_share": "share",
    "chance_share": "share by chance",
    "num_later": "later",
    "num_earlier": "earlier",
    "num_triples": "triples",
    "num_cells": "cells",
    "num_scored": "scored",
    "num_in": "in",
    "num_left": "left",
    "num_collapsed": "collapsed",
    "num_claims": "claims",
    "num_misleading": "misleading",
    "num_unchecked": "unchecked",
    "mean_auroc": "mean AUROC",
    "mean_fpr95": "mean FPR95",
    "ood_mahalanobis_auroc": "AUROC, Mahalanobis",
    "ood_energy_auroc": "AUROC, energy",
    "stitch_residual": "own residual",
    "direct_residual": "residual of direct",
    "rho_p": "p of rho",
    "tau_p": "p of tau",
    "source_model": "source",
    "target_model": "target",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One sentence about one matcher."""

    subject: str  # the matcher's label
    text: str
    holds: bool | None  # whether the matcher passes; None if there is nothing to pass
    shown_by: str | None = None  # the group of rows, in a table of the section, that shows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The best source of a layer, and the verdict on it."""

    text: str
    verdict: str  # supported | weak | not supported


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTable:
    """A table of rows under column names."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    num_left_out: int = 0  # rows beyond those shown
    groups: tuple[str, ...] = ()  # the group of each row, to which verdicts link; rows of a group are consecutive
    is_folded: bool = False  # whether a page shows it only on demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure, which is only drawn where it is shown, since drawing takes longer than the rest of a section."""

    caption: str
    draw: Callable[[], bytes]  # gives SVG


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question, the rule by which it is answered, and the answer, or what is missing for one."""

    title: str
    rule: str
    query: str  # the name of the query that gives its numbers
    command: str = ""  # the command that gives them, if it is not a query
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[ReportTable, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: str = ""  # what the job lacks, if there is nothing to report
    left_out: str = ""  # a sentence on what is not shown

    @property
    def source(self) -> str:
        """The command that gives all rows."""
        return self.command or f"stitchgrid query {self.query}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """Something that the job lacks."""

    what: str  # to add, or to do
    why: str  # the questions that it would answer


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """All that is reported of one sweep."""

    sweep: str
    facts: tuple[str, ...]
    networks: ReportTable
    found: Section  # the answers for its networks
    sections: tuple[Section, ...]  # the tests of matchers, also those without data
    lacks: tuple[Lack, ...]  # everything to add to the job

    @property
    def answered(self) -> tuple[Section, ...]:
        """The tests for which there are data."""
        return tuple(section for section in self.sections if not section.missing)


def heading(column: str) -> str:
    """Return the heading of a column.

    >>> heading("num_misleading"), heading("relative_accuracy")
    ('misleading', 'relative accuracy')
    """
    return HEADINGS.get(column, column.replace("_", " "))


def make_table(caption: str, rows: Rows, columns: Iterable[str], *, top: int | None = None) -> ReportTable:
    """Return a table of some columns of the rows, at most the first `top` rows."""
    names = tuple(columns)
    shown = rows if top is None else rows[:top]
    return ReportTable(
        caption=caption,
        columns=tuple(map(heading, names)),
        rows=tuple(tuple(row[name] for name in names) for row in shown),
        num_left_out=len(rows) - len(shown),
    )


def as_text(value: Any) -> str:
    """Return a value as short text; None is a dash.

    >>> [as_text(value) for value in (None, True, 3, 0.123456, "a", ["b <- c", "d"])]
    ['–', 'yes', '3', '0.1235', 'a', 'b <- c; d']
    """
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, Judged):
        return f"{value.text} {MARKS[value.verdict]}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "; ".join(map(as_text, value))
    return str(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number, which tables align to the right."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def share(part: int, whole: int) -> str:
    """Return "part of whole" with the share and its 95 % interval (Wilson).

    >>> share(7, 8)
    '7 of 8 (88 %, 95 % interval 53 to 98 %)'
    """
    interval = wilson_interval(part / whole, whole) if whole else None
    if interval is None:
        return f"{part} of {whole}"
    low, high = (100 * end for end in interval)
    return f"{part} of {whole} ({100 * part / whole:.0f} %, 95 % interval {low:.0f} to {high:.0f} %)"
