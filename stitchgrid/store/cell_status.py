"""The status of cells by the rows of a store, in a form that answers a million questions quickly."""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store import row_status as rows_say
from stitchgrid.store.damage import Damage
from stitchgrid.store.duplicates import Numbers, as_numbers, encoded, generations
from stitchgrid.store.parts import PartRows
from stitchgrid.store.row_status import CellFailure, cell_positions, row_status, sets_of, value_mask, without_duplicates

COLUMNS = (*rows_say.COLUMNS, "version", "libraries")
NOTHING: frozenset[str] = frozenset()
SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True)
class MadeWith:
    """The versions with which values were computed."""

    package: str  # version of stitchgrid
    libraries: tuple[tuple[str, str], ...] | None  # name and version of each, sorted; None: not noted


class CellStatus:
    """Which metrics of which cells are stored, from which computation and versions, and which cells failed last."""

    def __init__(self, rows: PartRows):
        self.damaged: tuple[Damage, ...] = rows.damaged
        table = without_duplicates(rows.table)
        ids = pc.unique(table["cell_id"]) if table.num_rows else pa.array([], pa.string())
        found = row_status(table, ids)
        self._table, self._ids = table, ids
        self._sets = found.sets
        self._which: list[int] = found.which.tolist()
        self._position: dict[str, int] = dict(zip(ids.to_pylist(), range(len(ids)), strict=True))
        last_at = found.last_at.take(pa.array(list(found.failures), pa.int64())).to_pylist()
        # An error counts until a value is stored after it.
        self._failures: dict[int, CellFailure] = {
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
        """Return whether the cell's latest error counts and is a quarantine."""
        found = self._failure(cell_id)
        return found is not None and found.status == "quarantined"

    def generation(self, cell_id: str) -> int | None:
        """Return the generation of a cell's rows: 0 if it was never computed again, None if it has no rows."""
        position = self._position.get(cell_id)
        return None if position is None else self._generations.get(position, 0)

    @property
    def last_generation(self) -> int:
        """The highest generation of any cell."""
        return max(self._generations.values(), default=0)

    def made_with(self, cell_id: str) -> frozenset[MadeWith]:
        """Return the versions that computed the cell's values: one entry, or several if metrics were added later."""
        position = self._position.get(cell_id)
        sets, which = self._origins
        return frozenset() if position is None else sets[which[position]]

    def _failure(self, cell_id: str) -> CellFailure | None:
        position = self._position.get(cell_id)
        return None if position is None else self._failures.get(position)

    @cached_property
    def _generations(self) -> dict[int, int]:
        """The generation of each cell that has one, by its position."""
        if self._table["generation"].null_count == self._table.num_rows:
            return {}
        generation = generations(self._table)
        chosen = np.flatnonzero(generation)
        position = cell_positions(self._table["cell_id"], self._ids)
        return dict(zip(position[chosen].tolist(), generation[chosen].tolist(), strict=True))

    @cached_property
    def _origins(self) -> tuple[list[frozenset[MadeWith]], Numbers]:
        """The distinct sets of versions, which are few, and the position of each cell's set among them."""
        values = self._table.filter(pa.array(value_mask(self._table)))
        columns = encoded(values["version"]), encoded(values["libraries"])
        version, libraries = (as_numbers(one.indices.fill_null(-1)).astype(np.int64) for one in columns)
        pairs, place = np.unique(np.stack([version, libraries]), axis=1, return_inverse=True)
        names = [[*one.dictionary.to_pylist(), ""] for one in columns]  # the last for NULL
        texts = [f"{names[0][v]}{SEPARATOR}{names[1][k]}" for v, k in pairs.T.tolist()]
        column = pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array(place.ravel(), pa.int32()), texts)])
        sets, which = sets_of(column, cell_positions(values["cell_id"], self._ids), len(self._ids))
        return [frozenset(map(_made_with, one)) for one in sets], which


def _made_with(text: str) -> MadeWith:
    package, _, libraries = text.partition(SEPARATOR)
    try:
        found = json.loads(libraries)
    except ValueError:
        found = None
    known = tuple(sorted((str(k), str(v)) for k, v in found.items())) if isinstance(found, dict) else None
    return MadeWith(package=package, libraries=known)
