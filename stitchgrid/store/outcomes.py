"""What the parts of a store say about cells, in a form that answers a million questions quickly."""

import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.damage import Damage
from stitchgrid.store.parts import PartRows
from stitchgrid.store.standing import COLUMNS, Failure, standing, without_duplicates

__all__ = ["COLUMNS", "Outcomes"]

NOTHING: frozenset[str] = frozenset()


class Outcomes:
    """Which metrics of which cells are stored, and which cells failed last."""

    def __init__(self, rows: PartRows):
        self.damaged: tuple[Damage, ...] = rows.damaged
        table = without_duplicates(rows.table)
        ids = pc.unique(table["cell_id"]) if table.num_rows else pa.array([], pa.string())
        found = standing(table, ids)
        self._sets = found.sets
        self._which: list[int] = found.which.tolist()
        self._position: dict[str, int] = dict(zip(ids.to_pylist(), range(len(ids)), strict=True))
        last_at = found.last_at.take(pa.array(list(found.failures), pa.int64())).to_pylist()
        # An error stands until a value is stored after it.
        self._failures: dict[int, Failure] = {
            cell: failure
            for (cell, failure), last in zip(found.failures.items(), last_at, strict=True)
            if last is None or last <= failure.at
        }

    def metrics_done(self, cell_id: str) -> frozenset[str]:
        """Return the metrics that are stored for the cell; a metric stored as undefined (NULL) is stored."""
        position = self._position.get(cell_id)
        return NOTHING if position is None else self._sets[self._which[position]]

    def failed(self, cell_id: str) -> str | None:
        """Return the cell's latest error, None if there is none or a value was stored after it."""
        found = self._failure(cell_id)
        return None if found is None else found.error

    def quarantined(self, cell_id: str) -> bool:
        """Return whether the error that stands is a quarantine."""
        found = self._failure(cell_id)
        return found is not None and found.status == "quarantined"

    def _failure(self, cell_id: str) -> Failure | None:
        position = self._position.get(cell_id)
        return None if position is None else self._failures.get(position)
