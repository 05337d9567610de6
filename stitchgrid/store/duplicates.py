"""One value for each cell and metric, even if rows were written twice: the earliest row of the highest generation.

A cell that is computed again gets rows of a higher generation. As soon as the first of them is stored, a value or an
error, no row of a lower generation counts: values and the evidence for them come from one computation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Numbers = np.ndarray[Any, np.dtype[Any]]


def is_latest(rows: pa.Table) -> Numbers:
    """Return which rows, values and errors, are of the highest generation of their cell; NULL is 0."""
    stays = np.ones(rows.num_rows, dtype=bool)
    if rows["generation"].null_count == rows.num_rows:
        return stays
    generation = generations(rows)
    if generation.min() == generation.max():
        return stays
    cell = codes(rows["cell_id"])
    highest = np.full(int(cell.max()) + 1, generation.min())
    np.maximum.at(highest, cell, generation)
    stays[:] = generation == highest[cell]
    return stays


def generations(rows: pa.Table) -> Numbers:
    """Return the generation of each row."""
    return as_numbers(pc.fill_null(rows["generation"], 0))


def earliest(values: pa.Table) -> pa.Table:
    """Return the rows without duplicates of (cell_id, metric)."""
    stays = is_earliest(values)
    return values if stays.all() else values.filter(pa.array(stays))


def has_repeats(rows: pa.Table, chosen: Numbers) -> bool:
    """Return whether two of the chosen rows have the same (cell_id, metric)."""
    keys = np.sort(_keys(rows)[chosen])
    return bool((keys[1:] == keys[:-1]).any())


def _keys(rows: pa.Table) -> Numbers:
    """Return one whole number for every distinct (cell_id, metric)."""
    cells, metrics = codes(rows["cell_id"]), codes(rows["metric"])
    found: Numbers = cells * (int(metrics.max(initial=0)) + 1) + metrics
    return found


def is_earliest(values: pa.Table) -> Numbers:
    """Return which rows stay: of those with one (cell_id, metric) the earliest; a tie is settled by their content.

    So it does not matter in which order or from which files the rows were read.
    """
    key = _keys(values)
    order = np.argsort(key, kind="stable")
    repeats = key[order][1:] == key[order][:-1]
    stays = np.ones(len(key), dtype=bool)
    if not repeats.any():
        return stays
    several = np.zeros(len(key), dtype=bool)  # rows that share their key with others
    several[order[1:][repeats]] = several[order[:-1][repeats]] = True
    rows = np.flatnonzero(several)
    age = ranks(values["created_at"])[rows]
    chosen = np.lexsort((_content_ranks(values, rows, key[rows], age), age, key[rows]))
    later = np.zeros(len(rows), dtype=bool)
    later[1:] = key[rows][chosen][1:] == key[rows][chosen][:-1]
    stays[rows[chosen[later]]] = False
    return stays


def repeated(rows: pa.Table, known: pa.Table) -> Numbers:
    """Return which rows are among the known ones: the same cell, metric, generation, moment and value.

    A cell may have several errors of one moment; these differ by their message.
    """
    both = pa.concat_tables([known, rows]).unify_dictionaries()
    key = _one_number(both, ("cell_id", "metric", "created_at"))
    if both["error"].null_count < both.num_rows:
        key = _one_number(both, ("status", "error"), key)
    if both["generation"].null_count < both.num_rows:
        generation = np.unique(generations(both), return_inverse=True)[1]
        key = key * (int(generation.max(initial=0)) + 1) + generation
    order = np.argsort(key[: known.num_rows], kind="stable")
    place = np.searchsorted(key[: known.num_rows][order], key[known.num_rows :])
    if not known.num_rows:
        return np.zeros(rows.num_rows, dtype=bool)
    candidate = order[np.minimum(place, known.num_rows - 1)]
    found: Numbers = key[candidate] == key[known.num_rows :]
    mine = np.flatnonzero(found)
    for name in both.column_names:
        if not pa.types.is_nested(both.schema.field(name).type):
            there, here = known[name].take(pa.array(candidate[mine])), rows[name].take(pa.array(mine))
            mine = mine[_same(there, here)]
    is_error = as_numbers(rows["error"].is_valid())
    found &= is_error
    found[mine] = True
    return found


def _one_number(rows: pa.Table, columns: Sequence[str], found: Numbers | None = None) -> Numbers:
    """Return one whole number for every distinct combination of texts, and of the numbers found before."""
    for name in columns:
        code = codes(rows[name]) + 1  # -1: NULL
        key = code if found is None else found * (int(code.max(initial=0)) + 1) + code
        found = np.unique(key, return_inverse=True)[1]
    assert found is not None
    return found


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Numbers:
    """Return where two columns have the same value; NULL equals NULL, and NaN equals NaN."""
    if pa.types.is_dictionary(one.type):
        one, other = one.cast(one.type.value_type), other.cast(one.type.value_type)
    same = as_numbers(pc.fill_null(pc.equal(one, other), False)) | as_numbers(
        pc.and_(pc.is_null(one, nan_is_null=True), pc.is_null(other, nan_is_null=True))
    )
    found: Numbers = same
    return found


def codes(column: pa.ChunkedArray) -> Numbers:
    """Return one whole number for every distinct text of a column."""
    return as_numbers(encoded(column).indices.fill_null(-1)).astype(np.int64)


def ranks(column: pa.ChunkedArray) -> Numbers:
    """Return whole numbers that sort like the texts of a column; -1 for NULL."""
    array = encoded(column)
    rank = np.empty(len(array.dictionary) + 1, dtype=np.int64)
    rank[as_numbers(pc.sort_indices(array.dictionary))] = np.arange(len(array.dictionary))
    rank[-1] = -1
    found: Numbers = rank[as_numbers(array.indices.fill_null(-1))]
    return found


def as_numbers(column: pa.Array | pa.ChunkedArray) -> Numbers:
    """Return a column without NULL as a numpy array."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: Numbers = array.to_numpy(zero_copy_only=False)
    return found


def encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a text column as one dictionary array."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # dictionaries that differ
        array = array.unify_dictionaries().combine_chunks()
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _content_ranks(values: pa.Table, rows: Numbers, key: Numbers, age: Numbers) -> Numbers:
    """Return numbers that sort rows of one key and age by their content; 0 for all others."""
    found = np.zeros(len(rows), dtype=np.int64)
    order = np.lexsort((age, key))
    same = (key[order][1:] == key[order][:-1]) & (age[order][1:] == age[order][:-1])
    tied = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    if len(tied):
        contents = [repr(tuple(row.values())) for row in values.take(pa.array(rows[tied])).to_pylist()]
        found[tied[np.argsort(np.array(contents, dtype=object), kind="stable")]] = np.arange(len(tied))
    return found
