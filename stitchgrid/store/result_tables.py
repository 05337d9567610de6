"""The tables of the views, joined once: rows of a sweep's cells with their names, and its cells with their status."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.duplicates import Numbers, codes, encoded, ranks
from stitchgrid.store.row_status import RowStatus, cell_positions, row_status, value_mask
from stitchgrid.store.schemas import CELL_STATES, RESULTS, TEXT, with_sweep

SEPARATOR = "\x1f"
RESULTS_ORDER = ("matcher", "source_model", "target_model", "metric", "target_index", "source_index")
CELLS_ORDER = ("matcher", "source_model", "target_model", "target_index", "source_index")


def results_of(sweep: str, cells: pa.Table, rows: pa.Table) -> pa.Table:
    """Return the values of a sweep's cells with its names for them, in the order in which heat maps are read."""
    values = rows.filter(pa.array(value_mask(rows)))
    found = [_named(sweep, some, values) for some in _distinct_ids(cells)]
    table = pa.concat_tables(found) if found else RESULTS.empty_table()
    return table.take(pa.array(order_by(table, RESULTS_ORDER))) if table.num_rows else table


def states_of(sweep: str, cells: pa.Table, rows: pa.Table) -> pa.Table:
    """Return a sweep's cells with their status by the rows, in the order in which heat maps are read."""
    ids = pc.unique(cells["cell_id"])
    found = row_status(rows, ids)
    position = cell_positions(cells["cell_id"], ids)
    table = with_sweep(sweep, cells)
    states = state_columns(found, position)
    for name in states.column_names:
        table = table.append_column(name, states[name])
    table = table.append_column("status", _status(table))
    table = table.select(CELL_STATES.names).cast(CELL_STATES)
    return table.take(pa.array(order_by(table, CELLS_ORDER))) if table.num_rows else table


def state_columns(found: RowStatus, position: Numbers) -> pa.Table:
    """Return the status of the cells at these positions: stored, last_at, failed_at, failed_as, failed_with."""
    return pa.table({**_what_is_stored(found, position), **_what_failed(found, position)})


def order_by(table: pa.Table, columns: tuple[str, ...]) -> Numbers:
    """Return the positions that sort a table by some of its columns."""
    keys = [ranks(table[name]) if _is_text(table[name].type) else table[name].to_numpy() for name in columns]
    return np.lexsort(keys[::-1])


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _distinct_ids(cells: pa.Table) -> Iterator[pa.Table]:
    """Yield the cells in tables without duplicate ids: networks that share weights share cells under several names."""
    ids = codes(cells["cell_id"])
    while len(ids):
        first = np.zeros(len(ids), dtype=bool)
        first[np.unique(ids, return_index=True)[1]] = True
        yield cells if first.all() else cells.filter(pa.array(first))
        cells, ids = cells.filter(pa.array(~first)), ids[~first]


def _named(sweep: str, cells: pa.Table, values: pa.Table) -> pa.Table:
    position = cell_positions(values["cell_id"], cells["cell_id"].cast(TEXT).combine_chunks())
    asked = _asks_for(cells["metrics"], position, values["metric"])
    values, names = values.filter(pa.array(asked)), with_sweep(sweep, cells).take(pa.array(position[asked]))
    columns = {name: names[name] if name in names.column_names else values[name] for name in RESULTS.names}
    return pa.table(columns).cast(RESULTS)


def _asks_for(wanted: pa.ChunkedArray, position: Numbers, metric: pa.ChunkedArray) -> Numbers:
    """Return for each row whether its cell is there and asks for its metric."""
    kinds, kind_of_cell = _kinds(wanted)
    names = encoded(metric).dictionary.to_pylist()
    table = np.array([[name in kind for name in names] for kind in kinds], dtype=bool).reshape(len(kinds), len(names))
    found = position >= 0
    asked = np.zeros(len(position), dtype=bool)
    asked[found] = table[kind_of_cell[position[found]], codes(metric)[found]]
    return asked


def _kinds(lists: pa.ChunkedArray) -> tuple[list[frozenset[str]], Numbers]:
    """Return the distinct sets (few) in a column of lists of texts, and the position of each row's set among them."""
    joined = encoded(pc.binary_join(lists.cast(pa.list_(TEXT)), SEPARATOR))
    kinds = [frozenset(text.split(SEPARATOR)) - {""} for text in joined.dictionary.to_pylist()]
    return kinds, codes(pa.chunked_array([joined]))


def _what_is_stored(found: RowStatus, position: Numbers) -> dict[str, pa.Array]:
    sets = pa.array([sorted(one) for one in found.sets], pa.list_(TEXT))
    at = pa.array(position)
    return {"stored": sets.take(pa.array(found.which[position])), "last_at": found.last_at.take(at).cast(TEXT)}


def _what_failed(found: RowStatus, position: Numbers) -> dict[str, pa.Array]:
    failures = list(found.failures.values())
    where = np.full(len(found.which), -1, dtype=np.int64)
    where[np.array(list(found.failures), dtype=np.int64)] = np.arange(len(failures))
    at = pa.array(where[position], mask=where[position] < 0)
    texts = {
        "failed_at": [one.at for one in failures],
        "failed_as": [one.status for one in failures],
        "failed_with": [one.error for one in failures],
    }
    return {name: pa.array(column, TEXT).take(at) for name, column in texts.items()}


def _status(table: pa.Table) -> pa.ChunkedArray:
    """Return done where all metrics are stored, the error's status where the latest error counts, else pending."""
    wanted, which_wanted = _kinds(table["metrics"])
    stored, which_stored = _kinds(table["stored"])
    covers = np.array([[have >= want for want in wanted] for have in stored], dtype=bool)
    done = pa.array(covers[which_stored, which_wanted]) if table.num_rows else pa.array([], pa.bool_())
    stands = pc.and_kleene(
        pc.is_valid(table["failed_at"]),
        pc.or_kleene(pc.is_null(table["last_at"]), pc.less_equal(table["last_at"], table["failed_at"])),
    )
    return pc.if_else(done, "done", pc.if_else(pc.fill_null(stands, False), table["failed_as"], "pending"))
