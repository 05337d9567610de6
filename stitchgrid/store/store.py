"""A store: everything that sweeps asked for, computed and are computing, in one folder that many machines may share."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from stitchgrid import __version__
from stitchgrid.errors import StoreError
from stitchgrid.records import Row, canonical
from stitchgrid.store.artefacts import Artefacts
from stitchgrid.store.check import Checker, Report
from stitchgrid.store.compact import Compacted, compact
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.journal import Journal
from stitchgrid.store.layout import FORMAT, MARKER, PARTS, SUFFIXES
from stitchgrid.store.outcomes import COLUMNS, Outcomes
from stitchgrid.store.parts import PartRows, Parts
from stitchgrid.store.reading import contents, read_rows
from stitchgrid.store.repair import Repair, set_aside
from stitchgrid.store.scanning import Scan, scan
from stitchgrid.store.schemas import PART
from stitchgrid.store.sweeps import StoredPlan, Sweeps


class Store:
    """One store; make it with `Store.open`."""

    def __init__(self, files: LocalFiles):
        self.files = files
        self._parts = Parts(files)
        self._artefacts = Artefacts(files)
        self._sweeps = Sweeps(files)
        self._journal = Journal(files)

    @classmethod
    def open(cls, uri: str | Path, *, create: bool = False) -> "Store":
        """Return the store at a folder; `create` makes it where there is none, and checks that it can be written.

        Raises:
            StoreError: If there is none, it cannot be written, or it is of a kind this version cannot use.
        """
        root = _local_root(uri)
        files = LocalFiles(root)
        if create:
            _create(files)
        elif not files.exists(MARKER):
            what = "the folder is not a store" if root.is_dir() else "there is no such folder"
            raise StoreError(
                f"no store at {root}: {what}; name another with --store or $STITCHGRID_STORE, or make one with "
                "'stitchgrid launch'."
            )
        _check_format(files)
        return cls(files)

    @property
    def uri(self) -> str:
        """What to give to `open` in another process."""
        return str(self.files.root)

    # Parts ------------------------------------------------------------------------------------------------------------

    def write_part(self, shard_id: str, rows: Sequence[Row]) -> str:
        """Write the rows of a shard; return the part's name. The same rows twice are the same part."""
        return self._parts.write(shard_id, rows)

    def part_paths(self) -> list[Path]:
        """Return where the parts that count lie, sound or not."""
        return [self.files.path(f"{PARTS}/{name}") for name in self._parts.names()]

    def read_parts(self, columns: Sequence[str] = tuple(PART.names)) -> PartRows:
        """Return these columns of all rows, some of which may be there twice, and what was left out as damaged."""
        return read_rows(self.files, columns)

    def scan(self, without: frozenset[str] = frozenset()) -> Scan:
        """Return all rows, to be read when a query needs them; files of these names are left out."""
        return scan(self.files, without)

    def outcomes(self) -> Outcomes:
        """Return what is stored of every cell."""
        return Outcomes(read_rows(self.files, COLUMNS))

    # Upkeep -----------------------------------------------------------------------------------------------------------

    def check(self) -> Report:
        """Verify every file; return what is damaged, and what is there but not the store's."""
        return Checker(self.files).run()

    def set_aside(self, report: Report) -> Repair:
        """Move what a check found damaged to where no reader looks; a StoreError if the store is read-only."""
        return set_aside(self.files, report)

    def compact(self) -> Compacted:
        """Merge all loose parts that are sound into a snapshot; a StoreError if the store is read-only."""
        return compact(self.files)

    def compact_if_many(self, threshold: int = 1000) -> Compacted | None:
        """Compact the store if it has at least so many loose parts."""
        return self.compact() if len(contents(self.files).loose) >= threshold else None

    # Artefacts --------------------------------------------------------------------------------------------------------

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether the artefact is there."""
        return self._artefacts.has(kind, key)

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return an artefact's data; a StoreError if it is missing or damaged."""
        return self._artefacts.read(kind, key)

    def write_artefact(self, kind: str, key: str, data: bytes, suffix: str | None = None) -> bool:
        """Write an artefact unless there is one; return whether this call's data are the artefact now."""
        assert suffix in (None, SUFFIXES[kind]), f"a {kind} is kept as {SUFFIXES[kind]}, not {suffix}"
        return self._artefacts.write(kind, key, data)

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

    def read_job(self, sweep: str, revision: int | None = None) -> dict[str, Any]:
        """Return the job of a revision, by default of the latest; a StoreError if there is none."""
        return self._sweeps.read_job(sweep, revision)

    def write_plan(
        self,
        sweep: str,
        revision: int,
        *,
        cells: pa.Table,
        models: pa.Table,
        layers: pa.Table,
        info: Mapping[str, Any],
    ) -> None:
        """Complete a revision with its tables (columns: `schemas.py`); `info` is kept as it is."""
        self._sweeps.write_plan(sweep, revision, {"cells": cells, "models": models, "layers": layers}, info)

    def read_plan(self, sweep: str, revision: int | None = None) -> StoredPlan | None:
        """Return a complete revision, by default the latest; None if there is none yet."""
        return self._sweeps.read_plan(sweep, revision)

    def read_plan_tables(self, sweep: str, names: Sequence[str]) -> dict[str, pa.Table]:
        """Return some tables of the latest complete revision; {} if there is none yet."""
        return self._sweeps.read_tables(sweep, names)

    # Journal ----------------------------------------------------------------------------------------------------------

    def journal(self, sweep: str, launch_id: str, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Note the attempts of one dispatch round before they start.

        Each names its `unit`, and a piece of a bisected shard the planned `shard` that it is a piece of.
        """
        self._journal.write(sweep, launch_id, attempts)

    def attempts(self, sweep: str) -> list[dict[str, Any]]:
        """Return every attempt with its `launch` and `at`, oldest first."""
        return self._journal.attempts(sweep)

    def write_heartbeat(self, sweep: str, beat: Mapping[str, Any]) -> None:
        """Say what a launch is doing now: `at` (ISO 8601, UTC) and `running`, a list like that of `journal`."""
        self._journal.write_heartbeat(sweep, beat)

    def read_heartbeat(self, sweep: str) -> dict[str, Any] | None:
        """Return what a launch was doing last, None if nothing is known."""
        return self._journal.read_heartbeat(sweep)


def _local_root(uri: str | Path) -> Path:
    text = str(uri)
    if "://" not in text:
        return Path(text).expanduser().absolute()
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path)).absolute()
    raise StoreError(
        f"stores at {parts.scheme}:// are not supported by this version of stitchgrid ({__version__}), got {text!r}; "
        "name a folder that all workers can see."
    )


def _create(files: LocalFiles) -> None:
    """Make the folder a store, or leave nothing behind."""
    made: list[Path] = []
    try:
        for folder in (*reversed(files.root.parents), files.root):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
        files.write_once(MARKER, canonical({"format": FORMAT, "version": __version__}).encode())
        files.check_writable()
    except (OSError, StoreError) as problem:
        for folder in reversed(made):
            _remove_empty(folder)
        if isinstance(problem, StoreError):
            raise
        raise StoreError(
            f"cannot make a store at {files.root}: {problem.strerror or problem}; check the path and its permissions, "
            "or name another store with --store."
        ) from problem


def _remove_empty(folder: Path) -> None:
    try:
        (folder / MARKER).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:  # somebody else put something there, or it cannot be undone either
        return


def _check_format(files: LocalFiles) -> None:
    try:
        found = int(json.loads(files.read(MARKER))["format"])
    except (ValueError, TypeError, KeyError) as problem:
        raise StoreError(
            f"{MARKER} in the store {files.root} is damaged ({problem}); if the folder is a store, replace the file by "
            f'{{"format":{FORMAT}}}.'
        ) from problem
    if found > FORMAT:
        raise StoreError(
            f"the store {files.root} has format {found}, this stitchgrid ({__version__}) reads up to {FORMAT}; "
            "upgrade stitchgrid."
        )
