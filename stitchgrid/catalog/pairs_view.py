"""The view `pairs`, for people: one row per layer pair, a column per matcher and metric.

The columns depend on the values of the store, so they are determined when the view is first used. As in `scores`,
values of several seeds are averaged, and cells whose training diverged are left out. Residuals at later layers are only
in `profiles`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stitchgrid.catalog.labels import labels_of
from stitchgrid.catalog.views import LAYER_PAIR, SAMPLES
from stitchgrid.matchers.registry import MATCHERS

_COUNTS = "value is not null and not isnan(value) and not list_contains(flags, 'diverged')"
VARIANTS = f"""
select distinct sweep, matcher, params, {SAMPLES} as samples, metric
from results join matchers as m using (matcher) where not contains(metric, ':') order by all
"""
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("sweep", "matcher", "params")),
        ("samples", pa.int64()),
        ("metric", pa.string()),
        ("number", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the view's columns, and the table that gives the number of the column of each value."""

    names: tuple[str, ...]
    numbers: pa.Table

    @property
    def sql(self) -> str:
        """The statement behind the view; the table is `_columns`."""
        wide = [f"avg(value) filter (where number = {k}) as {_quoted(name)}" for k, name in enumerate(self.names)]
        return f"""
select sweep, {LAYER_PAIR}{"".join(f", {one}" for one in wide)}
from (
    select r.*, c.number
    from results as r
    join matchers as m using (matcher)
    join _columns as c on c.sweep = r.sweep and c.matcher = r.matcher and c.params = r.params
        and c.samples is not distinct from {SAMPLES} and c.metric = r.metric
    where {_COUNTS}
)
group by sweep, {LAYER_PAIR}
"""


def columns_of(variants: Iterable[Mapping[str, Any]]) -> Columns:
    """Return the columns for the rows of `VARIANTS`; each matcher has the label that it has in its sweep.

    >>> variant = {"sweep": "s", "matcher": "cka", "params": "{}", "samples": 9, "metric": "cka"}
    >>> columns_of([variant]).names
    ('cka.cka',)
    """
    rows = [dict(row) for row in variants]
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        mine = [row for row in rows if row["sweep"] == sweep]
        told = labels_of((row["matcher"], row["params"], row["samples"]) for row in mine)
        for row in mine:
            row["label"] = told[row["matcher"], row["params"], row["samples"]]
    kinds = list(MATCHERS)
    ordered = sorted(rows, key=lambda row: (_position(row["matcher"], kinds), row["label"], _place(row), row["metric"]))
    names = _unlike({f"{row['label']}.{row['metric']}": None for row in ordered})
    numbers = {name: number for number, name in enumerate(names)}
    placed = [row | {"number": numbers[f"{row['label']}.{row['metric']}"]} for row in rows]
    table = pa.Table.from_pylist([{name: row[name] for name in SCHEMA.names} for row in placed], schema=SCHEMA)
    return Columns(names=tuple(names.values()), numbers=table)


def _position(name: str, names: list[str]) -> int:
    return names.index(name) if name in names else len(names)


def _place(row: Mapping[str, Any]) -> int:
    kind = MATCHERS.get(row["matcher"])
    return _position(row["metric"], list(kind.metric_names) if kind else [])


def _unlike(names: Iterable[str]) -> dict[str, str]:
    """Return name -> a unique name of a column; DuckDB ignores case, so names must differ in more than case."""
    found: dict[str, str] = {}
    taken = {"sweep", *LAYER_PAIR.split(", ")}
    for name in names:
        told, number = name.replace("\0", " "), 2
        while told.casefold() in taken:
            told, number = f"{name.replace(chr(0), ' ')} ({number})", number + 1
        taken.add(told.casefold())
        found[name] = told
    return found


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
