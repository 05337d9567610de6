"""A store: the plans, results and progress of sweeps, in one place that many machines may share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stitchgrid.errors import InputError
from stitchgrid.records import Row
from stitchgrid.store.artefacts import Artefacts
from stitchgrid.store.cell_status import COLUMNS, CellStatus
from stitchgrid.store.check import Checker, Report
from stitchgrid.store.compact import Compacted, compact
from stitchgrid.store.damage import Damage
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.garbage_collection import Collected, collect
from stitchgrid.store.journal import Journal
from stitchgrid.store.layout import PARTS, SUFFIXES
from stitchgrid.store.lease import Leases
from stitchgrid.store.logs import Logs
from stitchgrid.store.opening import open_files
from stitchgrid.store.parts import PartRows, Parts
from stitchgrid.store.reading import contents, read_rows
from stitchgrid.store.recompute_requests import RecomputeRequests
from stitchgrid.store.repair import Repair, set_aside
from stitchgrid.store.scanning import Scan, scan
from stitchgrid.store.schemas import PART
from stitchgrid.store.store_merge import Merged, merge
from stitchgrid.store.sweep_removal import remove
from stitchgrid.store.sweeps import StoredPlan, Sweeps


class Store:
    """One store; make it with `Store.open`."""

    def __init__(self, files: Files):
        self.files = files
        self._parts = Parts(files)
        self._artefacts = Artefacts(files)
        self._sweeps = Sweeps(files)
        self._journal = Journal(files)
        self._logs = Logs(files)
        self.requests = RecomputeRequests(files)
        self.leases = Leases(files, self._journal)

    @classmethod
    def open(cls, uri: str | Path, *, create: bool = False) -> "Store":
        """Return the store at a folder or an `s3://` URI; `create` makes it where there is none, and checks it.

        Raises:
            NoStoreError: If there is no store, and `create` is off.
            StoreError: If the store cannot be reached or written, or has a kind or format that this version cannot use.
        """
        return cls(open_files(uri, create=create))

    @property
    def uri(self) -> str:
        """The text with which `open` opens the store in another process; it holds no secret."""
        return self.files.uri

    # Parts ------------------------------------------------------------------------------------------------------------

    def write_part(self, shard_id: str, rows: Sequence[Row]) -> str:
        """Write the rows of a shard; return the part's name. Writing the same rows twice makes one part."""
        return self._parts.write(shard_id, rows)

    def part_paths(self) -> list[Path]:
        """Return where the parts that count lie in a folder, sound or not."""
        assert isinstance(self.files, LocalFiles), "only in a folder do files have paths"
        return [self.files.path(f"{PARTS}/{name}") for name in self._parts.names()]

    def read_parts(self, columns: Sequence[str] = tuple(PART.names)) -> PartRows:
        """Return these columns of all rows, of which some may appear twice, and the damaged files left out."""
        return read_rows(self.files, columns)

    def scan(self, columns: Sequence[str] = tuple(PART.names), without: frozenset[str] = frozenset()) -> Scan:
        """Return all rows as datasets, which are read when a query needs them, without the files of these names.

        Of rows that are in no snapshot yet, these columns are read; they must include `row_status.COLUMNS`.
        """
        return scan(self.files, columns, without)

    def cell_status(self) -> CellStatus:
        """Return the status of every cell."""
        return CellStatus(read_rows(self.files, COLUMNS))

    # Maintenance ------------------------------------------------------------------------------------------------------

    def check(self) -> Report:
        """Verify every file; return the files that are damaged, and those that do not belong to the store."""
        return Checker(self.files).run()

    def set_aside(self, report: Report) -> Repair:
        """Move files that a check found damaged out of readers' way; a StoreError if the store is read-only."""
        return set_aside(self.files, report)

    def compact(self) -> Compacted:
        """Merge all loose parts that are sound into a snapshot; a StoreError if the store is read-only."""
        return compact(self.files)

    def compact_if_many(self, threshold: int) -> Compacted | None:
        """Compact the store if it has at least so many loose parts."""
        return self.compact() if len(contents(self.files).loose) >= threshold else None

    def merge(self, others: Sequence["Store"]) -> Merged:
        """Copy the content of other stores into this one; they do not change. Return what came from each.

        Raises:
            InputError: If one of them is this store.
            StoreError: If this store cannot be written.
        """
        for other in others:
            if self._is(other):
                raise InputError(f"cannot merge the store {other.uri} into itself; name two stores.")
        return merge(self.files, [other.files for other in others])

    def remove(self, sweep: str) -> int:
        """Forget a sweep; return how many files it had. Its rows and artefacts stay until `collect`.

        Raises:
            LeaseError: If a launch works on the sweep.
            StoreError: If there is no such sweep, or the store cannot be written.
        """
        return remove(self.files, sweep)

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Delete what no sweep refers to, or only report it; a StoreError if the store cannot be written."""
        return collect(self.files, dry_run=dry_run)

    def _is(self, other: "Store") -> bool:
        if isinstance(self.files, LocalFiles) and isinstance(other.files, LocalFiles):
            return self.files.root.resolve() == other.files.root.resolve()
        return self.uri == other.uri

    # Artefacts --------------------------------------------------------------------------------------------------------

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether the store has the artefact."""
        return self._artefacts.has(kind, key)

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return an artefact's data; a StoreError if it is missing or damaged."""
        return self._artefacts.read(kind, key)

    def artefact_generation(self, kind: str, key: str) -> int:
        """Return the generation of the cells for which an artefact was made anew, 0 where it was not.

        Raises:
            StoreError: If its manifest is damaged or cannot be read.
        """
        return self._artefacts.generation(kind, key)

    def write_artefact(
        self, kind: str, key: str, data: bytes, suffix: str | None = None, *, generation: int = 0
    ) -> bool:
        """Write an artefact unless there is one; return whether this call's data are now the artefact.

        An artefact of an earlier generation of its cells is replaced.
        """
        assert suffix in (None, SUFFIXES[kind]), f"a {kind} is kept as {SUFFIXES[kind]}, not {suffix}"
        return self._artefacts.write(kind, key, data, generation=generation)

    # Sweeps -----------------------------------------------------------------------------------------------------------

    def sweep_names(self) -> list[str]:
        """Return the names of all sweeps, sorted."""
        return self._sweeps.names()

    def latest_revision(self, sweep: str) -> int | None:
        """Return the sweep's highest revision, planned or not; None if there is no such sweep."""
        return self._sweeps.latest_revision(sweep)

    def write_job(self, sweep: str, job: Mapping[str, Any]) -> int:
        """Store a job as the sweep's next revision; return its number."""
        return self._sweeps.write_job(sweep, job)

    def require_next_revision(self, sweep: str) -> None:
        """Raise a StoreError if the sweep can have no further revision."""
        self._sweeps.require_next(sweep)

    def read_job(self, sweep: str, revision: int | None = None) -> dict[str, Any]:
        """Return the job of a revision, by default of the latest; a StoreError if there is none."""
        return self._sweeps.read_job(sweep, revision)

    def write_code(self, sweep: str, revision: int, record: Mapping[str, Any]) -> None:
        """Note the own code that a launch found behind a job without a plan, as a `documents.CodeDocument`."""
        self._sweeps.write_code(sweep, revision, record)

    def read_code(self, sweep: str) -> dict[str, Any]:
        """Return the own code that is noted for the latest job, {} if none is; a StoreError if it cannot be read."""
        return self._sweeps.read_code(sweep)

    def write_plan(
        self,
        sweep: str,
        revision: int,
        *,
        cells: pa.Table,
        models: pa.Table,
        layers: pa.Table,
        probes: pa.Table | None = None,
        info: Mapping[str, Any],
    ) -> None:
        """Complete a revision with its tables (columns: `schemas.py`); `info` is kept as it is."""
        tables = {"cells": cells, "models": models, "layers": layers}
        self._sweeps.write_plan(sweep, revision, tables if probes is None else tables | {"probes": probes}, info)

    def read_plan(self, sweep: str, revision: int | None = None) -> StoredPlan | None:
        """Return a complete revision, by default the latest; None if there is none yet."""
        return self._sweeps.read_plan(sweep, revision)

    def read_plan_info(self, sweep: str) -> dict[str, Any]:
        """Return the `info` of the latest complete revision; {} if there is none yet."""
        return self._sweeps.read_info(sweep)

    def read_plan_tables(self, sweep: str, names: Sequence[str]) -> dict[str, pa.Table]:
        """Return some tables of the latest complete revision; {} if there is none yet."""
        return self._sweeps.read_tables(sweep, names)

    # Journal ----------------------------------------------------------------------------------------------------------

    def journal(self, sweep: str, launch_id: str, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Note the attempts of one dispatch round before they start.

        Each names its `unit`; a piece of a shard that was cut in two also names the planned `shard` it belongs to.
        """
        self._journal.write(sweep, launch_id, attempts)

    def attempts(self, sweep: str) -> list[dict[str, Any]]:
        """Return every attempt with its `launch` and `at`, oldest first."""
        return self._journal.attempts(sweep)

    def write_heartbeat(self, sweep: str, beat: Mapping[str, Any]) -> None:
        """Write what a launch is doing now: `at` (ISO 8601, UTC) and `running`, a list like that of `journal`."""
        self._journal.write_heartbeat(sweep, beat)

    def read_heartbeat(self, sweep: str) -> dict[str, Any] | None:
        """Return the last heartbeat of a sweep, None if there is none that can be read."""
        return self._journal.read_heartbeat(sweep)

    # Logs -------------------------------------------------------------------------------------------------------------

    def write_log(self, sweep: str, unit_id: str, text: str) -> None:
        """Keep the log of one attempt at a unit of a sweep, after those of earlier attempts."""
        self._logs.write(sweep, unit_id, text)

    def read_log(self, sweep: str, unit_id: str) -> str | None:
        """Return the logs of all attempts at a unit, None if there are none."""
        return self._logs.read(sweep, unit_id)

    def log_problems(self, sweep: str, unit_id: str) -> list[Damage]:
        """Return the logs of a unit that are damaged; `read_log` gives a message in their place."""
        return self._logs.problems(sweep, unit_id)

    def log_names(self, sweep: str) -> list[str]:
        """Return the ids of the units of a sweep that have logs, sorted."""
        return self._logs.names(sweep)
