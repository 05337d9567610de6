"""A store as datasets of which a query reads only what it needs, when it needs it.

The rows of a snapshot are scanned in its files, which are checked when they are opened; loose parts are read at once. A
cell that has rows in both is taken out of the snapshot: all its rows are then among the loose ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.files import Files
from stitchgrid.store.layout import EXTRACTS, SNAPSHOT_DATA
from stitchgrid.store.parts import Parts, parquet_bytes, with_all
from stitchgrid.store.reading import Contents, read_rows, stable
from stitchgrid.store.row_status import without_duplicates
from stitchgrid.store.schemas import CELL_STATES, PART, RESULTS, no_rows
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.sweeps import Sweeps
from stitchgrid.store.table_checks import UNREADABLE, open_table, sound, unreadable
from stitchgrid.store.tiers import Snapshot, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """All rows of a store, and the datasets of its sweeps that are ready."""

    loose: pa.Table  # rows that are in no dataset; one value for each cell and metric
    num_loose_parts: int
    moved: pa.Array  # ids of the cells whose rows in the datasets do not count: they are among the loose ones
    rows: ds.Dataset | None = None  # with the columns of parts
    results: ds.Dataset | None = None  # the values of the ready sweeps, named
    cells: ds.Dataset | None = None  # the cells of the ready sweeps with their status
    ready: frozenset[str] = frozenset()
    damaged: tuple[Damage, ...] = ()
    found_late: list[Damage] = field(default_factory=list)  # damage that showed while a dataset was read
    look_closely: Callable[[], list[Damage]] = list  # reads every file of the datasets, returns the damaged ones


def scan(files: Files, columns: Sequence[str], bad: frozenset[str] = frozenset()) -> Scan:
    """Return a store to be scanned, without the files of these names.

    Of loose rows, only `columns` are read, which must include the columns that `row_status` needs.
    """
    return stable(files, lambda found: _scan(files, found, columns, bad))


def _scan(files: Files, found: Contents, columns: Sequence[str], bad: frozenset[str]) -> Scan:
    here = {f"{folder}/{name}" for folder in (SNAPSHOT_DATA, EXTRACTS) for name in files.names(folder)} - bad
    snapshot = found.snapshot
    ids = _ids(files, snapshot, here)
    if ids is None:
        return _row_by_row(files, columns, len(found.loose))
    loose = Parts(files).read(columns, found.loose)
    known = pc.unique(loose.table["cell_id"])
    moved = pa.concat_arrays([pc.filter(some, pc.is_in(some, value_set=known)) for some in ids] or [known[:0]])
    try:
        old = [_rows_of(files, tier, moved, columns) for tier in snapshot.tiers] if len(moved) else []
    except (DamagedFileError, StoreError):
        return _row_by_row(files, columns, len(found.loose))
    table = pa.concat_tables([loose.table, *old]).unify_dictionaries()
    late: list[Damage] = []
    datasets = Datasets(files, late)
    ready = frozenset(sweep for sweep in snapshot.cells if _is_ready(files, snapshot, sweep, here))
    return Scan(
        loose=without_duplicates(table),
        num_loose_parts=len(found.loose),
        moved=moved,
        rows=datasets.make(PART, ((tier.file, None) for tier in snapshot.tiers)),
        results=datasets.make(
            RESULTS, ((tier.results[sweep].file, sweep) for tier in snapshot.tiers for sweep in ready)
        ),
        cells=datasets.make(CELL_STATES, ((snapshot.cells[sweep].file, sweep) for sweep in ready)),
        ready=ready,
        damaged=(*found.damaged, *loose.damaged),
        found_late=late,
        look_closely=datasets.look_closely,
    )


def _row_by_row(files: Files, columns: Sequence[str], num_loose: int) -> Scan:
    """Return a store that cannot be scanned: all its rows are read."""
    rows = read_rows(files, columns)
    nothing = pa.array([], pa.string())
    table = without_duplicates(rows.table)
    return Scan(loose=table, num_loose_parts=num_loose, moved=nothing, damaged=rows.damaged)


def _ids(files: Files, snapshot: Snapshot, here: set[str]) -> list[pa.Array] | None:
    """Return the ids of the cells of every tier; None if all rows must be read: files are missing, or rows repeated."""
    if snapshot.loose or any(tier.file not in here or tier.ids not in here for tier in snapshot.tiers):
        return None
    try:
        return [Snapshots(files).ids(tier) for tier in snapshot.tiers]
    except (DamagedFileError, StoreError):
        return None


def _is_ready(files: Files, snapshot: Snapshot, sweep: str, here: set[str]) -> bool:
    if not snapshot.tiers:
        return False
    try:
        stamp = Sweeps(files).stamp(sweep)
    except StoreError:
        return False
    extracts = [snapshot.cells[sweep], *(tier.results.get(sweep) for tier in snapshot.tiers)]
    return all(one is not None and one.is_current(stamp, here) for one in extracts)


def _rows_of(files: Files, tier: Tier, cells: pa.Array, columns: Sequence[str]) -> pa.Table:
    """Return these columns of the rows of a few cells; reads only the row groups that hold them."""
    file, _ = open_table(Snapshots(files).opened(tier.file, PART), PART, columns)
    wanted = [no_rows(columns)]
    for group in range(file.num_row_groups):
        chosen = pc.is_in(_group(file, group, ["cell_id"])["cell_id"], value_set=cells)
        if pc.any(chosen).as_py():
            wanted.append(_group(file, group, columns).filter(chosen).cast(wanted[0].schema))
    return pa.concat_tables(wanted).unify_dictionaries()


def _group(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of one row group; a DamagedFileError if it cannot be read."""
    try:
        return sound(with_all(file.read_row_group(group, columns=list(columns), use_threads=False), columns), PART)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem


class Datasets:
    """Makes datasets whose files are read whole and checked when a scan opens them."""

    def __init__(self, files: Files, found_late: list[Damage]):
        self._files = files
        self._schemas: dict[str, pa.Schema] = {}
        self._sweeps: dict[str, str] = {}  # file -> its sweep, if it has one
        self._filesystem = fs.PyFileSystem(_Checked(Snapshots(files), self._schemas, found_late))
        self._format = ds.ParquetFileFormat()

    def make(self, schema: pa.Schema, files: Iterable[tuple[str, str | None]]) -> ds.Dataset | None:
        """Return a dataset of files, each with the sweep of all its rows; None if there are no files."""
        files = list(files)
        self._schemas |= {name: schema for name, _ in files}
        self._sweeps |= {name: sweep for name, sweep in files if sweep is not None}
        fragments = [
            self._format.make_fragment(
                name,
                self._filesystem,
                partition_expression=None if sweep is None else ds.field("sweep") == sweep,
            )
            for name, sweep in files
        ]
        return ds.FileSystemDataset(fragments, schema, self._format, self._filesystem) if fragments else None

    def look_closely(self) -> list[Damage]:
        """Return the files with content that no reader expects; a query checks only what it reads, and not closely."""
        found = []
        for name, schema in self._schemas.items():
            try:
                table = Snapshots(self._files).table(name, schema)
                if sweep := self._sweeps.get(name):
                    Sweeps(self._files).check_cells(sweep, table)
            except (DamagedFileError, StoreError) as problem:
                found.append(Damage(file=name, reason=str(problem)))
        return found


class _Checked(fs.FileSystemHandler):  # type: ignore[misc]
    """Opens files of snapshots, and nothing else."""

    def __init__(self, snapshots: Snapshots, schemas: Mapping[str, pa.Schema], found_late: list[Damage]):
        self.snapshots, self.schemas, self.found_late = snapshots, schemas, found_late

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Return a checked file, or one without rows if it is damaged; the damage is noted, so the query can run again.

        An exception raised here, in a thread of Arrow's, could block that thread for good: handling it takes Python's
        lock, which the thread that started the scan may hold while it waits for this one.
        """
        try:
            return pa.BufferReader(self.snapshots.opened(path, self.schemas[path]))
        except (DamagedFileError, StoreError) as problem:
            self.found_late.append(Damage(file=path, reason=str(problem)))
            return pa.BufferReader(parquet_bytes(self.schemas[path].empty_table()))

    def get_type_name(self) -> str:
        """Return the kind of this file system."""
        return "stitchgrid"

    def normalize_path(self, path: str) -> str:
        """Return the path."""
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        """Return that all are files."""
        return [fs.FileInfo(path, fs.FileType.File) for path in paths]

    def _refuse(self, *_: object) -> None:
        raise NotImplementedError("snapshots are only read")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _refuse
    delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_input_stream = open_output_stream = open_append_stream = _refuse
