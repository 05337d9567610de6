"""Snapshots: many parts merged into a few files, each snapshot a manifest that is written once.

The newest manifest counts. A reader lists parts first and takes the newest manifest then: whatever part was deleted
before the listing is in a snapshot that it sees. Data files hold rows as parts do; extracts hold what readers would
join from them, can be thrown away at any time, and are made anew by the next compaction.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
    content_digest,
    numbered,
)
from stitchgrid.store.parts import parquet_bytes, read_rows
from stitchgrid.store.schemas import CELL_STATES, IDS, RESULTS, lost_columns
from stitchgrid.store.sound_tables import most_bytes, read_footer, read_table

ROW_GROUP = 32_768  # rows that are skipped or read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """What a revision of a sweep sees of the rows of a snapshot, ready to be scanned."""

    revision: int
    file: str  # relative to the store

    def is_current(self, revision: int | None, here: Container[str]) -> bool:
        """Return whether it is of this revision, and its file is among those that are there."""
        return self.revision == revision and self.file in here


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Rows that were merged together; no (cell, metric) has a value in two tiers of a snapshot."""

    file: str  # relative to the store
    num_rows: int
    ids: str  # file of the distinct cell ids
    results: Mapping[str, Extract] = field(default_factory=dict)  # sweep -> its rows, joined with its names


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one compaction left."""

    number: int
    tiers: tuple[Tier, ...] = ()
    cells: Mapping[str, Extract] = field(default_factory=dict)  # sweep -> its cells with their status
    replaces: frozenset[str] = frozenset()  # names of the parts whose rows are in the tiers

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the columns that each of its extracts has to have."""
        of_cells = {extract.file: CELL_STATES for extract in self.cells.values()}
        of_results = {one.file: RESULTS for tier in self.tiers for one in tier.results.values()}
        return {**of_cells, **of_results, **{tier.ids: IDS for tier in self.tiers}}

    def files(self) -> set[str]:
        """Return all files that the snapshot needs."""
        extracts = [*self.cells.values(), *(one for tier in self.tiers for one in tier.results.values())]
        own = [name for tier in self.tiers for name in (tier.file, tier.ids)]
        return {*own, *(extract.file for extract in extracts)}


EMPTY = Snapshot(number=0)


class Snapshots:
    """All snapshots of a store."""

    def __init__(self, files: Files):
        self.files = files

    def newest(self) -> tuple[Snapshot, tuple[Damage, ...]]:
        """Return the snapshot that counts, `EMPTY` where there is none, and what of it is damaged.

        Where its manifest is damaged every data file that is there counts: rows may then be there twice.
        """
        numbers = self.numbers()
        if not numbers:
            return EMPTY, ()
        name = manifest_name(numbers[-1])
        try:
            return self.read(numbers[-1]), ()
        except (DamagedFileError, StoreError) as problem:
            tiers = tuple(
                Tier(file=f"{SNAPSHOT_DATA}/{one}", num_rows=promise.num_rows, ids="")
                for one in self.files.names(SNAPSHOT_DATA)
                if (promise := DataName.parse(one))
            )
            return Snapshot(number=numbers[-1], tiers=tiers), (Damage(file=name, reason=str(problem)),)

    def numbers(self) -> list[int]:
        """Return the numbers of all snapshots, sound or not, ascending."""
        return sorted(filter(None, map(snapshot_number, self.files.names(SNAPSHOTS))))

    def read(self, number: int) -> Snapshot:
        """Return a snapshot.

        Raises:
            DamagedFileError: If its manifest is damaged.
            StoreError: If it cannot be read.
        """
        found = read_document(self.files, manifest_name(number), SnapshotDocument)
        body = json.dumps(found["snapshot"], sort_keys=True).encode()
        if content_digest(body) != found["digest"]:
            raise DamagedFileError("content differs from the digest in it")
        try:
            return _parse(number, found["snapshot"])
        except TypeError as problem:  # keys of a later version
            raise DamagedFileError(f"not readable as a snapshot ({problem!r})") from problem

    def publish(self, snapshot: Snapshot) -> bool:
        """Write a manifest; return whether this call's is the newest now: another compaction may have been faster."""
        body = {
            "tiers": [asdict(tier) for tier in snapshot.tiers],
            "cells": {sweep: asdict(extract) for sweep, extract in snapshot.cells.items()},
            "replaces": sorted(snapshot.replaces),
        }
        manifest = {
            "created_at": datetime.now(UTC).isoformat(),
            "version": __version__,
            "digest": content_digest(json.dumps(body, sort_keys=True).encode()),
            "snapshot": body,
        }
        self.require_number(snapshot.number)
        won = self.files.write_once(manifest_name(snapshot.number), json.dumps(manifest, indent=1).encode())
        return won and self.numbers()[-1] == snapshot.number

    def require_number(self, number: int) -> None:
        """Raise a StoreError if no snapshot can have this number."""
        if number > HIGHEST:
            raise StoreError(
                f"no snapshot can follow {manifest_name(number - 1)} in the store {self.files.uri}: nobody "
                "counts so far; delete that file, and compact again."
            )

    def write_rows(self, number: int, table: pa.Table) -> str:
        """Write a data file for the snapshot that will have this number; return its name."""
        return self._write(SNAPSHOT_DATA, number, table)

    def write_extract(self, number: int, table: pa.Table) -> str:
        """Write an extract for the snapshot that will have this number; return its name."""
        return self._write(EXTRACTS, number, table)

    def _write(self, folder: str, number: int, table: pa.Table) -> str:
        data = parquet_bytes(table, row_group_size=ROW_GROUP)
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

    def delete_unneeded(self, snapshot: Snapshot, previous: Snapshot) -> None:
        """Delete what a published snapshot makes superfluous; files of the previous one stay for those who read it.

        A file carries the number of its snapshot, and whoever writes for a number that is taken has lost: what an
        earlier number left and nobody names is nobody's.
        """
        for name in sorted(snapshot.replaces):
            self.files.delete(f"{PARTS}/{name}")
        needed = snapshot.files() | previous.files()
        for folder in (SNAPSHOT_DATA, EXTRACTS):
            for one in self.files.names(folder):
                promise = DataName.parse(one)
                if promise and promise.number < snapshot.number and f"{folder}/{one}" not in needed:
                    self.files.delete(f"{folder}/{one}")

    def delete_own(self, number: int, names: Iterable[str]) -> None:
        """Delete files that were written for a snapshot of this number that somebody else published."""
        try:
            needed = self.read(number).files()
        except (DamagedFileError, StoreError):
            return
        for name in set(names) - needed:
            self.files.delete(name)


def snapshot_number(name: str) -> int | None:
    """Return the number of the snapshot whose manifest a file is, None if it is none."""
    return numbered(name, width=6, suffix=".json")


def manifest_name(number: int) -> str:
    """Return where the manifest of a snapshot lies."""
    return f"{SNAPSHOTS}/{number:06d}.json"


def _parse(number: int, body: Mapping[str, Any]) -> Snapshot:
    def extracts(found: Mapping[str, Any]) -> dict[str, Extract]:
        return {sweep: Extract(**one) for sweep, one in found.items()}

    return Snapshot(
        number=number,
        tiers=tuple(Tier(**{**one, "results": extracts(one["results"])}) for one in body["tiers"]),
        cells=extracts(body["cells"]),
        replaces=frozenset(body["replaces"]),
    )
