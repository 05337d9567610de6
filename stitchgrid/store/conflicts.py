"""Cells with different values in two stores: differences beyond rounding, and cells that one of them computed again."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.duplicates import Numbers, as_numbers, codes, generations
from stitchgrid.store.row_status import value_mask
from stitchgrid.store.schemas import TEXT

TOLERANCE = 1e-6  # the largest difference that is rounding: absolute, and relative for values above 1
SHOWN = ("cell_id", "matcher", "source_layer", "target_layer", "metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One value that differs between two stores."""

    cell_id: str
    matcher: str
    source_layer: str
    target_layer: str
    metric: str
    here: float | None
    there: float | None

    def __str__(self) -> str:
        return (
            f"{self.matcher} {self.source_layer} -> {self.target_layer}, {self.metric}: {self.here} here, "
            f"{self.there} there (cell {self.cell_id})"
        )


class Comparison:
    """Rows of another store beside those of this one; in each, a cell and metric have one error or value."""

    def __init__(self, here: pa.Table, there: pa.Table):
        """Compare tables of one schema, that of parts."""
        both = pa.concat_tables([here, there]).unify_dictionaries()
        self._here, self._there, num = here, there, here.num_rows
        cell, generation = codes(both["cell_id"]), generations(both)
        self._cell = cell[num:]
        last_here, last_there = (np.full(int(cell.max(initial=-1)) + 1, -1, dtype=np.int64) for _ in range(2))
        np.maximum.at(last_here, cell[:num], generation[:num])
        np.maximum.at(last_there, cell[num:], generation[num:])
        self.is_replaced: Numbers = ((last_here >= 0) & (last_there > last_here))[self._cell]  # by a later computation
        counts = value_mask(both) & (generation == last_here[cell]) & (generation == last_there[cell])
        self._pair(both, cell, counts, num)
        differing = np.zeros(len(last_here), dtype=bool)
        differing[cell[num:][self._rows_there]] = True
        self.is_differing: Numbers = differing[self._cell]  # all rows there of a cell with another value

    def _pair(self, both: pa.Table, cell: Numbers, counts: Numbers, num: int) -> None:
        """Find the rows, here and there, of one cell and metric whose values differ."""
        metrics = codes(both["metric"])
        key = cell * (int(metrics.max(initial=0)) + 1) + metrics
        own_rows, other_rows = np.flatnonzero(counts[:num]), np.flatnonzero(counts[num:])
        own_rows = own_rows[np.argsort(key[own_rows], kind="stable")]
        place = np.searchsorted(key[own_rows], key[num + other_rows])
        if not len(own_rows) or not len(other_rows):
            self._rows_here = self._rows_there = np.zeros(0, dtype=np.int64)
            return
        match = own_rows[np.minimum(place, len(own_rows) - 1)]
        is_pair = key[match] == key[num + other_rows]
        match, other_rows = match[is_pair], other_rows[is_pair]
        values = as_numbers(both["value"])
        is_other = ~_are_same(values[match], values[num + other_rows])
        self._rows_here, self._rows_there = match[is_other], other_rows[is_other]

    def examples(self, most: int) -> list[Conflict]:
        """Return some of the values that differ, of the cells with the lowest ids first."""
        rows = self._there.select(SHOWN).take(pa.array(self._rows_there))
        order = pc.sort_indices(rows["cell_id"].cast(TEXT))[:most]
        here = self._here["value"].take(pa.array(self._rows_here)).take(order).to_pylist()
        there = self._there["value"].take(pa.array(self._rows_there)).take(order).to_pylist()
        found: list[Mapping[str, str]] = rows.take(order).to_pylist()
        return [Conflict(**one, here=own, there=other) for one, own, other in zip(found, here, there, strict=True)]


def _are_same(one: Numbers, other: Numbers) -> Numbers:
    """Return where values are the same except for rounding; NaN, which also stands for NULL, equals NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.maximum(1.0, np.maximum(np.abs(one), np.abs(other)))
        is_near = np.isfinite(one) & np.isfinite(other) & (np.abs(one - other) <= TOLERANCE * scale)
    same: Numbers = is_near | (one == other) | (np.isnan(one) & np.isnan(other))
    return same
