"""All rows of a store: those of the newest snapshot, and the parts that it does not replace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.layout import EXTRACTS, PARTS, SNAPSHOT_DATA, SNAPSHOTS, SWEEPS
from stitchgrid.store.parts import PartRows, Parts
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.tiers import Snapshot

Found = TypeVar("Found")

MANY_PARTS = 1_000  # number of loose parts above which reading them takes too long
ATTEMPTS = 5  # each one fails only if another process finishes a whole compaction meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Which files hold the rows of a store at one moment."""

    snapshot: Snapshot
    loose: tuple[str, ...]  # names of the parts that it does not replace
    damaged: tuple[Damage, ...] = ()


def contents(files: Files) -> Contents:
    """Return which files count now."""
    # The order matters: a part that was deleted before the listing is in the snapshot that is found after it.
    names = Parts(files).names()
    snapshot, damaged = Snapshots(files).newest()
    loose = tuple(name for name in names if name not in snapshot.replaces)
    return Contents(snapshot=snapshot, loose=loose, damaged=(*damaged, *_no_folders(files)))


def _no_folders(files: Files) -> list[Damage]:
    """Return the folders that are links or files instead; nothing is read from them."""
    if not isinstance(files, LocalFiles):
        return []
    reason = "it, or a folder above it, is a link or a file, and nothing is read from it"
    folders = (PARTS, SNAPSHOTS, SNAPSHOT_DATA, EXTRACTS, SWEEPS)
    return [Damage(file=folder, reason=reason) for folder in folders if files.is_no_folder(folder)]


def stable(files: Files, read: Callable[[Contents], Found]) -> Found:
    """Return the result of `read` on the contents; reads again if a compaction deleted files meanwhile."""
    for _ in range(ATTEMPTS):
        found = contents(files)
        result = read(found)
        if found.snapshot.names.issuperset(Snapshots(files).names()):
            return result
    return result


def read_rows(files: Files, columns: Sequence[str]) -> PartRows:
    """Return these columns of all rows; some may be there twice. Damaged files are left out and named."""
    return stable(files, lambda found: _read(files, found, columns))


def _read(files: Files, found: Contents, columns: Sequence[str]) -> PartRows:
    snapshots = Snapshots(files)
    loose = Parts(files).read(columns, found.loose)
    tables, damaged = [loose.table], [*found.damaged, *loose.damaged]
    for tier in found.snapshot.all_tiers:
        try:
            tables.append(snapshots.rows(tier, columns).cast(loose.table.schema))
        except (DamagedFileError, StoreError, pa.ArrowException) as problem:
            damaged.append(Damage(file=tier.file, reason=str(problem)))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return PartRows(table=table, damaged=tuple(damaged))
