"""What the parts of a store say about cells, in a form that answers a million questions quickly."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.parts import Damage, PartRows

COLUMNS = ("cell_id", "status", "metric", "error", "created_at")
NOTHING: frozenset[str] = frozenset()


class Outcomes:
    """Which metrics of which cells are stored, and which cells failed last."""

    def __init__(self, rows: PartRows):
        self.damaged: tuple[Damage, ...] = rows.damaged
        self._position: dict[str, int] = {}  # cell id -> position in _which
        self._which: list[int] = []  # position in _sets of each cell's metrics
        self._sets: list[frozenset[str]] = []  # the distinct sets of metrics, few
        self._errors: dict[str, tuple[str, str]] = {}  # cell id -> (status, error), where the error stands
        if rows.table.num_rows:
            self._index(rows.table)

    def metrics_done(self, cell_id: str) -> frozenset[str]:
        """Return the metrics that are stored for the cell; a metric stored as undefined (NULL) is stored."""
        position = self._position.get(cell_id)
        return NOTHING if position is None else self._sets[self._which[position]]

    def failed(self, cell_id: str) -> str | None:
        """Return the cell's latest error, None if there is none or a value was stored after it."""
        found = self._errors.get(cell_id)
        return None if found is None else found[1]

    def quarantined(self, cell_id: str) -> bool:
        """Return whether the error that stands is a quarantine."""
        return self._errors.get(cell_id, ("", ""))[0] == "quarantined"

    def _index(self, table: pa.Table) -> None:
        cells = _encoded(table["cell_id"])
        metrics = _encoded(table["metric"])
        is_value = pc.and_(pc.equal(table["status"].cast(pa.string()), "done"), pc.is_valid(table["metric"]))
        value_rows = np.flatnonzero(is_value.to_numpy())
        cell_of_row = cells.indices.to_numpy()
        metric_of_row = metrics.indices.fill_null(0).to_numpy()
        names: list[str] = metrics.dictionary.to_pylist()
        present = np.zeros((len(cells.dictionary), len(names)), dtype=bool)
        present[cell_of_row[value_rows], metric_of_row[value_rows]] = True
        distinct, which = np.unique(present, axis=0, return_inverse=True)
        self._sets = [frozenset(names[i] for i in np.flatnonzero(row)) for row in distinct]
        self._which = which.ravel().tolist()
        self._position = {cell_id: i for i, cell_id in enumerate(cells.dictionary.to_pylist())}
        self._errors = _standing_errors(table, is_value)


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a text column as one dictionary array; null where there is nothing to look up."""
    array = column.combine_chunks()
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _standing_errors(table: pa.Table, is_value: pa.ChunkedArray) -> dict[str, tuple[str, str]]:
    """Return the latest (status, error) of each cell that has no later value."""
    errors = table.filter(pc.not_equal(table["status"].cast(pa.string()), "done"))
    latest: dict[str, tuple[str, str, str]] = {}
    for cell_id, status, error, created_at in _rows(errors, ("cell_id", "status", "error", "created_at")):
        found = (created_at, status, error or "failed without a message")
        latest[cell_id] = max(latest.get(cell_id, found), found)
    if not latest:
        return {}
    concerned = pc.is_in(table["cell_id"].cast(pa.string()), value_set=pa.array(latest))
    values = table.filter(pc.and_(is_value, concerned))
    for cell_id, created_at in _rows(values, ("cell_id", "created_at")):
        if cell_id in latest and created_at > latest[cell_id][0]:
            del latest[cell_id]
    return {cell_id: (status, error) for cell_id, (_, status, error) in latest.items()}


def _rows(table: pa.Table, columns: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)
