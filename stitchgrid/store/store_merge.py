"""Merge other stores into one: their sweeps, artefacts and rows.

Sweeps come first, so that everything after them belongs to a sweep; then artefacts; then all rows in one compaction,
whose manifest makes them count. A merge that was stopped can run again: it does not write again what is there already.
The other stores do not change. Their damaged files are left out and named.

A cell that two stores have should have the same values in both, up to rounding. Where it does not, the values of the
store that is merged into stay, unless those of the other store come from a later computation (`--recompute`); cells of
both kinds are counted. Stores that agree can be merged in any order with the same result.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.artefacts import Artefacts, artefact_content, artefact_keys
from stitchgrid.store.compact import Compaction
from stitchgrid.store.conflicts import Comparison, Conflict
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.documents import ArtefactDocument, read_document
from stitchgrid.store.duplicates import Numbers, as_numbers, encoded, generations
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.id_hashes import hashes_of_each
from stitchgrid.store.layout import StoreLayout
from stitchgrid.store.limits import HIGHEST_GENERATION_TAKEN
from stitchgrid.store.reading import ATTEMPTS, Contents, contents
from stitchgrid.store.row_reader import RowReader
from stitchgrid.store.schemas import TEXT
from stitchgrid.store.snapshots import Snapshots, unlisted_tiers
from stitchgrid.store.sweep_merge import SweepMerge, Taken
from stitchgrid.store.sweeps import Sweeps

SHOWN = 3  # values that differ, of each store
BLOCK_ROWS = 2_000_000  # of two stores compared at once: bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class FromStore:
    """What came from one store."""

    uri: str
    sweeps: tuple[Taken, ...]
    num_rows: int  # that were not here, or only as later duplicates
    num_artefacts: int
    num_logs: int  # files of logs and journals
    num_differing: int  # cells with other values there, beyond rounding: the values here stay
    num_replaced: int  # cells that were computed again there, so that the values here no longer count
    differences: tuple[Conflict, ...]  # examples
    damaged: tuple[Damage, ...]  # files that were left out
    left_out: tuple[str, ...]  # other things that could not be merged, with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge did."""

    stores: tuple[FromStore, ...]
    damaged: tuple[Damage, ...]  # files of the store that was merged into, left as they are


def merge(into: Files, sources: Sequence[Files]) -> Merged:
    """Merge other stores into this one; return what came from each.

    Raises:
        StoreError: If this store cannot be written, or compactions of other processes were faster each time.
    """
    found = [_Source(into, source) for source in sources]
    for one in found:
        one.take_sweeps()
        one.take_artefacts()
    for _ in range(ATTEMPTS):
        rows = RowMerge(into, found)
        done = rows.run()
        if not rows.is_beaten:
            damaged = {one.file: one for one in done.damaged}
            return Merged(stores=tuple(one.report() for one in found), damaged=tuple(damaged.values()))
    raise StoreError(f"the store {into.uri} was compacted by others {ATTEMPTS} times meanwhile; merge again.")


class _Source:
    """One store that is merged into another."""

    def __init__(self, into: Files, files: Files):
        self.into, self.files = into, files
        self.sweeps: list[Taken] = []
        self.damaged: list[Damage] = []
        self.damaged_rows: list[Damage] = []
        self.left_out: list[str] = []
        self.without: set[str] = set()  # networks whose rows are left out
        self.num_artefacts = self.num_logs = self.num_rows = 0
        self.num_last = 0  # rows that no later computation could follow
        self.meeting = Meeting([])

    def report(self) -> FromStore:
        strangers = self.files.strangers() if isinstance(self.files, LocalFiles) else ()
        unsafe = [Damage(file=one.name, reason=one.problem) for one in strangers if one.is_unsafe]
        damaged = {one.file: one for one in (*unsafe, *self.damaged, *self.damaged_rows)}
        return FromStore(
            uri=self.files.uri,
            sweeps=tuple(self.sweeps),
            num_rows=self.num_rows,
            num_artefacts=self.num_artefacts,
            num_logs=self.num_logs,
            num_differing=self.meeting.num_differing,
            num_replaced=self.meeting.num_replaced,
            differences=tuple(self.meeting.differences),
            damaged=tuple(damaged.values()),
            left_out=(*self.left_out, *self._rows_left_out()),
        )

    def _rows_left_out(self) -> list[str]:
        told = (
            f"{self.num_last} rows of a generation above {HIGHEST_GENERATION_TAKEN}, which no later computation could "
            "follow"
        )
        return [told] if self.num_last else []

    def take_sweeps(self) -> None:
        sweeps = SweepMerge(self.into, self.files)
        self.sweeps = sweeps.run()
        self.damaged += sweeps.damaged
        self.left_out += sweeps.left_out
        self.num_logs = sweeps.num_logs

    def take_artefacts(self) -> None:
        for kind, key in artefact_keys(self.files):
            self._take_artefact(kind, key)

    def _take_artefact(self, kind: str, key: str) -> None:
        manifest = StoreLayout.manifest(kind, key)
        try:
            if Artefacts(self.into).has(kind, key):
                self._compare(kind, key)
                return
            data = artefact_content(self.files, kind, key)
        except (DamagedFileError, StoreError) as problem:
            self.damaged.append(Damage(file=manifest, reason=str(problem)))
            return
        self.num_artefacts += Artefacts(self.into).write(kind, key, data)

    def _compare(self, kind: str, key: str) -> None:
        """Note where this store has another artefact under the same key, if the difference matters."""
        there, here = (
            read_document(files, StoreLayout.manifest(kind, key), ArtefactDocument)["digest"]
            for files in (self.files, self.into)
        )
        if there == here:
            return
        if kind == "network":
            self.left_out.append(
                f"network {key}: it was trained in both stores, to other weights; those of {self.into.uri} stay, and "
                "sweeps of the other can be read but not continued here"
            )
        elif kind == "fingerprint":
            self._compare_fingerprints(key)

    def _compare_fingerprints(self, key: str) -> None:
        """Leave out the rows of a network that computes something else there than here under the same address."""
        from stitchgrid.models.fingerprint import difference, from_json, keys_of_first

        here, there = (from_json(artefact_content(one, "fingerprint", key)) for one in (self.into, self.files))
        if (told := difference(here, there)) is None:
            return
        networks = {one for one in self._networks() if key in keys_of_first(one, there)}
        self.without |= networks
        self.left_out.append(
            f"rows of the network {', '.join(sorted(networks)) or 'unknown'}: it computes something else there than "
            f"here, though its weights and code are the same: {told} (fingerprint {key})"
        )

    def _networks(self) -> set[str]:
        """Return the addresses of all networks of the other store's sweeps."""
        sweeps, found = Sweeps(self.files), set()
        for sweep in sweeps.names():
            for number in sweeps.planned(sweep):
                with suppress(StoreError):
                    plan = sweeps.read_plan(sweep, number)
                    found |= set(plan.models["network_id"].to_pylist()) if plan else set()
        return found - {None}

    def wanted(self, rows: pa.Table) -> pa.Table:
        """Return rows without those of networks that are left out, and those of too high generations."""
        is_last = generations(rows) > HIGHEST_GENERATION_TAKEN
        if is_last.any():
            self.num_last += int(is_last.sum())
            rows = rows.filter(pa.array(~is_last))
        if not self.without:
            return rows
        networks = pa.array(sorted(self.without))
        bad = [pc.is_in(rows[f"{side}_network"].cast(TEXT), value_set=networks) for side in ("source", "target")]
        return rows.filter(pc.invert(pc.or_(*bad)))


class Meeting:
    """Decides about the cells that this store and another one both have."""

    def __init__(self, here: Iterable[Numbers]):
        self._here: Numbers = np.unique(np.concatenate([np.zeros(0, np.uint64), *here]))  # hashes of its cells
        self._differing: list[Numbers] = []
        self._replaced: list[Numbers] = []
        self.differences: list[Conflict] = []

    @property
    def num_differing(self) -> int:
        """Return how many cells have other values there."""
        return _num_distinct(self._differing)

    @property
    def num_replaced(self) -> int:
        """Return how many cells were computed again there."""
        return _num_distinct(self._replaced)

    def wanted(self, table: pa.Table, old: pa.Table) -> pa.Table:
        """Return rows from there without those of cells that this store has with other values of the same generation.

        Values that another file of the same source brought do not count as values of this store.
        """
        cells, known = _hashes(table), _hashes(old)
        num_blocks = 1 + (len(cells) + len(known)) // BLOCK_ROWS
        stays = np.ones(len(cells), dtype=bool)
        for block in range(num_blocks):
            rows = np.flatnonzero((cells % num_blocks == block) & np.isin(cells, self._here))
            others = np.flatnonzero(known % num_blocks == block)
            stays[rows[self._are_differing(table.take(pa.array(rows)), old.take(pa.array(others)), cells[rows])]] = (
                False
            )
        return table if stays.all() else table.filter(pa.array(stays))

    def _are_differing(self, table: pa.Table, old: pa.Table, cells: Numbers) -> Numbers:
        """Return which rows are of cells with other values, and note them; `cells` are the hashes of the table's."""
        found = Comparison(old, table)
        self._replaced.append(np.unique(cells[found.is_replaced]))
        self._differing.append(np.unique(cells[found.is_differing]))
        if len(self.differences) < SHOWN:
            self.differences += found.examples(SHOWN - len(self.differences))
        return found.is_differing


def _hashes(rows: pa.Table) -> Numbers:
    """Return the hash of the cell of each row."""
    ids = encoded(rows["cell_id"])
    found: Numbers = hashes_of_each(ids.dictionary.cast(TEXT))[as_numbers(ids.indices)]
    return found


def _num_distinct(found: Sequence[Numbers]) -> int:
    return len(np.unique(np.concatenate(found))) if found else 0


class RowMerge(Compaction):
    """A compaction of a store that also adds the rows of other stores."""

    def __init__(self, files: Files, sources: Sequence[_Source]):
        super().__init__(files)
        self.sources = sources
        self._meeting: Meeting | None = None  # with the store whose rows are being added

    def _take(self, found: Contents) -> None:
        super()._take(found)
        for source in self.sources:
            source.num_rows = source.num_last = 0
            source.meeting = self._meeting = Meeting(self._hashes[tier.file] for tier in self.tiers)
            for _ in range(ATTEMPTS):
                if self._take_source(source):
                    break
        self._meeting = None

    def _wanted(self, table: pa.Table, old: pa.Table) -> pa.Table:
        return table if self._meeting is None else self._meeting.wanted(table, old)

    def _take_source(self, source: _Source) -> bool:
        """Add the rows of another store; return False if that store was compacted meanwhile."""
        found, reader = contents(source.files), RowReader(source.files)
        tiers = [*found.snapshot.all_tiers, *unlisted_tiers(source.files, found.snapshot)]
        for table in reader.of_tiers({tier.file: tier for tier in tiers}.values()):
            source.num_rows += self._add(source.wanted(table))
        for table in reader.of_parts(found.loose):
            source.num_rows += self._add(source.wanted(table))
        source.damaged_rows = [*found.damaged, *reader.damaged]
        return found.snapshot.names.issuperset(Snapshots(source.files).names())
