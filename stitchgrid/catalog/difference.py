"""The difference between two sweeps: which values changed, which are new, which are gone.

A cell of one sweep matches the cell of the other that has the same names of networks and layers, and the same matcher
(kind, parameters, seed). If a sweep has several such cells, they are matched in the order of their numbers of images.
"""

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.errors import InputError
from stitchgrid.store import Store
from stitchgrid.store.conflicts import TOLERANCE

KEY = "source_model, source_layer, target_model, target_layer, matcher, params, seed"
VALUES = f"""
select {KEY}, metric, value, cell_id,
       row_number() over (partition by {KEY}, metric order by num_fit, num_eval, cell_id) as nth
from results where sweep = $sweep
"""
CELLS = f"select {KEY}, any_value(status) as status from cells where sweep = $sweep group by all"
NAMES = f"{KEY}, metric".split(", ")
ON = " and ".join(f"a.{name} is not distinct from b.{name}" for name in (*NAMES, "nth"))
DIFFERENCE = f"""
with matched as (
    select {", ".join(f"coalesce(a.{name}, b.{name}) as {name}" for name in NAMES)},
           a.value as a, b.value as b, b.value - a.value as difference,
           case when a.cell_id is null then 'new'
                when b.cell_id is null then 'gone'
                when a.value is null and b.value is null or isnan(a.value) and isnan(b.value) or a.value = b.value
                    then 'same'
                when isfinite(a.value) and isfinite(b.value)
                     and abs(b.value - a.value) <= $tolerance * greatest(1, abs(a.value), abs(b.value))
                    then 'same'
                else 'changed' end as change
    from values_a as a full join values_b as b on {ON}
)
select m.change, {", ".join(f"m.{name}" for name in NAMES)}, m.a, m.b, m.difference,
       case m.change when 'gone' then b.status when 'new' then a.status end as status_there
from matched as m
left join cells_a as a on {{a}}
left join cells_b as b on {{b}}
order by m.change, abs(m.difference) desc nulls first, {", ".join(f"m.{name}" for name in NAMES)}
""".format(
    **{side: " and ".join(f"{side}.{name} is not distinct from m.{name}" for name in KEY.split(", ")) for side in "ab"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepAt:
    """A sweep, and the store that holds it."""

    store: str
    sweep: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two sweeps: a row for each value that is not the same, and counts of values."""

    # Columns: change, those of KEY, metric, a, b, difference, status_there: the cell's status in the sweep that lacks
    # the value.
    rows: pa.Table
    num_changed: int
    num_new: int
    num_gone: int
    num_same: int


def find_sweep(text: str, store: str) -> SweepAt:
    """Return the sweep that a text names: SWEEP (in the default store) or STORE:SWEEP.

    >>> find_sweep("s3://bucket/grid:digits", "grid")
    SweepAt(store='s3://bucket/grid', sweep='digits')

    Raises:
        InputError: If the text has neither form.
    """
    place, separator, sweep = text.rpartition(":")
    if not sweep or "/" in sweep or (separator and not place):
        raise InputError(f"wanted SWEEP or STORE:SWEEP, got {text!r}; name a sweep as 'stitchgrid status' lists it.")
    return SweepAt(store=place or store, sweep=sweep)


def compare(a: Catalog, sweep_a: str, b: Catalog, sweep_b: str, *, tolerance: float = TOLERANCE) -> Difference:
    """Return how a second sweep differs from a first one.

    Args:
        a: The catalog that holds the first sweep.
        sweep_a: Name of the first sweep.
        b: The catalog that holds the second sweep; it may be `a`.
        sweep_b: Name of the second sweep.
        tolerance: Values that differ by at most this much count as equal: absolute, and relative for values above 1.

    Raises:
        QueryError: If there is no such sweep.
    """
    with duckdb.connect(":memory:") as connection:
        for side, catalog, sweep in (("a", a, sweep_a), ("b", b, sweep_b)):
            catalog.require_sweep(sweep)
            connection.register(f"values_{side}", catalog.query(VALUES, {"sweep": sweep}))
            connection.register(f"cells_{side}", catalog.query(CELLS, {"sweep": sweep}))
        connection.execute("set enable_external_access = false")
        connection.execute(f"create table found as {DIFFERENCE}", {"tolerance": tolerance})
        counts = dict(connection.execute("select change, count(*) from found group by change").fetchall())
        rows = connection.sql("select * from found where change <> 'same'").to_arrow_table()
    return Difference(
        rows=rows,
        **{f"num_{change}": counts.get(change, 0) for change in ("changed", "new", "gone", "same")},
    )


def open_both(a: SweepAt, b: SweepAt) -> tuple[Catalog, Catalog]:
    """Return the catalogs of two sweeps: the same one twice if they are in one store.

    Raises:
        StoreError: If there is no store, or it cannot be read.
    """
    first = Catalog(Store.open(a.store))
    return first, first if a.store == b.store else Catalog(Store.open(b.store))
