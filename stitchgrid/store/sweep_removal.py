"""Remove a sweep: its plan, name, journal and logs. Rows and artefacts stay; `gc` deletes what no sweep refers to.

Revisions are deleted in order, of each the plan first; the latest revision is the last, and until then the sweep stays
what it was. A removal that was stopped can run again. The claim is deleted last, so that no launch begins meanwhile.
"""

import uuid
from collections.abc import Iterator

from stitchgrid.errors import StoreError, nearest
from stitchgrid.store.compact import compact
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.journal import Journal
from stitchgrid.store.layout import JOB, PLAN, SWEEPS, TABLES, StoreLayout
from stitchgrid.store.lease import LeaseError, Leases
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.sweeps import Sweeps

REMOVAL = "remove-"  # begins the name under which a removal claims its sweep


def remove(files: Files, sweep: str) -> int:
    """Delete all files of a sweep; return how many there were.

    Raises:
        LeaseError: If a launch works on the sweep.
        StoreError: If there is no such sweep, or a file of it cannot be deleted.
    """
    names = list(sweep_files(files, sweep))
    if not names:
        raise StoreError(f"no sweep {sweep!r} in the store {files.uri}; {nearest(sweep, Sweeps(files).names())}.")
    leases = Leases(files, Journal(files))
    holder = leases.holder(sweep)
    if holder is not None and not holder.launch.startswith(REMOVAL):
        raise LeaseError(
            f"sweep {sweep!r} is being computed by {holder}; stop that launch or wait for its end, and remove it then."
        )
    is_stopped = holder is not None  # the holder is an earlier removal, which this one may continue at once
    claim = leases.claim(sweep, f"{REMOVAL}{uuid.uuid4().hex[:6]}", force=is_stopped)
    if _has_unstamped(files, sweep):
        compact(files)
    for name in names:
        files.delete(name)
    files.delete(StoreLayout.claim(sweep, claim.number))
    if isinstance(files, LocalFiles):
        files.prune(StoreLayout.sweep(sweep))
    return len(names)


def sweep_files(files: Files, sweep: str) -> Iterator[str]:
    """Yield the files of a sweep in the order in which they can be deleted."""
    folder = StoreLayout.sweep(sweep)
    numbers = sorted(filter(None, map(StoreLayout.revision_number, files.folders(folder))))
    for number in numbers:
        present = files.names(f"{folder}/{number:04d}")
        first = [name for name in (PLAN, *(f"{table}.parquet" for table in TABLES)) if name in present]
        others = [name for name in present if name not in first and name != JOB]
        ordered = [*first, *others, *([JOB] if JOB in present else [])]
        yield from (StoreLayout.revision(sweep, number, name) for name in ordered)
    for inner in (StoreLayout.journal(sweep), StoreLayout.logs(sweep)):
        for one in files.folders(inner):
            yield from (f"{inner}/{one}/{name}" for name in files.names(f"{inner}/{one}"))
    yield from (f"{folder}/{name}" for name in files.names(folder))
    yield from (f"{StoreLayout.claims(sweep)}/{name}" for name in files.names(StoreLayout.claims(sweep)))


def remains(files: Files) -> list[str]:
    """Return the folders that a stopped removal left of sweeps that no longer exist."""
    known = set(Sweeps(files).names())
    return [name for name in files.folders(SWEEPS) if name not in known]


def _has_unstamped(files: Files, sweep: str) -> bool:
    """Return whether a snapshot has an extract of a sweep that does not name its plan, as old stores have."""
    snapshot = Snapshots(files).newest()[0]
    extracts = [snapshot.cells.get(sweep), *(tier.results.get(sweep) for tier in snapshot.all_tiers)]
    return any(extract is not None and not extract.plan for extract in extracts)
