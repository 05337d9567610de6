"""The rows of a store in tables that fit into memory, each with the checks that all readers use."""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.files import Files
from stitchgrid.store.layout import PARTS, PartName
from stitchgrid.store.parts import Parts
from stitchgrid.store.schemas import PART
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.tiers import Tier

BATCH_ROWS = 500_000  # of parts read at once: bounds the memory


class RowReader:
    """Reads rows, and notes which files it read and which are damaged."""

    def __init__(self, files: Files):
        self.parts, self.snapshots = Parts(files), Snapshots(files)
        self.damaged: list[Damage] = []
        self.read_parts: set[str] = set()  # names of parts that are sound
        self.read_files: set[str] = set()  # data files that are sound, of those asked for by `of_tiers`

    def of_parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of parts, some 500,000 at a time."""
        batch: list[str] = []
        num_rows = 0
        for name in names:
            promise = PartName.parse(name)
            batch.append(name)
            num_rows += 0 if promise is None else promise.num_rows
            if num_rows >= BATCH_ROWS:
                yield self._batch(batch)
                batch, num_rows = [], 0
        if batch:
            yield self._batch(batch)

    def _batch(self, names: Sequence[str]) -> pa.Table:
        found = self.parts.read(PART.names, names)
        self.damaged += found.damaged
        bad = {one.file for one in found.damaged}
        self.read_parts |= {name for name in names if f"{PARTS}/{name}" not in bad}
        return found.table

    def of_tiers(self, tiers: Iterable[Tier]) -> Iterator[pa.Table]:
        """Yield the rows of data files."""
        for tier in tiers:
            if (table := self.rows(tier)) is not None:
                self.read_files.add(tier.file)
                yield table

    def rows(self, tier: Tier) -> pa.Table | None:
        """Return the rows of a data file; None if it is damaged, which is noted; the file stays as it is."""
        try:
            return self.snapshots.rows(tier, PART.names)
        except (DamagedFileError, StoreError) as problem:
            self.damaged.append(Damage(file=tier.file, reason=str(problem)))
            return None
