"""Sweeps: what a job asked for and what it means in cells, in numbered revisions that never change."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid import __version__
from stitchgrid.errors import StoreError, UnseenError, nearest
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import (
    CodeDocument,
    Document,
    PlanDocument,
    job_digest,
    longest,
    plan_digest,
    read_document,
)
from stitchgrid.store.files import Files, write_next
from stitchgrid.store.layout import CODE, HIGHEST, JOB, PLAN, SWEEPS, TABLES, StoreLayout, content_digest, is_safe
from stitchgrid.store.parts import parquet_bytes
from stitchgrid.store.plan_checks import DamagedTableError, LayerPositions, check_plan, with_undefined
from stitchgrid.store.schemas import ADDED_TO_TABLES, ALL_TABLES, OPTIONAL_TABLES, SWEEP_TABLES, with_nulls
from stitchgrid.store.table_checks import check_readable, read_table

OTHER_JOB = f"it is not the job that {PLAN} was made for"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """The tables of one complete revision of a sweep."""

    sweep: str
    revision: int
    cells: pa.Table
    models: pa.Table
    layers: pa.Table
    probes: pa.Table
    info: dict[str, Any]  # further facts that the planner stored
    created_at: str
    version: str  # of stitchgrid

    def holds(self, *, cells: pa.Table, models: pa.Table, layers: pa.Table, probes: pa.Table | None = None) -> bool:
        """Return whether these tables equal those of the revision, row by row."""
        probes = ALL_TABLES["probes"].empty_table() if probes is None else probes
        given = {"cells": cells, "models": models, "layers": layers, "probes": probes}
        return all(
            _comparable(table, name).equals(_comparable(getattr(self, name), name)) for name, table in given.items()
        )


class Sweeps:
    """All sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files

    def names(self) -> list[str]:
        """Return the names of the sweeps that have a job or, if that is lost, a plan; sorted."""
        return [name for name in self.files.folders(SWEEPS) if is_safe(name) and self._may_be_known(name)]

    def latest_revision(self, sweep: str) -> int | None:
        """Return the highest revision that has a job, planned or not."""
        return max(self._revisions(sweep, JOB), default=None)

    def write_job(self, sweep: str, job: Mapping[str, Any]) -> int:
        """Store a job as the sweep's next revision; return its number.

        Raises:
            StoreError: If no revision can follow the latest one.
        """
        data = json_bytes(job)
        latest = self.latest_revision(sweep) or 0
        self.require_next(sweep)
        digest = job_digest(json.loads(data))
        while self._planned_job(sweep, latest + 1) not in (None, digest):  # a revision whose own job is lost
            latest += 1
        return write_next(self.files, lambda revision: StoreLayout.revision(sweep, revision, JOB), data, after=latest)

    def require_next(self, sweep: str) -> None:
        """Raise a StoreError if the sweep can have no further revision, since readers would not see it."""
        numbers = map(StoreLayout.revision_number, self.files.folders(StoreLayout.sweep(sweep)))
        if (last := max(filter(None, numbers), default=0)) >= HIGHEST:
            raise StoreError(
                f"no revision can follow {StoreLayout.sweep(sweep)}/{last:04d} in the store {self.files.uri}; give the "
                "job another name: no result is lost, and nothing finished is computed again."
            )

    def write_code(self, sweep: str, revision: int, record: Mapping[str, Any]) -> None:
        """Note the own code that a launch found behind a job without a plan; replaces earlier notes."""
        if not self.files.exists(StoreLayout.revision(sweep, revision, PLAN)):
            self.files.replace(StoreLayout.revision(sweep, revision, CODE), json_bytes(record))

    def read_code(self, sweep: str) -> dict[str, Any]:
        """Return the own code of the latest job: as noted for it, else as the latest plan says; {} if neither does.

        Raises:
            StoreError: If the note or the plan cannot be read.
        """
        latest = self.latest_revision(sweep)
        if latest is not None and latest > (self.latest_plan(sweep) or 0):
            name = StoreLayout.revision(sweep, latest, CODE)
            if self.files.exists(name):
                return self._read_json(name, CodeDocument)
        return self.read_info(sweep)

    def planned(self, sweep: str) -> list[int]:
        """Return the numbers of the complete revisions, ascending."""
        return sorted(self._revisions(sweep, PLAN))

    def latest_plan(self, sweep: str) -> int | None:
        """Return the highest complete revision; None if there is none."""
        return max(self._revisions(sweep, PLAN), default=None)

    def stamp(self, sweep: str) -> tuple[int, str] | None:
        """Return the number of the latest complete revision and the digest of its manifest; None if there is none.

        Raises:
            StoreError: If the manifest cannot be read.
        """
        revision = self.latest_plan(sweep)
        if revision is None:
            return None
        return revision, content_digest(
            self.files.read(StoreLayout.revision(sweep, revision, PLAN), longest(PlanDocument))
        )

    def read_job(self, sweep: str, revision: int | None = None) -> dict[str, Any]:
        """Return the job of a revision, by default of the latest.

        Raises:
            StoreError: If there is no job, or it is damaged.
        """
        revision = revision or self.latest_revision(sweep)
        if revision is None:
            raise self._unknown(sweep)
        job = self._read_json(StoreLayout.revision(sweep, revision, JOB))
        if self._planned_job(sweep, revision) not in (None, job_digest(job)):
            raise self._damaged(StoreLayout.revision(sweep, revision, JOB), OTHER_JOB)
        return job

    def _planned_job(self, sweep: str, revision: int) -> str | None:
        """Return the digest of the job that a revision was planned with; None if no manifest has it."""
        name = StoreLayout.revision(sweep, revision, PLAN)
        try:
            return read_document(self.files, name, PlanDocument).get("job") if self.files.exists(name) else None
        except (DamagedFileError, StoreError):
            return None

    def write_plan(self, sweep: str, revision: int, tables: Mapping[str, pa.Table], info: Mapping[str, Any]) -> None:
        """Complete a revision; writing the same tables again changes nothing.

        Raises:
            StoreError: If the revision is complete with other tables, or readers would refuse a table for its size.
        """
        given = {name: schema for name, schema in ALL_TABLES.items() if name in tables or name in SWEEP_TABLES}
        tables = {name: _with_added(name, tables[name]).cast(schema) for name, schema in given.items()}
        if self.files.exists(StoreLayout.revision(sweep, revision, PLAN)):
            self._check_same(sweep, revision, tables)
            return
        files = {f"{name}.parquet": parquet_bytes(table) for name, table in tables.items()}
        for name, table in tables.items():
            try:
                check_readable(files[f"{name}.parquet"], table, ALL_TABLES[name])
            except DamagedFileError as problem:
                told = f"the table {name} of sweep {sweep!r}, of {table.num_rows:,} rows, could not be read again"
                advice = "If it is too large, divide the pairs ([grid] pairs) among several jobs with one store."
                raise StoreError(f"{told}: it {problem}. {advice}") from problem
        for file, data in files.items():
            self.files.replace(StoreLayout.revision(sweep, revision, file), data)
        manifest = {
            "created_at": datetime.now(UTC).isoformat(),
            "version": __version__,
            "num_rows": {name: table.num_rows for name, table in tables.items()},
            "sha256": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
            "info": dict(info),
        }
        with suppress(StoreError):  # a job that is lost has no digest
            manifest["job"] = job_digest(self.read_job(sweep, revision))
        manifest["digest"] = plan_digest(json.loads(json_bytes(manifest)))
        self.files.write_once(StoreLayout.revision(sweep, revision, PLAN), json_bytes(manifest))

    def read_plan(self, sweep: str, revision: int | None = None) -> StoredPlan | None:
        """Return a complete revision, by default the latest; None if the sweep has none yet.

        Raises:
            StoreError: If there is no such sweep, or a file of the revision is damaged.
        """
        if not self._is_known(sweep):
            raise self._unknown(sweep)
        complete = self._revisions(sweep, PLAN)
        revision = revision or max(complete, default=None)
        if revision is None or revision not in complete:
            return None
        manifest = self._read_json(StoreLayout.revision(sweep, revision, PLAN), PlanDocument)
        tables = self._tables(sweep, revision, manifest, TABLES)
        try:
            return StoredPlan(
                sweep=sweep,
                revision=revision,
                info=dict(manifest["info"]),
                created_at=str(manifest["created_at"]),
                version=str(manifest["version"]),
                **tables,
            )
        except (KeyError, TypeError) as problem:
            raise self._damaged(f"{StoreLayout.sweep(sweep)}/{revision:04d}", str(problem)) from problem

    def read_info(self, sweep: str) -> dict[str, Any]:
        """Return the further facts that the planner stored with the latest complete revision, {} if there is none.

        Raises:
            StoreError: If its manifest is damaged.
        """
        revision = self.latest_plan(sweep)
        if revision is None:
            return {}
        try:
            return dict(self._read_json(StoreLayout.revision(sweep, revision, PLAN), PlanDocument)["info"])
        except (KeyError, TypeError) as problem:
            raise self._damaged(f"{StoreLayout.sweep(sweep)}/{revision:04d}", str(problem)) from problem

    def read_tables(self, sweep: str, names: Sequence[str]) -> dict[str, pa.Table]:
        """Return some tables of the latest complete revision, {} if there is none; raises what `read_plan` raises."""
        revision = self.latest_plan(sweep)
        if revision is None:
            return {}
        manifest = self._read_json(StoreLayout.revision(sweep, revision, PLAN), PlanDocument)
        return self._tables(sweep, revision, manifest, names)

    def check_cells(self, sweep: str, table: pa.Table) -> None:
        """Check that an extract names layers as the latest complete revision does.

        Raises:
            DamagedFileError: If the extract does not.
            StoreError: If the revision cannot be read.
        """
        if layers := self.read_tables(sweep, ["layers"]):
            LayerPositions(layers["layers"]).check_cells(table)

    def _tables(
        self, sweep: str, revision: int, manifest: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, pa.Table]:
        try:
            tables = {name: self._read_table(sweep, revision, name, manifest["sha256"]) for name in names}
            check_plan(tables)
            return tables
        except (DamagedFileError, KeyError, TypeError) as problem:
            raise self._damaged(f"{StoreLayout.sweep(sweep)}/{revision:04d}", str(problem)) from problem

    def plan_problems(self, sweep: str, revision: int) -> list[tuple[str, str]]:
        """Return (file, what is wrong with it) for each damaged file of a complete revision."""
        try:
            manifest = self._read_json(StoreLayout.revision(sweep, revision, PLAN), PlanDocument)
            digests, counts, _, _ = (manifest[key] for key in ("sha256", "num_rows", "info", "created_at"))
        except (KeyError, StoreError) as problem:
            lacks = isinstance(problem, KeyError)
            return [(PLAN, f"lacks {problem}" if lacks else str(problem))]
        tables: dict[str, pa.Table] = {}
        found = self._job_problems(sweep, revision, manifest.get("job"))
        for name in (table for table in TABLES if table in SWEEP_TABLES or f"{table}.parquet" in digests):
            try:
                tables[name] = table = self._read_table(sweep, revision, name, digests)
                if table.num_rows != counts[name]:
                    found.append((PLAN, f"promises {counts[name]} rows of {name}, there are {table.num_rows}"))
            except (DamagedFileError, KeyError, TypeError, StoreError) as problem:
                found.append((f"{name}.parquet", str(problem)))
        try:
            check_plan(tables)
        except DamagedTableError as problem:
            found.append((problem.file, problem.problem))
        return found

    def _job_problems(self, sweep: str, revision: int, digest: str | None) -> list[tuple[str, str]]:
        """Return what is wrong with the job of a revision, if it is there and readable."""
        name = StoreLayout.revision(sweep, revision, JOB)
        try:
            is_other = digest is not None and self.files.exists(name) and job_digest(self._read_json(name)) != digest
        except StoreError:
            return []
        return [(JOB, OTHER_JOB)] if is_other else []

    def _may_be_known(self, sweep: str) -> bool:
        """Return whether it is a sweep, or may be one that cannot be read from here: reading it then says why."""
        try:
            return self._is_known(sweep)
        except UnseenError:
            return True

    def _is_known(self, sweep: str) -> bool:
        return any(self._revisions(sweep, file) for file in (JOB, PLAN))

    def _revisions(self, sweep: str, file: str) -> list[int]:
        numbers = map(StoreLayout.revision_number, self.files.folders(StoreLayout.sweep(sweep)))
        return [one for one in numbers if one and self.files.exists(StoreLayout.revision(sweep, one, file))]

    def _read_table(self, sweep: str, revision: int, name: str, digests: Mapping[str, str]) -> pa.Table:
        schema, file = ALL_TABLES[name], f"{name}.parquet"
        if name in OPTIONAL_TABLES and file not in digests:
            return schema.empty_table()
        data = self.files.read(StoreLayout.revision(sweep, revision, file))
        if hashlib.sha256(data).hexdigest() != digests[file]:
            raise DamagedFileError(f"{file} differs from its digest in {PLAN}")
        return with_undefined(_with_added(name, read_table(data, schema)))

    def _check_same(self, sweep: str, revision: int, tables: Mapping[str, pa.Table]) -> None:
        plan = self.read_plan(sweep, revision)
        assert plan is not None
        if not plan.holds(**tables):
            raise StoreError(
                f"revision {revision} of sweep {sweep!r} in the store {self.files.uri} is complete with other tables; "
                "a revision never changes: make the next one with --update."
            )

    def _read_json(self, name: str, kind: type[Document] = Document) -> dict[str, Any]:
        try:
            return read_document(self.files, name, kind)
        except DamagedFileError as problem:
            raise self._damaged(name, str(problem)) from problem

    def _damaged(self, name: str, reason: str) -> StoreError:
        return StoreError(
            f"{name} in the store {self.files.uri} is damaged: {reason}; launch the job file again with --update "
            "to write the sweep's next revision: no result is lost."
        )

    def _unknown(self, sweep: str) -> StoreError:
        return StoreError(f"no sweep {sweep!r} in the store {self.files.uri}; {nearest(sweep, self.names())}.")


def _with_added(name: str, table: pa.Table) -> pa.Table:
    """Return a sweep's table with all columns; columns that are newer than the table are NULL."""
    schema = ALL_TABLES[name]
    missing = [column for column in schema.names if column not in table.column_names]
    if lost := sorted(set(missing) - ADDED_TO_TABLES.get(name, frozenset())):
        raise DamagedFileError(f"lacks the columns {lost}")
    return with_nulls(table, schema, missing).select(schema.names)


def _comparable(table: pa.Table, name: str) -> pa.Table:
    """Return the table with its stored types, and with NULL for NaN, which would differ from itself."""
    schema = ALL_TABLES[name]
    table = _with_added(name, table).cast(schema)
    for index, field in enumerate(schema):
        if pa.types.is_floating(field.type):
            column = table[field.name]
            table = table.set_column(index, field, pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column))
    return table


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a job or the manifest of a revision as it is stored."""
    return (json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n").encode()
