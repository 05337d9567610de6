"""What rows say about cells: which metrics are stored, when the last one was stored, and the latest error."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.duplicates import Numbers, as_numbers, codes, earliest, encoded, has_repeats, is_latest, ranks

COLUMNS = ("cell_id", "status", "metric", "error", "created_at", "generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFailure:
    """The latest error of a cell."""

    at: str
    status: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatus:
    """The status of some cells, by their position."""

    sets: tuple[frozenset[str], ...]  # the distinct sets of stored metrics; they are few
    which: Numbers  # position in `sets` of each cell
    last_at: pa.Array  # when its last value was stored; NULL where there is none
    failures: dict[int, CellFailure]  # even if a value was stored later


def row_status(rows: pa.Table, ids: pa.Array) -> RowStatus:
    """Return the status of the cells with these distinct ids, by rows that have `COLUMNS` at least."""
    position = cell_positions(rows["cell_id"], ids)
    here = position >= 0
    is_value, is_error = value_mask(rows) & here, ~is_error_free(rows) & here
    sets, which = sets_of(rows["metric"].filter(pa.array(is_value)), position[is_value], len(ids))
    return RowStatus(
        sets=sets,
        which=which,
        last_at=_last(rows["created_at"], position, is_value, len(ids)),
        failures=_failures(rows.filter(pa.array(is_error)), position[is_error]),
    )


def cell_positions(column: pa.ChunkedArray, ids: pa.Array) -> Numbers:
    """Return the position in `ids` of every cell id of a column; -1 where it is not among them."""
    if pa.types.is_dictionary(column.type):  # look up each distinct id once
        array = encoded(column)
        found = pc.index_in(array.dictionary, value_set=ids).take(array.indices)
    else:
        found = pc.index_in(column, value_set=ids)
    return as_numbers(pc.fill_null(found, -1))


def is_error_free(rows: pa.Table) -> Numbers:
    """Return which rows have no error."""
    return as_numbers(pc.equal(rows["status"].cast(pa.string()), "done"))


def value_mask(rows: pa.Table) -> Numbers:
    """Return which rows hold a value, even an undefined one (NULL)."""
    return is_error_free(rows) & as_numbers(rows["metric"].is_valid())


def without_duplicates(rows: pa.Table) -> pa.Table:
    """Return the rows that count: in the highest generation of a cell, one value for each metric, and all errors."""
    latest = is_latest(rows)
    if not latest.all():
        rows = rows.filter(pa.array(latest))
    is_value = value_mask(rows)
    if not has_repeats(rows, is_value):
        return rows
    return pa.concat_tables([earliest(rows.filter(pa.array(is_value))), rows.filter(pa.array(~is_value))])


def sets_of(texts: pa.ChunkedArray, position: Numbers, num_cells: int) -> tuple[tuple[frozenset[str], ...], Numbers]:
    """Return the distinct sets of texts that cells have, which are few, and the position of each cell's set among them.

    No text is NULL; `position` is the position of each text's cell.
    """
    names: Sequence[str] = encoded(texts).dictionary.to_pylist()
    present = np.zeros((num_cells, max(1, len(names))), dtype=bool)
    present[position, codes(texts)] = True
    packed = np.ascontiguousarray(np.packbits(present, axis=1))
    _, first, which = np.unique(
        packed.view(np.dtype((np.void, packed.shape[1]))).ravel(), return_index=True, return_inverse=True
    )
    return tuple(frozenset(names[i] for i in np.flatnonzero(present[row]).tolist()) for row in first), which.ravel()


def _last(times: pa.ChunkedArray, position: Numbers, chosen: Numbers, num_cells: int) -> pa.Array:
    rank = ranks(times)
    last = np.full(num_cells, -1, dtype=np.int64)
    np.maximum.at(last, position[chosen], rank[chosen])
    dictionary = encoded(times).dictionary
    by_rank = dictionary.take(pc.sort_indices(dictionary))
    return by_rank.take(pa.array(last, mask=last < 0)).dictionary_encode()


def _failures(errors: pa.Table, position: Numbers) -> dict[int, CellFailure]:
    latest: dict[int, tuple[str, str, str]] = {}
    for cell, (at, status, error) in zip(position.tolist(), _texts(errors), strict=True):
        found = (at, status, error or "failed without a message")
        latest[cell] = max(latest.get(cell, found), found)
    return {cell: CellFailure(at=at, status=status, error=error) for cell, (at, status, error) in latest.items()}


def _texts(errors: pa.Table) -> Iterator[tuple[str, str, str]]:
    columns = (errors[name].to_pylist() for name in ("created_at", "status", "error"))
    return zip(*columns, strict=True)
