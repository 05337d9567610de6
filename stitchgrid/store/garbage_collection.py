"""Delete what no sweep refers to: rows, artefacts, files of earlier snapshots, and files that stopped writers left.

Earlier rows of cells that were computed again are deleted, too.

While a launch works on any sweep of the store, rows and artefacts stay: the launch relies on those it found. A
compaction removes rows by leaving them out. Everything else is deleted file by file, so a collection that was stopped
can run again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.artefacts import MANIFEST, artefact_keys
from stitchgrid.store.compact import Compacted
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import ArtefactDocument, read_document
from stitchgrid.store.duplicates import Numbers, as_numbers, is_latest
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.folder import LEFT
from stitchgrid.store.layout import EXTRACTS, PARTS, SNAPSHOTS, SUFFIXES, SWEEPS, DataName, StoreLayout, is_safe
from stitchgrid.store.lease import LeaseError
from stitchgrid.store.reading import ATTEMPTS, Contents, contents
from stitchgrid.store.references import References, read_references
from stitchgrid.store.row_reader import RowReader
from stitchgrid.store.schemas import TEXT
from stitchgrid.store.snapshots import Snapshots, unlisted_tiers
from stitchgrid.store.sweep_removal import remains, remove, sweep_files
from stitchgrid.store.tiers import Snapshot, Tier
from stitchgrid.store.unlisted_files import PARTS_AT_ONCE, TakingBack, count_missing

ROWS = pa.schema([("cell_id", TEXT), ("generation", pa.int64())])
LEFT_FILES = "files left by stopped writers"
OLD_SECONDS = 3600.0  # age at which no manifest is still to come for a file that none names


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """Rows or files of one kind that nobody needs."""

    what: str
    num: int
    num_bytes: int  # on disk; of rows, their share of their files


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was freed, or would be."""

    freed: tuple[Freed, ...]
    kept: tuple[str, ...]  # reasons why something was kept although perhaps nobody needs it
    num_bytes: int


def collect(files: Files, *, dry_run: bool = False) -> Collected:
    """Delete what no sweep refers to; with `dry_run` only report it.

    Raises:
        StoreError: If the store cannot be written, or a launch began meanwhile.
    """
    references = read_references(files)
    found = contents(files)
    num_rows, num_bytes = _unneeded_rows(files, found, references)
    freed = [Freed(what="rows", num=num_rows, num_bytes=num_bytes)]
    earlier = list(dict.fromkeys(_of_snapshots(files)))
    freed.append(_delete(files, "files of earlier snapshots", earlier, dry_run=True))
    if not dry_run and (num_rows or len(found.snapshot.names - found.snapshot.follows) > 1):
        _compact(files, references)
    if not dry_run:  # among them the files that the compaction replaced
        _delete(files, "", list(dict.fromkeys(_of_snapshots(files))), dry_run=False)
        references = read_references(files)  # a launch may have begun while rows were read
    kinds = (
        ("artefacts", _artefacts(files, references)),
        (LEFT_FILES, _left(files, references)),
    )
    for what, names in kinds:
        freed.append(_delete(files, what, list(dict.fromkeys(names)), dry_run=dry_run))
    for sweep in remains(files) if references.are_rows_known else ():
        freed.append(_remains_of(files, sweep, dry_run=dry_run))
    kept = [*references.of_rows, *references.of_artefacts, *_lost(files)]
    whats = dict.fromkeys(one.what for one in freed if one.num)
    summed = tuple(_sum(what, [one for one in freed if one.what == what]) for what in whats)
    return Collected(freed=summed, kept=tuple(kept), num_bytes=sum(one.num_bytes for one in summed))


def _sum(what: str, freed: Sequence[Freed]) -> Freed:
    return Freed(what=what, num=sum(one.num for one in freed), num_bytes=sum(one.num_bytes for one in freed))


def _delete(files: Files, what: str, names: Sequence[str], *, dry_run: bool) -> Freed:
    num_bytes = sum(facts.num_bytes for name in names if (facts := files.facts(name)))
    for name in () if dry_run else names:
        files.delete(name)
    return Freed(what=what, num=len(names), num_bytes=num_bytes)


# Rows -----------------------------------------------------------------------------------------------------------------


def _unneeded_rows(files: Files, found: Contents, references: References) -> tuple[int, int]:
    """Return how many rows do not count or are of no sweep's cell, and their share of the bytes of their files.

    Earlier rows of a cell that was computed again do not count. Where the cells of sweeps are not known, only these are
    reported.
    """
    num_rows, num_bytes = 0, 0.0
    again = _again(files, found)
    for names, rows in _rows(files, found):
        num = rows.num_rows - int(_is_needed(rows, again, references).sum())
        if num:
            num_rows += num
            num_bytes += sum(facts.num_bytes for name in names if (facts := files.facts(name))) * num / rows.num_rows
    return num_rows, round(num_bytes)


def _is_needed(rows: pa.Table, again: pa.Table, references: References) -> Numbers:
    """Return which rows are of a sweep's cell, and count."""
    is_needed = np.ones(rows.num_rows, dtype=bool)
    if references.are_rows_known:
        is_needed = as_numbers(pc.is_in(rows["cell_id"], value_set=references.cells))
    if again.num_rows:
        is_needed &= is_latest(pa.concat_tables([again, rows]))[again.num_rows :]
    return is_needed


def _again(files: Files, found: Contents) -> pa.Table:
    """Return the cells that were computed again, each with its highest generation."""
    tables = [ROWS.empty_table()]
    for _, rows in _rows(files, found):
        again = rows.filter(rows["generation"].is_valid())
        tables.append(again.filter(pa.array(is_latest(again))).group_by(ROWS.names).aggregate([]))
    table = pa.concat_tables(tables)
    return table.filter(pa.array(is_latest(table)))


def _rows(files: Files, found: Contents) -> Iterator[tuple[list[str], pa.Table]]:
    """Yield the files of rows, some at a time, with the cell and generation of every row."""
    columns = (*ROWS.names, "status")
    reader = RowReader(files)
    for tier in found.snapshot.all_tiers:
        try:
            yield [tier.file], reader.snapshots.rows(tier, columns).select(ROWS.names).cast(ROWS)
        except (DamagedFileError, StoreError):
            continue
    for start in range(0, len(found.loose), PARTS_AT_ONCE):
        names = found.loose[start : start + PARTS_AT_ONCE]
        table = reader.parts.read(columns, names).table
        if table.num_rows:
            yield [f"{PARTS}/{name}" for name in names], table.select(ROWS.names).cast(ROWS)


class RowCollection(TakingBack):
    """A compaction that leaves out rows of cells that no sweep has."""

    def __init__(self, files: Files, references: References):
        super().__init__(files)
        self.references = references

    def _take(self, found: Contents) -> None:
        dirty = [tier for tier in self.tiers if not self._is_needed(tier)]
        self.tiers[:] = [tier for tier in self.tiers if tier not in dirty]
        for tier in dirty:
            if (table := self.reader.rows(tier)) is None:
                self.tiers.append(tier)
                continue
            self.touched.append(self._hashes[tier.file])
            self._add(table)
        super()._take(found)

    def _is_needed(self, tier: Tier) -> bool:
        """Return whether sweeps have all cells of a tier; if its ids cannot be read, its rows are checked."""
        ids = self._read_ids(tier)
        return ids is not None and bool(pc.all(pc.is_in(ids, value_set=self.references.cells)).as_py())

    def _add(self, table: pa.Table, onto: list[Tier] | None = None) -> int:
        needed = pc.is_in(table["cell_id"].cast(TEXT), value_set=self.references.cells)
        return super()._add(table.filter(needed), onto)

    def _publish(self, snapshot: Snapshot, previous: Snapshot) -> Compacted:
        now = read_references(self.files)
        if not now.are_rows_known or len(pc.filter(now.cells, pc.invert(self._known(now.cells)))):
            self.snapshots.delete_own(self.number, self.written)
            raise StoreError(
                f"a launch began in the store {self.files.uri} meanwhile; no row was freed: run gc after it."
            )
        return super()._publish(snapshot, previous)

    def _known(self, cells: pa.Array) -> pa.Array:
        return pc.is_in(cells, value_set=self.references.cells)


def _compact(files: Files, references: References) -> None:
    for _ in range(ATTEMPTS):
        collection = RowCollection(files, references) if references.are_rows_known else TakingBack(files)
        collection.run()
        if not collection.is_beaten:
            return
    raise StoreError(f"the store {files.uri} was compacted by others {ATTEMPTS} times meanwhile; run gc again.")


# Files ----------------------------------------------------------------------------------------------------------------


def _artefacts(files: Files, references: References) -> Iterator[str]:
    """Yield the files of artefacts that no sweep has; manifests first, so that none names a missing file."""
    if not references.are_artefacts_known:
        return
    for kind, key in artefact_keys(files):
        if (kind, key) not in references.artefacts:
            data = _data_of(files, kind, key)
            yield StoreLayout.manifest(kind, key)
            if data is not None and files.exists(data):
                yield data


def _data_of(files: Files, kind: str, key: str) -> str | None:
    try:
        found = read_document(files, StoreLayout.manifest(kind, key), ArtefactDocument)
    except (DamagedFileError, StoreError):
        return None
    return StoreLayout.artefact(kind, key, found["digest"])


def _of_snapshots(files: Files) -> Iterator[str]:
    """Yield the files of snapshots that no longer count, and extracts and copied rows that no snapshot lists."""
    snapshots = Snapshots(files)
    found = contents(files)
    snapshot = found.snapshot
    needed = snapshot.files()
    if snapshot.loose:
        return  # several count, or one is damaged
    yield from (name for name in sorted(snapshot.before - needed) if files.exists(name))
    yield from (f"{SNAPSHOTS}/{name}" for name in snapshots.names() if name in snapshot.follows)
    for name in files.names(EXTRACTS):
        promise = DataName.parse(name)
        if promise and promise.number <= snapshot.number and f"{EXTRACTS}/{name}" not in needed:
            yield f"{EXTRACTS}/{name}"
    for tier in unlisted_tiers(files, snapshot):
        promise = DataName.parse(tier.file.rpartition("/")[2])
        if promise and promise.number <= snapshot.number and _num_missing(files, found, tier) == 0:
            yield tier.file


def _num_missing(files: Files, found: Contents, tier: Tier) -> int:
    """Return how many rows of a file that no snapshot lists are nowhere else; 1 where they cannot be counted."""
    try:
        return count_missing(files, found, tier.file)
    except (DamagedFileError, StoreError):
        return 1


def _lost(files: Files) -> Iterator[str]:
    found = contents(files)
    for tier in unlisted_tiers(files, found.snapshot):
        if _num_missing(files, found, tier):
            yield f"{tier.file} has rows that are nowhere else: recover them with 'stitchgrid check --repair'"


def _left(files: Files, references: References) -> Iterator[str]:
    """Yield what stopped writers left: half-written files, data without a manifest."""
    if isinstance(files, LocalFiles):
        yield from (one.name for one in files.strangers() if one.problem == LEFT and _is_old(files, one.name))
    named = {_data_of(files, kind, key) for kind, key in artefact_keys(files)}
    for kind in SUFFIXES:
        data = [f"artefacts/{kind}/{one}" for one in files.names(f"artefacts/{kind}") if not one.endswith(MANIFEST)]
        unlisted = [name for name in data if name not in named and name.endswith(SUFFIXES[kind])]
        yield from (name for name in unlisted if references.are_rows_known and _is_old(files, name))


def _remains_of(files: Files, sweep: str, *, dry_run: bool) -> Freed:
    """Delete what a stopped removal left of a sweep, unless a launch has claimed the sweep by now."""
    found = _delete(files, LEFT_FILES, list(sweep_files(files, sweep)) if is_safe(sweep) else [], dry_run=True)
    if dry_run:
        return found
    if found.num:
        try:
            remove(files, sweep)
        except LeaseError:
            return Freed(what=LEFT_FILES, num=0, num_bytes=0)
    if isinstance(files, LocalFiles):
        files.prune(f"{SWEEPS}/{sweep}")
    return found


def _is_old(files: Files, name: str) -> bool:
    facts = files.facts(name)
    return facts is not None and facts.age_seconds > OLD_SECONDS
