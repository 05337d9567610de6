"""Export the views as a DuckDB file, or as Parquet files, for other tools.

An export is written under a temporary name and then renamed, so it is complete or missing. It replaces an earlier
export, and nothing else.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from stitchgrid import __version__
from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.views import VIEWS
from stitchgrid.errors import InputError
from stitchgrid.paths import real_place

NOTE = "export"  # table of a DuckDB file that marks the file as an export
WITHOUT_SWEEP = {
    "measurements": "select * from measurements where cell_id in (select cell_id from cells where sweep in ({names}))",
    "matchers": "select * from matchers",
}

Take = Callable[[str, pa.RecordBatchReader], None]  # name of a view, its rows


def export_duckdb(catalog: Catalog, path: Path, sweeps: Sequence[str] = ()) -> dict[str, int]:
    """Write the views of some sweeps, by default all, as tables of a DuckDB file; return their numbers of rows.

    Raises:
        InputError: If the file cannot be written, or another file has this name.
        QueryError: If there is no such sweep.
    """
    statements = _statements(catalog, sweeps)
    place = _place(path)
    if place.exists() and not _is_export(place):
        raise InputError(f"{path} exists and is not an export of stitchgrid; name another file.")

    def write(beside: Path) -> dict[str, int]:
        beside.unlink(missing_ok=True)
        with duckdb.connect(str(beside)) as connection:

            def take(name: str, rows: pa.RecordBatchReader) -> None:
                connection.register("_rows", rows)
                connection.execute(f'create table "{name}" as select * from _rows')
                connection.unregister("_rows")

            counts = catalog.export(statements, take)
            told = [catalog.uri, ", ".join(sweeps or catalog.sweeps), __version__]
            what = "? as store, ? as sweeps, ? as version, now()::varchar as created_at"
            connection.execute(f"create table {NOTE} as select {what}", told)
        return counts

    with _beside(place) as beside:
        counts = _until_sound(catalog, lambda: write(beside))
        beside.replace(place)
    return counts


def export_parquet(catalog: Catalog, folder: Path, sweeps: Sequence[str] = ()) -> dict[str, int]:
    """Write the views of some sweeps, by default all, as VIEW.parquet in a folder; return their numbers of rows.

    Raises:
        InputError: If the folder cannot be written, or has other files in it.
        QueryError: If there is no such sweep.
    """
    statements = _statements(catalog, sweeps)
    own_files = {f"{name}.parquet" for name in VIEWS}
    place = _place(folder)
    if place.exists() and not place.is_dir():
        raise InputError(f"wanted a folder, but {folder} is a file; name another one.")
    if place.exists() and (others := sorted({path.name for path in place.iterdir()} - own_files)):
        raise InputError(f"wanted a new or empty folder, but {folder} has {others[0]!r} in it; name another one.")

    def write(beside: Path) -> dict[str, int]:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()

        def take(name: str, rows: pa.RecordBatchReader) -> None:
            with pq.ParquetWriter(beside / f"{name}.parquet", rows.schema, compression="zstd") as writer:
                for batch in rows:
                    writer.write_batch(batch)

        return catalog.export(statements, take)

    with _beside(place) as beside:
        counts = _until_sound(catalog, lambda: write(beside))
        _exchange(beside, place)
    return counts


def _until_sound(catalog: Catalog, write: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Write; if files of the store turn out to be damaged meanwhile, leave them out and write again."""
    while True:
        try:
            counts = write()
        except (duckdb.Error, pa.ArrowException):
            if not catalog.reopen_without_damaged(closely=True):
                raise
        else:
            if not catalog.reopen_without_damaged():
                return counts


def _statements(catalog: Catalog, sweeps: Sequence[str]) -> dict[str, str]:
    for sweep in sweeps:
        catalog.require_sweep(sweep)
    names = ", ".join(f"'{name}'" for name in sweeps or catalog.sweeps) or "''"  # names of sweeps have no quotes
    usual = "select * from {view} where sweep in ({names})"
    return {view: WITHOUT_SWEEP.get(view, usual).format(view=view, names=names) for view in VIEWS}


def _place(path: Path) -> Path:
    """Return where an export is to lie: the path without links, of which none was put there by another user."""
    try:
        return real_place(path)
    except OSError as problem:
        raise _unwritable(path, problem) from problem


def _unwritable(path: Path, problem: OSError | duckdb.Error) -> InputError:
    reason = getattr(problem, "strerror", None) or str(problem).splitlines()[0]
    return InputError(f"cannot write {path}: {reason}; name another place.")


def _is_export(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            tables = {row[0] for row in connection.execute("show tables").fetchall()}
    except duckdb.Error:
        return False
    return NOTE in tables and tables <= {NOTE, *VIEWS}


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; whatever is still there at the end is removed."""
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    try:
        yield beside
    except (OSError, duckdb.IOException) as problem:
        raise _unwritable(path, problem) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for one in (beside, beside.with_name(f"{beside.name}.wal")):
            with suppress(OSError):
                one.unlink(missing_ok=True)


def _exchange(new: Path, folder: Path) -> None:
    """Replace a folder, if there is one, by another."""
    old = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.old"
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
