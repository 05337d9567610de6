"""Merge loose parts into snapshots: data files first, then the manifest that makes them count, then deletion.

Other rows are merged with them: those of snapshots that were copied here from another store, and those of data files
that no snapshot lists, because a manifest was lost or a compaction was stopped.

A compaction that is stopped at any point leaves the store in its old or its new state, apart from files that no
manifest names. Of two compactions at the same time, the first to publish wins, and the other drops its work.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.duplicates import Numbers, as_numbers, is_earliest, is_latest, repeated
from stitchgrid.store.files import Files
from stitchgrid.store.id_hashes import id_hashes, meet
from stitchgrid.store.layout import SNAPSHOT_DATA, DataName, ManifestName
from stitchgrid.store.materialized_views import MaterializedViews
from stitchgrid.store.parts import Parts
from stitchgrid.store.reading import Contents, contents
from stitchgrid.store.result_tables import order_by
from stitchgrid.store.row_reader import RowReader
from stitchgrid.store.row_status import value_mask, without_duplicates
from stitchgrid.store.schemas import PART, TEXT
from stitchgrid.store.snapshots import Snapshots, unlisted_tiers
from stitchgrid.store.tiers import Snapshot, Tier

TIER_ROWS = 1_000_000  # a data file is not merged with others beyond this
ROWS_ORDER = ("matcher", "source_network", "target_network", "metric", "target_layer", "source_layer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did."""

    num_parts: int  # merged
    num_rows: int  # in the snapshot
    num_files: int  # of the snapshot
    is_published: bool  # False: another compaction was faster, or there was nothing to do
    damaged: tuple[Damage, ...]  # left as they are


class Compaction:
    """One compaction of a store."""

    def __init__(self, files: Files):
        self.files, self.parts, self.snapshots, self.reader = files, Parts(files), Snapshots(files), RowReader(files)
        self.damaged: list[Damage] = self.reader.damaged
        self.tiers: list[Tier] = []
        self.is_beaten = False  # by another compaction, which published first
        self.written: list[str] = []
        self.touched: list[Numbers] = []  # hashes of the cells with new rows
        self.has_lost = False  # a tier
        self._hashes: dict[str, Numbers] = {}  # file of a tier -> hashes of its cells
        self.number = 0

    def run(self) -> Compacted:
        """Merge all loose parts that are sound.

        Raises:
            StoreError: If the store cannot be written.
        """
        found = contents(self.files)
        self.damaged += found.damaged
        self.number = self._next_number(found.snapshot)
        self.snapshots.require_number(self.number)
        self.tiers = self._present(found.snapshot)
        self._take(found)
        extracts = MaterializedViews(self.snapshots, self.number)
        self.tiers, cells = extracts.make(self.tiers, found.snapshot, None if self.has_lost else self.touched)
        self.damaged += extracts.damaged
        self.written += extracts.written
        still_there = set(self.parts.names()) & found.snapshot.replaces
        snapshot = Snapshot(
            number=self.number,
            tiers=tuple(self.tiers),
            cells=cells,
            replaces=frozenset(self.reader.read_parts | still_there),
            names=found.snapshot.names,
        )
        snapshot = replace(snapshot, before=frozenset(found.snapshot.files() - snapshot.files()))
        if self._is_as(found.snapshot, snapshot):
            kept = replace(found.snapshot, replaces=frozenset(still_there), before=frozenset())
            self.snapshots.delete_unneeded(kept, self.reader.read_files | found.snapshot.before)
            return self._report(found.snapshot, is_published=False)
        return self._publish(snapshot, found.snapshot)

    def _next_number(self, snapshot: Snapshot) -> int:
        return snapshot.number + 1

    def _is_as(self, found: Snapshot, snapshot: Snapshot) -> bool:
        """Return whether a snapshot adds nothing to the one found, and the manifests found have digests as names."""
        is_numbered = any(_has_number_alone(name) for name in found.names - found.follows)
        is_same = (snapshot.tiers, snapshot.cells) == (found.tiers, found.cells)
        return is_same and not (self.reader.read_parts or found.loose or is_numbered)

    def _publish(self, snapshot: Snapshot, previous: Snapshot) -> Compacted:
        name = self.snapshots.publish(snapshot)
        self.snapshots.delete_own(self.number, self.written)
        if name is not None:
            self.snapshots.delete_unneeded(snapshot, self.reader.read_files | previous.before)
        self.is_beaten = name is None
        return self._report(snapshot, is_published=name is not None)

    def _report(self, snapshot: Snapshot, *, is_published: bool) -> Compacted:
        return Compacted(
            num_parts=len(self.reader.read_parts),
            num_rows=sum(tier.num_rows for tier in snapshot.tiers),
            num_files=len(snapshot.files()),
            is_published=is_published,
            damaged=tuple(self.damaged),
        )

    # Rows -------------------------------------------------------------------------------------------------------------

    def _present(self, snapshot: Snapshot) -> list[Tier]:
        """Return the tiers that can be kept; those without a list of their ids are written again."""
        here = {f"{SNAPSHOT_DATA}/{name}" for name in self.files.names(SNAPSHOT_DATA)}
        kept = []
        for tier in snapshot.tiers:
            ids = self._read_ids(tier)
            if tier.file not in here:
                self.has_lost = True
            elif ids is not None:
                self._hashes[tier.file] = id_hashes(ids)
                kept.append(tier)
            else:
                try:
                    self._add(self.snapshots.rows(tier, PART.names), onto=kept)
                except (DamagedFileError, StoreError) as problem:
                    self.damaged.append(Damage(file=tier.file, reason=str(problem)))
        return kept

    def _read_ids(self, tier: Tier) -> pa.Array | None:
        """Return the ids of the cells of a tier; None where the list is lost."""
        try:
            return self.snapshots.ids(tier) if tier.ids else None
        except (DamagedFileError, StoreError):
            return None

    def _take(self, found: Contents) -> None:
        """Add to the tiers all rows that may not be in them yet."""
        unlisted = [tier for tier in unlisted_tiers(self.files, found.snapshot) if _number_of(tier) < self.number]
        for table in self.reader.of_parts(found.loose):
            self._add(table)
        for table in self.reader.of_tiers([*found.snapshot.loose, *unlisted]):
            self._add(table)

    def _add(self, table: pa.Table, onto: list[Tier] | None = None) -> int:
        """Make rows a tier, merged with smaller tiers and with tiers that hold later duplicates.

        Return the number of rows that no tier holds, or holds only as later duplicates.
        """
        tiers = self.tiers if onto is None else onto
        if not table.num_rows:
            return 0
        table = without_duplicates(table)
        together = []
        mine = id_hashes(table["cell_id"])
        for tier in list(tiers):
            if not meet(mine, self._hashes[tier.file]):
                continue
            table, is_needed = self._compare(table, tier)
            if is_needed:
                together.append(tier)
        if not table.num_rows:
            return 0
        for tier in sorted(tiers, key=lambda one: one.num_rows):
            total = table.num_rows + sum(one.num_rows for one in together)
            if tier not in together and tier.num_rows <= total and tier.num_rows + total <= TIER_ROWS:
                together.append(tier)
        found = [(tier, rows) for tier in together if (rows := self.reader.rows(tier)) is not None]
        together = [tier for tier, _ in found]
        tables = [table, *(rows.cast(table.schema) for _, rows in found)]
        tiers[:] = [tier for tier in tiers if tier not in together]
        tiers += self._write(pa.concat_tables(tables).unify_dictionaries().combine_chunks())
        return int(table.num_rows)

    def _compare(self, table: pa.Table, tier: Tier) -> tuple[pa.Table, bool]:
        """Return the rows without those that a tier holds earlier, or in a higher generation of their cell.

        Also return whether the tier itself has rows that are to be removed.
        """
        if (old := self.reader.rows(tier)) is None:
            return table, False
        old = _of_cells(old, pc.unique(table["cell_id"].cast(TEXT))).cast(table.schema)
        if not old.num_rows:
            return table, False
        common = pc.unique(old["cell_id"].cast(TEXT))
        is_new = np.ones(table.num_rows, dtype=bool)
        chosen = np.flatnonzero(as_numbers(pc.is_in(table["cell_id"].cast(TEXT), value_set=common)))
        is_new[chosen] = ~repeated(table.take(pa.array(chosen)), old)
        table = self._wanted(table.filter(pa.array(is_new)), old)
        if not table.num_rows:
            return table, False
        latest = is_latest(pa.concat_tables([old, table]).unify_dictionaries())
        if not latest[: old.num_rows].all():
            return table, True
        table = table.filter(pa.array(latest[old.num_rows :]))
        value = as_numbers(pc.is_in(table["cell_id"].cast(TEXT), value_set=common)) & value_mask(table)
        old = old.filter(pa.array(value_mask(old)))
        stays = is_earliest(pa.concat_tables([old, table.filter(pa.array(value))]).unify_dictionaries())
        if not stays[: old.num_rows].all():
            return table, True
        keep = np.ones(table.num_rows, dtype=bool)
        keep[np.flatnonzero(value)[~stays[old.num_rows :]]] = False
        return table.filter(pa.array(keep)), False

    def _wanted(self, table: pa.Table, old: pa.Table) -> pa.Table:  # noqa: ARG002
        """Return the rows that may be added to the rows that a tier has of the same cells."""
        return table

    def _write(self, table: pa.Table) -> Iterator[Tier]:
        """Yield the tiers that rows become: one, unless readers would refuse so large a file."""
        table = without_duplicates(table)
        table = table.take(pa.array(order_by(table, ROWS_ORDER))).combine_chunks()
        for file, rows in self.snapshots.write_rows(self.number, table):
            ids = pc.unique(rows["cell_id"])
            self._hashes[file] = id_hashes(ids)
            self.touched.append(self._hashes[file])
            ids_file = self.snapshots.write_extract(self.number, pa.table({"cell_id": ids}))
            self.written += [file, ids_file]
            yield Tier(file=file, num_rows=rows.num_rows, ids=ids_file)


def _of_cells(rows: pa.Table, ids: pa.Array) -> pa.Table:
    return rows.filter(pc.is_in(rows["cell_id"].cast(TEXT), value_set=ids))


def _has_number_alone(name: str) -> bool:
    found = ManifestName.parse(name)
    return found is not None and not found.digest


def _number_of(tier: Tier) -> int:
    found = DataName.parse(tier.file.rpartition("/")[2])
    return found.number if found else 0


def compact(files: Files) -> Compacted:
    """Merge all loose parts of a store that are sound; raises what `Compaction.run` raises."""
    return Compaction(files).run()
