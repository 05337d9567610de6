"""Parts: the rows of one shard in one Parquet file that is complete or not there at all."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stitchgrid.errors import StoreError
from stitchgrid.records import Row
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.duplicates import encoded
from stitchgrid.store.files import Files
from stitchgrid.store.layout import PARTS, PartName, StoreLayout, content_digest
from stitchgrid.store.limits import MB
from stitchgrid.store.schemas import PART, lost_columns, no_rows, with_nulls
from stitchgrid.store.table_checks import check_content, is_readable, read_unchecked, sound

AT_ONCE = 256  # parts whose bytes are held at a time while threads read them
CHECKED_AT_ONCE = 32  # parts all of whose columns are in memory
BYTES_AT_ONCE = 64 * MB
LONGEST_PART = 512 * MB
MOST_TABLE = 256 * MB  # bytes in memory of the rows of one new file; readers accept more, and may join columns to it
MOST_PART_ROWS = 2_000_000  # that one part holds: their columns are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRows:
    """Rows of all sound parts; text columns are dictionaries."""

    table: pa.Table
    damaged: tuple[Damage, ...]


def parquet_bytes(table: pa.Table, *, row_group_size: int | None = None, compression: str = "zstd") -> bytes:
    """Return a table as a Parquet file, built in memory: pyarrow's writers commit short files when interrupted."""
    sink = pa.BufferOutputStream()
    repeating = [field.name for field in table.schema if field.name != "cell_id" and not pa.types.is_nested(field.type)]
    pq.write_table(table, sink, compression=compression, row_group_size=row_group_size, use_dictionary=repeating)
    return bytes(sink.getvalue())


def part_bytes(table: pa.Table) -> bytes:
    """Return a table as the file of a part, in Snappy: small files are read twice as fast as in Zstandard."""
    return parquet_bytes(table, compression="snappy")


def rows_of_file(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Return these columns of a file of rows, text columns as dictionaries; raises what `read_table` raises."""
    return sound(with_all(read_unchecked(data, PART, columns), columns), PART)


def with_all(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return these columns in this order; columns that are newer than the version of its schema are NULL."""
    present = frozenset(table.column_names)
    missing = [name for name in columns if name not in present]
    if lost := lost_columns(missing, present, table.schema.metadata):
        raise DamagedFileError(f"lacks the columns {lost}")
    for name in ("cell_id", "status"):  # a cast to the schema would fail on these
        if name in present and name in columns and (num := table[name].null_count):
            raise DamagedFileError(f"has no {name} in {num} rows")
    table, usual = with_nulls(table, PART, missing).select(list(columns)), no_rows(columns).schema
    may_be_null = [field.with_nullable(usual.field(field.name).nullable) for field in table.schema]
    # Whether or not the file says that columns may be NULL.
    return table.cast(pa.schema(may_be_null, metadata=table.schema.metadata))


def part_table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table with the schema of a part."""
    return pa.table({name: list(map(attrgetter(name), rows)) for name in PART.names}, schema=PART)


def readable_files(table: pa.Table, to_bytes: Callable[[pa.Table], bytes]) -> Iterator[tuple[bytes, pa.Table]]:
    """Yield the files that rows of results become, and the rows of each: one file, unless readers would refuse it.

    Rows may hold errors of thousands of letters, and lists of thousands of numbers.
    """
    if table.num_rows <= 1 or table.nbytes <= MOST_TABLE:
        data = to_bytes(table)
        if table.num_rows <= 1 or is_readable(data, table, PART):
            yield data, table
            return
    middle = table.num_rows // 2
    for half in (table.slice(0, middle), table.slice(middle)):
        yield from readable_files(_with_own_dictionaries(half), to_bytes)


def _with_own_dictionaries(table: pa.Table) -> pa.Table:
    """Return a slice of a table whose dictionaries have its own texts alone."""
    for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if pa.types.is_dictionary(column.type):
            found = encoded(column)
            used = pc.unique(found.indices).drop_null()
            indices = pc.index_in(found.indices, value_set=used).cast(pa.int32())
            own = pa.DictionaryArray.from_arrays(indices, found.dictionary.take(used))
            table = table.set_column(index, name, own)
    return table.combine_chunks()


class Parts:
    """All parts of a store."""

    def __init__(self, files: Files):
        self.files = files

    def write(self, shard_id: str, rows: Sequence[Row]) -> str:
        """Write the rows of a shard; return the name of the part, or of the last part if the rows need several.

        Writing the same rows twice makes the same file.
        """
        assert rows, "a part holds at least one row"
        name = None
        for start in range(0, len(rows), MOST_PART_ROWS):
            for data, table in readable_files(part_table(rows[start : start + MOST_PART_ROWS]), part_bytes):
                name = PartName(shard=shard_id, digest=content_digest(data), num_rows=table.num_rows)
                # Replaces rather than skips: if a damaged file has the name, this repairs it.
                self.files.replace(StoreLayout.part(name), data)
        return str(name)

    def names(self) -> list[str]:
        """Return the names of the parts that count, sound or not."""
        return [name for name in self.files.names(PARTS) if name.endswith(".parquet")]

    def read(self, columns: Sequence[str], names: Sequence[str]) -> PartRows:
        """Return these columns of the parts of these names, and the damaged parts that were left out."""
        damaged: list[Damage] = []
        found = list(self._whole(columns, names, damaged))
        table = _sound_together(columns, found, damaged)
        return PartRows(table=table, damaged=tuple(damaged))

    def problems(self, names: Sequence[str]) -> Iterator[Damage]:
        """Yield what is wrong with the parts of these names, every column of which is read."""
        for start in range(0, len(names), CHECKED_AT_ONCE):
            damaged: list[Damage] = []
            found = list(self._whole(PART.names, names[start : start + CHECKED_AT_ONCE], damaged))
            _sound_together(PART.names, found, damaged)
            yield from sorted(damaged, key=attrgetter("file"))

    def _whole(
        self, columns: Sequence[str], names: Sequence[str], damaged: list[Damage]
    ) -> Iterator[tuple[str, pa.Table]]:
        """Yield the parts whose bytes match their names, with their names; their content is not checked yet."""
        schema = no_rows(columns).schema

        def rows_or_damage(name: str, data: bytes | StoreError) -> pa.Table | Damage:
            try:
                table = _whole_rows(name, data, columns)
                if table.schema.types == schema.types:  # faster than a cast
                    return pa.Table.from_arrays(table.columns, schema=schema)
                return table.cast(schema)
            except (DamagedFileError, StoreError, pa.ArrowException) as problem:
                return Damage(file=f"{PARTS}/{name}", reason=str(problem))

        with ThreadPoolExecutor(pa.cpu_count()) as threads:
            for some in self._in_batches(names):
                for (name, _), found in zip(some, threads.map(rows_or_damage, *zip(*some, strict=True)), strict=True):
                    if isinstance(found, Damage):
                        damaged.append(found)
                    else:
                        yield name, found

    def _in_batches(self, names: Sequence[str]) -> Iterator[list[tuple[str, bytes | StoreError]]]:
        """Yield parts with their bytes, as many at a time as memory is meant to hold."""
        batch: list[tuple[str, bytes | StoreError]] = []
        held = 0
        contents = self.files.read_many((f"{PARTS}/{name}" for name in names), LONGEST_PART)
        for name, data in zip(names, contents, strict=True):
            batch.append((name, data))
            held += len(data) if isinstance(data, bytes) else 0
            if len(batch) == AT_ONCE or held > BYTES_AT_ONCE:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch


def _together(columns: Sequence[str], parts: Iterable[tuple[str, pa.Table]]) -> pa.Table:
    return pa.concat_tables([no_rows(columns), *(table for _, table in parts)]).unify_dictionaries().combine_chunks()


def _sound_together(columns: Sequence[str], parts: Sequence[tuple[str, pa.Table]], damaged: list[Damage]) -> pa.Table:
    """Return the rows of the parts whose content is sound."""
    table = _together(columns, parts)
    try:
        check_content(table, PART, [part.num_rows for _, part in parts])  # all parts together: a thousand times as fast
    except DamagedFileError:
        return _together(columns, _sound(parts, damaged))
    return table


def _sound(parts: Iterable[tuple[str, pa.Table]], damaged: list[Damage]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the parts whose content is sound."""
    for name, table in parts:
        try:
            check_content(table, PART)
        except DamagedFileError as problem:
            damaged.append(Damage(file=f"{PARTS}/{name}", reason=str(problem)))
        else:
            yield name, table


def _whole_rows(name: str, data: bytes | StoreError, columns: Sequence[str]) -> pa.Table:
    promise = PartName.parse(name)
    if promise is None:
        raise DamagedFileError("not the name of a part")
    if isinstance(data, StoreError):
        raise data
    if not data:
        raise DamagedFileError("empty file")
    if promise.num_rows > MOST_PART_ROWS:
        raise DamagedFileError(f"promises {promise.num_rows} rows; no part has more than {MOST_PART_ROWS}")
    if content_digest(data) != promise.digest:
        raise DamagedFileError(f"content differs from the digest in its name ({len(data)} bytes are there)")
    table = with_all(read_unchecked(data, PART, columns), columns)
    if table.num_rows != promise.num_rows:
        raise DamagedFileError(f"holds {table.num_rows} rows, its name promises {promise.num_rows}")
    return table
