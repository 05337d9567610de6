"""Data files that no snapshot lists: the number of their rows without another copy, and how to recover them."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.compact import Compaction
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.duplicates import as_numbers, is_latest
from stitchgrid.store.files import Files
from stitchgrid.store.layout import DataName
from stitchgrid.store.parts import Parts
from stitchgrid.store.reading import Contents
from stitchgrid.store.row_status import value_mask
from stitchgrid.store.schemas import TEXT
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.tiers import Snapshot, as_tier

COLUMNS = ("cell_id", "status", "metric", "created_at", "generation")
PARTS_AT_ONCE = 256
SEPARATOR = "\x1f"


def count_missing(files: Files, found: Contents, name: str) -> int:
    """Return how many rows of a data file count (by their generation) and are nowhere else in the store.

    Raises:
        DamagedFileError: If the file is not what its name says.
        StoreError: If it cannot be read.
    """
    rows = Snapshots(files).rows(as_tier(name), COLUMNS)
    rows = rows.filter(pa.array(is_latest(rows)))
    for known in _known(files, found, name):
        if not rows.num_rows:
            break
        latest = is_latest(pa.concat_tables([known, rows.cast(known.schema)]).unify_dictionaries())[known.num_rows :]
        is_there = as_numbers(pc.is_in(_keys(rows), value_set=_keys(known)))
        rows = rows.filter(pa.array(latest & ~is_there))
    return int(rows.num_rows)


def _known(files: Files, found: Contents, name: str) -> Iterator[pa.Table]:
    for tier in found.snapshot.all_tiers:
        try:
            if tier.file != name:
                yield Snapshots(files).rows(tier, COLUMNS)
        except (DamagedFileError, StoreError):
            continue
    for start in range(0, len(found.loose), PARTS_AT_ONCE):
        yield Parts(files).read(COLUMNS, found.loose[start : start + PARTS_AT_ONCE]).table


def _keys(rows: pa.Table) -> pa.Array:
    """Return a text for each row: its cell, generation and metric; for an error, its moment instead of the metric."""
    metric, at = (rows[name].cast(TEXT) for name in ("metric", "created_at"))
    which = pc.if_else(pa.array(value_mask(rows)), metric, pc.binary_join_element_wise("at", pc.fill_null(at, ""), " "))
    generation = pc.fill_null(rows["generation"], 0).cast(TEXT)
    joined = pc.binary_join_element_wise(rows["cell_id"].cast(TEXT), generation, which, SEPARATOR)
    found = joined.combine_chunks()
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


class TakingBack(Compaction):
    """A compaction that takes in every data file that no snapshot lists, whatever its number."""

    def _next_number(self, snapshot: Snapshot) -> int:
        numbers = [
            found.number for name in self.snapshots.data_files() if (found := DataName.parse(name.split("/")[-1]))
        ]
        return max([snapshot.number, *numbers]) + 1


def take_back(files: Files) -> None:
    """Compact a store together with every data file that no snapshot lists.

    Raises:
        StoreError: If the store cannot be written.
    """
    TakingBack(files).run()
