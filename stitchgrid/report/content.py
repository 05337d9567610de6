"""What a report consists of, free of SQL and of markup."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One sentence about one matcher."""

    subject: str  # the matcher's label
    text: str
    holds: bool | None  # whether the matcher passes; None where there is no passing


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under column names, and where all of them come from."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    num_left_out: int = 0  # rows beyond those shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure as SVG."""

    caption: str
    svg: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question, the rule by which it is answered, and the answer, or what is missing for one."""

    title: str
    rule: str
    query: str  # the name of the query that gives its numbers
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    missing: str = ""  # what to add to the job, where there is nothing to report


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """All that is reported of one sweep."""

    sweep: str
    facts: tuple[str, ...]
    networks: Table
    sections: tuple[Section, ...]


def make_table(caption: str, rows: Rows, columns: Iterable[str], *, top: int | None = None) -> Table:
    """Return some columns of the rows, of the first `top` rows where there are more."""
    names = tuple(columns)
    shown = rows if top is None else rows[:top]
    return Table(
        caption=caption,
        columns=tuple({"label": "matcher"}.get(name, name) for name in names),
        rows=tuple(tuple(row[name] for name in names) for row in shown),
        num_left_out=len(rows) - len(shown),
    )


def as_text(value: Any) -> str:
    """Return a value as short text; what is not there is a dash.

    >>> [as_text(value) for value in (None, True, 3, 0.123456, "a", ["b <- c", "d"])]
    ['–', 'yes', '3', '0.1235', 'a', 'b <- c; d']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "; ".join(map(as_text, value))
    return str(value)


def is_number(value: Any) -> bool:
    """Return whether a value belongs on the right of its column."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def share(part: int, whole: int) -> str:
    """Return "part of whole (percent)".

    >>> share(7, 8)
    '7 of 8 (88 %)'
    """
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")
