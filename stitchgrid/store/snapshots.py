"""Snapshots: many parts merged into a few files, each snapshot a manifest that is written once.

A manifest is named by its content and lists the manifests that it follows. Every manifest that no other follows counts:
usually one, and several where stores were copied into one another, until the next compaction merges them. Manifests of
old stores have a number alone; of these the highest counts. A reader lists parts first and manifests then: whatever
part was deleted before the listing is in a snapshot that it sees. Data files hold rows as parts do; extracts hold what
readers would join from them, can be thrown away at any time, and are made anew by the next compaction.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from stitchgrid import __version__
from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.documents import SnapshotDocument, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.layout import (
    EXTRACTS,
    HIGHEST,
    PARTS,
    SNAPSHOT_DATA,
    SNAPSHOTS,
    DataName,
    ManifestName,
    content_digest,
)
from stitchgrid.store.opening import raise_format
from stitchgrid.store.parts import parquet_bytes, read_rows, readable_files
from stitchgrid.store.schemas import CELL_STATES, IDS, RESULTS, lost_columns
from stitchgrid.store.sound_tables import most_bytes, read_footer, read_table

ROW_GROUP = 32_768  # rows that are skipped or read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """What a revision of a sweep sees of the rows of a snapshot, ready to be scanned."""

    revision: int
    file: str  # relative to the store
    plan: str = ""  # digest of the revision's manifest: numbers come again where a sweep was removed; "" in old ones

    def is_current(self, stamp: tuple[int, str] | None, here: Container[str]) -> bool:
        """Return whether it is of this revision and plan, and its file is among those that are there."""
        return stamp == (self.revision, self.plan or (stamp or (0, ""))[1]) and self.file in here


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Rows that were merged together; no (cell, metric) has a value in two tiers of a snapshot."""

    file: str  # relative to the store
    num_rows: int
    ids: str  # file of the distinct cell ids
    results: Mapping[str, Extract] = field(default_factory=dict)  # sweep -> its rows, joined with its names


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one compaction left, or several that count together."""

    number: int
    tiers: tuple[Tier, ...] = ()
    cells: Mapping[str, Extract] = field(default_factory=dict)  # sweep -> its cells with their status
    replaces: frozenset[str] = frozenset()  # names of the parts whose rows are in the tiers
    before: frozenset[str] = frozenset()  # files of those it follows, which stay for those who read them
    follows: frozenset[str] = frozenset()  # names of the manifests that count no more
    loose: tuple[Tier, ...] = ()  # of further snapshots: rows that may be in the tiers, too
    names: frozenset[str] = frozenset()  # of all manifests that were there when it was read, itself among them

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the columns that each of its extracts has to have."""
        of_cells = {extract.file: CELL_STATES for extract in self.cells.values()}
        of_results = {one.file: RESULTS for tier in self.tiers for one in tier.results.values()}
        return {**of_cells, **of_results, **{tier.ids: IDS for tier in self.tiers}}

    @property
    def all_tiers(self) -> tuple[Tier, ...]:
        """All tiers, those of further snapshots among them."""
        return self.tiers + self.loose

    def files(self) -> set[str]:
        """Return all files that the snapshot needs."""
        extracts = [*self.cells.values(), *(one for tier in self.tiers for one in tier.results.values())]
        own = [name for tier in self.all_tiers for name in (tier.file, tier.ids) if name]
        return {*own, *(extract.file for extract in extracts)}


EMPTY = Snapshot(number=0)


class Snapshots:
    """All snapshots of a store."""

    def __init__(self, files: Files):
        self.files = files

    def newest(self) -> tuple[Snapshot, tuple[Damage, ...]]:
        """Return what counts, `EMPTY` where there is no snapshot, and which manifests that may count are damaged.

        Where one is damaged every data file that is there counts: rows may then be there twice.
        """
        names = self.names()
        if not names:
            return EMPTY, ()
        heads: list[Snapshot] = []
        damaged: list[Damage] = []
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            gone = set() if _parsed(name).digest else {one for one in waiting if not _parsed(one).digest}
            try:
                heads.append(self.read(name))
                gone |= heads[-1].follows
            except (DamagedFileError, StoreError) as problem:
                damaged.append(Damage(file=manifest_file(name), reason=str(problem)))
            waiting = [one for one in waiting if one not in gone]
        number, there = number_of(names[-1]), frozenset(names)
        if damaged:
            return Snapshot(number=number, loose=tuple(map(as_tier, self.data_files())), names=there), tuple(damaged)
        if len(heads) == 1:
            return replace(heads[0], names=there), ()
        return replace(_joint(heads), number=number, names=there), ()

    def names(self) -> list[str]:
        """Return the names of all manifests, sound or not, by their numbers."""
        return sorted(filter(ManifestName.parse, self.files.names(SNAPSHOTS)), key=lambda name: (number_of(name), name))

    def data_files(self) -> list[str]:
        """Return the data files that are there, listed or not, with their folder."""
        return [f"{SNAPSHOT_DATA}/{name}" for name in self.files.names(SNAPSHOT_DATA) if DataName.parse(name)]

    def read(self, name: str) -> Snapshot:
        """Return the snapshot of a manifest.

        Raises:
            DamagedFileError: If its manifest is damaged.
            StoreError: If it cannot be read.
        """
        found = read_document(self.files, manifest_file(name), SnapshotDocument)
        body = json.dumps(found["snapshot"], sort_keys=True).encode()
        if content_digest(body) != found["digest"] or _parsed(name).digest not in ("", found["digest"]):
            raise DamagedFileError("content differs from the digest in it")
        try:
            return _parse(number_of(name), found["snapshot"])
        except TypeError as problem:  # keys of a later version
            raise DamagedFileError(f"not readable as a snapshot ({problem!r})") from problem

    def publish(self, snapshot: Snapshot) -> str | None:
        """Write the manifest of a snapshot, which follows all manifests that it knows; return its name.

        None, and it does not count, where another compaction was faster. Both may count where they write within the
        same instant: then their rows are merged by the next one.
        """
        body = {
            "tiers": [asdict(tier) for tier in snapshot.tiers],
            "cells": {sweep: asdict(extract) for sweep, extract in snapshot.cells.items()},
            "replaces": sorted(snapshot.replaces),
            "follows": sorted(snapshot.names),
            "before": sorted(snapshot.before),
        }
        digest = content_digest(json.dumps(body, sort_keys=True).encode())
        manifest = {
            "created_at": datetime.now(UTC).isoformat(),
            "version": __version__,
            "digest": digest,
            "snapshot": body,
        }
        self.require_number(snapshot.number)
        name = str(ManifestName(number=snapshot.number, digest=digest))
        if not snapshot.names.issuperset(self.names()):
            return None
        raise_format(self.files)
        if not self.files.write_once(manifest_file(name), json.dumps(manifest, indent=1).encode()):
            return None
        if self._is_first(name, snapshot):
            return name
        self.files.delete(manifest_file(name))
        return None

    def _is_first(self, name: str, snapshot: Snapshot) -> bool:
        """Return whether a manifest that was just written counts, though others may have come at the same time."""
        others = set(self.names()) - snapshot.names
        return max(others, key=lambda one: (number_of(one), one), default=name) == name

    def require_number(self, number: int) -> None:
        """Raise a StoreError if no snapshot can have this number."""
        if number > HIGHEST:
            last = next(iter(self.names()[-1:]), manifest_name(number - 1))
            raise StoreError(
                f"no snapshot can follow {manifest_file(last)} in the store {self.files.uri}: nobody "
                "counts so far; delete that file, and compact again."
            )

    def write_rows(self, number: int, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Write the data files for the snapshot that will have this number; yield their names, and what is in them."""
        for data, rows in readable_files(table, parquet_bytes_in_groups):
            yield self._write(SNAPSHOT_DATA, number, data, rows), rows

    def write_extract(self, number: int, table: pa.Table) -> str:
        """Write an extract for the snapshot that will have this number; return its name."""
        return self._write(EXTRACTS, number, parquet_bytes_in_groups(table), table)

    def _write(self, folder: str, number: int, data: bytes, table: pa.Table) -> str:
        name = f"{folder}/{DataName(number=number, digest=content_digest(data), num_rows=table.num_rows)}"
        self.files.replace(name, data)
        return name

    def content(self, name: str) -> bytes:
        """Return what a data file or extract holds, checked against its name.

        Raises:
            DamagedFileError: If it is not what its name says.
            StoreError: If it cannot be read.
        """
        promise = DataName.parse(name.rpartition("/")[2])
        if promise is None:
            raise DamagedFileError("not the name of a file of a snapshot")
        data = self.files.read(name, most_bytes(promise.num_rows))
        if content_digest(data) != promise.digest:
            raise DamagedFileError(f"content differs from the digest in its name ({len(data)} bytes are there)")
        return data

    def table(self, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns of a data file or extract of a schema, all by default. Errors as those of `content`."""
        return self._whole(name, read_table(self.content(name), schema, columns), columns or schema.names)

    def opened(self, name: str, schema: pa.Schema) -> bytes:
        """Return a data file or extract that has the columns of a schema. Errors as those of `content`."""
        data = self.content(name)
        footer, shape = read_footer(data, schema)
        if lost := lost_columns(schema.names, shape.names, footer.metadata):
            raise DamagedFileError(f"lacks the columns {lost}")
        return data

    def _whole(self, name: str, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        promise = DataName.parse(name.rpartition("/")[2])
        if promise is None or table.num_rows != promise.num_rows:
            raise DamagedFileError(f"holds {table.num_rows} rows, not as many as its name promises")
        if lost := lost_columns(columns, table.column_names, table.schema.metadata):
            raise DamagedFileError(f"lacks the columns {lost}")
        return table

    def rows(self, tier: Tier, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the rows of a tier; text columns are dictionaries. Errors as those of `content`."""
        return self._whole(tier.file, read_rows(self.content(tier.file), columns), columns)

    def ids(self, tier: Tier) -> pa.Array:
        """Return the ids of the cells of a tier. Errors as those of `content`."""
        found = self.table(tier.ids, IDS)["cell_id"].combine_chunks()
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    def delete_unneeded(self, snapshot: Snapshot, merged: Iterable[str]) -> None:
        """Delete what a published snapshot makes superfluous: parts, data files that were merged, old extracts.

        Files of the snapshots before it stay for those who read them. An extract carries the number of its snapshot:
        what an earlier number left and nobody names is nobody's.
        """
        for name in sorted(snapshot.replaces):
            self.files.delete(f"{PARTS}/{name}")
        needed = snapshot.files() | snapshot.before
        for name in sorted(set(merged) - needed):
            self.files.delete(name)
        for one in self.files.names(EXTRACTS):
            promise = DataName.parse(one)
            if promise and promise.number < snapshot.number and f"{EXTRACTS}/{one}" not in needed:
                self.files.delete(f"{EXTRACTS}/{one}")

    def delete_own(self, number: int, names: Iterable[str]) -> None:
        """Delete files that were written for a snapshot of this number and that no manifest of this number needs."""
        needed: set[str] = set()
        for name in self.names():
            if number_of(name) >= number:
                try:
                    needed |= self.read(name).files()
                except (DamagedFileError, StoreError):
                    return
        for one in sorted(set(names) - needed):
            self.files.delete(one)


def parquet_bytes_in_groups(table: pa.Table) -> bytes:
    """Return a table as a Parquet file whose groups of rows can be skipped."""
    return parquet_bytes(table, row_group_size=ROW_GROUP)


def number_of(name: str) -> int:
    """Return the number in the name of a manifest."""
    return _parsed(name).number


def _parsed(name: str) -> ManifestName:
    found = ManifestName.parse(name)
    assert found is not None, f"no manifest has the name {name!r}"
    return found


def manifest_file(name: str) -> str:
    """Return where the manifest of this name lies."""
    return f"{SNAPSHOTS}/{name}"


def manifest_name(number: int) -> str:
    """Return the name of the manifest of an old snapshot, which has a number alone."""
    return str(ManifestName(number=number, digest=""))


def as_tier(file: str) -> Tier:
    """Return a data file of which nobody says what is in it."""
    promise = DataName.parse(file.rpartition("/")[2])
    assert promise is not None
    return Tier(file=file, num_rows=promise.num_rows, ids="")


def unlisted_tiers(files: Files, snapshot: Snapshot) -> list[Tier]:
    """Return the data files that neither a snapshot nor those that it follows need."""
    known = snapshot.files() | snapshot.before
    return [as_tier(name) for name in Snapshots(files).data_files() if name not in known]


def _joint(heads: Sequence[Snapshot]) -> Snapshot:
    """Return snapshots that know nothing of each other as one: the tiers of the largest, and all others beside them.

    What they have ready of a sweep may be of another sweep of the same name.
    """
    first, *others = sorted(heads, key=lambda one: -sum(tier.num_rows for tier in one.tiers))
    tiers = {tier.file: replace(tier, results={}) for tier in first.tiers}
    loose = {tier.file: replace(tier, results={}) for one in others for tier in one.tiers if tier.file not in tiers}
    return Snapshot(
        number=first.number,
        tiers=tuple(tiers.values()),
        loose=tuple(loose.values()),
        replaces=frozenset().union(*(one.replaces for one in heads)),
        before=frozenset().union(*(one.before for one in heads)),
    )


def _parse(number: int, body: Mapping[str, Any]) -> Snapshot:
    def extracts(found: Mapping[str, Any]) -> dict[str, Extract]:
        return {sweep: Extract(**one) for sweep, one in found.items()}

    return Snapshot(
        number=number,
        tiers=tuple(Tier(**{**one, "results": extracts(one["results"])}) for one in body["tiers"]),
        cells=extracts(body["cells"]),
        replaces=frozenset(body["replaces"]),
        follows=frozenset(body.get("follows", ())),
        before=frozenset(body.get("before", ())),
    )
