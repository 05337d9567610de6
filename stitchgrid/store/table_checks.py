"""Parquet files of a store: checked before their data are read, and again before anything relies on their content.

The footer says which columns a file has, their types, and how much memory they take; a file that asks for more than a
file of a store needs is not read. After reading, texts must be UTF-8, and columns that every reader needs must not be
NULL. These checks do not find a file whose pages hold more than its footer says; its digest only shows that it is
complete.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.duplicates import Numbers, as_numbers
from stitchgrid.store.limits import GB, KB, LONGEST_NAME_IN_TABLES, MB
from stitchgrid.store.plan_checks import check_values
from stitchgrid.store.schemas import NAMES, REQUIRED, TEXT, TEXTS, text_columns

MOST_ROWS = 16_000_000  # of one file
MOST_GROUPS = 100_000
FEW_GROUPS = 4  # groups of rows, which one thread reads faster than several threads do
MOST_TEXTS = 4 * MOST_ROWS  # in the lists of one column
LONGEST_TEXT = 1 * MB  # bytes; errors, the longest texts, have thousands
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}  # bytes of a number
SEEN: deque[tuple[Any, Any, "SchemaShape"]] = deque(maxlen=16)  # schemas of footers; most files of a store share one
UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)


def most_bytes(num_rows: int) -> int:
    """Return how many bytes this number of rows takes at most, as a file, decoded, or in one column.

    A row that holds 10,000 values of shuffled images has 40 kB of them.
    """
    return min(64 * MB + 64 * KB * num_rows, 1 * GB)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaShape:
    """The columns of the schema in a footer."""

    names: tuple[str, ...]  # of columns
    dictionaries: tuple[str, ...]  # columns that say they were dictionaries when they were written
    leaves: tuple[tuple[str, str, int], ...]  # of texts: column, path below it, position
    numbers: tuple[tuple[str, str, int, int], ...]  # in lists: column, path below it, position, bytes of each


def read_table(data: bytes, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return these columns of a Parquet file with this schema, by default all; columns that it lacks are left out.

    Texts are dictionaries, except `cell_id`.

    Raises:
        DamagedFileError: If it is not a Parquet file of this schema within the limits.
    """
    return sound(read_unchecked(data, schema, columns), schema)


def read_unchecked(data: bytes, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return columns of a Parquet file; its footer is checked, its content is still to be checked by `sound`."""
    file, wanted, is_packed = _opened(data, schema, columns)
    try:
        table = file.read(columns=wanted, use_threads=file.num_row_groups > FEW_GROUPS)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem
    return sound(table, schema) if is_packed else table  # before its texts are decoded


def is_readable(data: bytes, table: pa.Table, schema: pa.Schema) -> bool:
    """Return whether readers will accept a file that was made from a table, whose rows may have any size."""
    try:
        check_readable(data, table, schema)
    except DamagedFileError:
        return False
    return True


def check_readable(data: bytes, table: pa.Table, schema: pa.Schema) -> None:
    """Raise a DamagedFileError if readers would refuse a file that was made from a table."""
    if len(data) > (most := most_bytes(table.num_rows)):
        raise DamagedFileError(f"has {len(data)} bytes; {table.num_rows} rows take no more than {most}")
    _opened(data, schema, None)
    check_content(table, schema)


def open_table(
    data: bytes, schema: pa.Schema, columns: Sequence[str] | None = None
) -> tuple[pq.ParquetFile, list[str]]:
    """Return a Parquet file to read rows from, and the columns it has; rows that are read have to pass `sound`.

    Reads from a `BufferReader`: pyarrow aborts the interpreter's exit after reading from a Python file object.

    Raises:
        DamagedFileError: If it is not a Parquet file of this schema within the limits.
    """
    return _opened(data, schema, columns)[:2]


def _opened(data: bytes, schema: pa.Schema, columns: Sequence[str] | None) -> tuple[pq.ParquetFile, list[str], bool]:
    """Return what `open_table` does, and whether texts are read as dictionaries that the schema has as plain texts."""
    expected = [name for name in text_columns(schema) if columns is None or name in columns]
    try:
        file = _file(data, expected)
    except KeyError:  # it does not have all of them
        file = _file(data, [])
    footer = file.metadata
    shape = _looked_at(footer, schema)
    wanted = [name for name in columns or schema.names if name in shape.names]
    texts = [name for name in expected if name in shape.names]
    plain = frozenset(wanted).difference(texts)
    _check_lists(file, shape, wanted)
    packed = _packed(file, shape, plain)
    if packed or len(texts) < len(expected):
        file = _file(data, [*texts, *packed], footer)
    return file, wanted, bool(packed) or not plain.isdisjoint(shape.dictionaries)


def _file(data: bytes, dictionaries: Sequence[str], footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Return a file of which only the footer is read; a KeyError if it lacks one of the columns for dictionaries."""
    if not data:
        raise DamagedFileError("empty file")
    try:
        return pq.ParquetFile(pa.BufferReader(data), metadata=footer, read_dictionary=dictionaries)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem


def sound(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table that was read from a file of this schema, once checked; raises what `check_content` raises."""
    check_content(table, schema)
    for index, name in enumerate(table.column_names):
        kind = schema.field(name).type
        if (name == "cell_id" or kind == TEXTS) and table[name].type != kind:
            table = table.set_column(index, pa.field(name, kind), table[name].cast(kind))
    return table


def read_footer(data: bytes, schema: pa.Schema) -> tuple[pq.FileMetaData, SchemaShape]:
    """Return the footer of a Parquet file, and the columns it has.

    Raises:
        DamagedFileError: If its columns have other types, or take more memory than its rows may.
    """
    file = _file(data, [])
    shape = _looked_at(file.metadata, schema)
    _check_chunks(file, range(file.metadata.num_columns))
    return file.metadata, shape


def _looked_at(footer: pq.FileMetaData, schema: pa.Schema) -> SchemaShape:
    try:
        shape = _shape(footer, schema)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem
    _check_sizes(footer)
    return shape


def _shape(footer: pq.FileMetaData, schema: pa.Schema) -> SchemaShape:
    """Return the columns of a file that has this schema; one that was seen recently is not checked again."""
    wanted = id(schema), (footer.metadata or {}).get(b"ARROW:schema")
    for seen, known, shape in SEEN:
        if seen == wanted and known.equals(footer.schema):
            return shape
    found = footer.schema.to_arrow_schema()
    _check_types(found, schema)
    columns = [footer.schema.column(number) for number in range(footer.num_columns)]
    leaves = [(one.path, number) for number, one in enumerate(columns) if one.physical_type == "BYTE_ARRAY"]
    numbers = [
        (one.path.partition(".")[0], one.path, number, WIDTHS.get(one.physical_type, 16))
        for number, one in enumerate(columns)
        if one.physical_type != "BYTE_ARRAY" and one.max_repetition_level
    ]
    shape = SchemaShape(
        names=tuple(found.names),
        dictionaries=tuple(field.name for field in found if pa.types.is_dictionary(field.type)),
        leaves=tuple((path.partition(".")[0], path, at) for path, at in leaves),
        numbers=tuple(numbers),
    )
    SEEN.append((wanted, footer.schema, shape))
    return shape


def _check_types(found: pa.Schema, schema: pa.Schema) -> None:
    names = found.names
    if len(set(names)) < len(names):
        raise DamagedFileError(f"has the columns {sorted({name for name in names if names.count(name) > 1})} twice")
    for field in schema:
        if field.name in names and _plain(kind := found.field(field.name).type) != field.type:
            raise DamagedFileError(f"its column {field.name!r} is of type {kind}, not {field.type}")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values: data files of snapshots say that their texts were dictionaries."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_sizes(footer: pq.FileMetaData) -> None:
    if not 0 <= footer.num_rows <= MOST_ROWS or footer.num_row_groups > MOST_GROUPS:
        raise DamagedFileError(
            f"promises {footer.num_rows} rows in {footer.num_row_groups} groups; no file of a store has more than "
            f"{MOST_ROWS} in {MOST_GROUPS}"
        )
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    if sum(group.num_rows for group in groups) != footer.num_rows or any(group.num_rows < 0 for group in groups):
        raise DamagedFileError("its row groups do not have the rows that its footer promises")
    size = sum(abs(group.total_byte_size) for group in groups)
    if size > (most := most_bytes(footer.num_rows)):
        raise DamagedFileError(f"would take {size} bytes of memory; {footer.num_rows} rows take no more than {most}")


def _packed(file: pq.ParquetFile, shape: SchemaShape, columns: Container[str]) -> list[str]:
    """Return the paths of texts that the file has as dictionaries although they are not read as such.

    A file of a few kilobytes may repeat one long text a million times.
    """
    leaves = [(path, at) for column, path, at in shape.leaves if column in columns]
    _check_chunks(file, [at for _, at in leaves])
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    found = []
    for path, at in leaves:
        chunks = [group.column(at) for group in groups]
        num_texts = sum(chunk.num_values for chunk in chunks)
        if not 0 <= num_texts <= MOST_TEXTS:
            raise DamagedFileError(f"has {num_texts} texts in {path}; no file of a store has more than {MOST_TEXTS}")
        longest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
        if num_texts * longest > most_bytes(0) and any(not _is_plain(chunk) for chunk in chunks):
            found.append(path)
    return found


def _check_lists(file: pq.ParquetFile, shape: SchemaShape, columns: Container[str]) -> None:
    """Refuse lists of more numbers than the rows of a file may have: a few bytes may stand for a million equal ones."""
    lists = [(path, at, width) for column, path, at, width in shape.numbers if column in columns]
    _check_chunks(file, [at for _, at, _ in lists])
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    for path, at, width in lists:
        size = width * sum(max(0, group.column(at).num_values) for group in groups)
        if size > (most := most_bytes(file.metadata.num_rows)):
            raise DamagedFileError(f"has {size} bytes of numbers in {path}; its rows have no more than {most}")


def _check_chunks(file: pq.ParquetFile, leaves: Sequence[int]) -> None:
    """Refuse what the footer says about these columns where Arrow refuses it.

    If pyarrow is asked for one column of a row group, it ends the process if something in it is wrong, such as sizes of
    histograms. A reader that is first asked for no rows raises an exception instead, and decodes nothing.
    """
    try:
        for number in range(file.num_row_groups if leaves else 0):
            deque(file.reader.iter_batches(0, [number], leaves, use_threads=False), maxlen=0)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    return not chunk.has_dictionary_page and set(chunk.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"}


def check_content(table: pa.Table, schema: pa.Schema, parts: Sequence[int] | None = None) -> None:
    """Check the content of a table; `parts` are the numbers of rows of the files it came from, by default one file.

    Raises:
        DamagedFileError: If a text is not UTF-8 or too long, a required value is NULL, or a value is not allowed in its
            column.
    """
    try:
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as problem:
        raise DamagedFileError(f"holds an invalid text or list ({str(problem).splitlines()[0][:200]})") from problem
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = schema.field(name).type
        if column.null_count and name in REQUIRED:
            raise DamagedFileError(f"has no {name} in {column.null_count} rows")
        texts = column
        if kind == TEXTS:
            texts = pc.list_flatten(column)
            if texts.null_count:
                raise DamagedFileError(f"has no text in {texts.null_count} places of {name}")
        if kind in (TEXT, TEXTS) and (longest := _longest(texts, most := longest_text(name))) > most:
            raise DamagedFileError(f"has a text of {longest} bytes in {name}; none has more than {most}")
        if kind in (TEXT, TEXTS) and sum(map(_most_written, texts.chunks)) > most_bytes(0):
            _check_length(name, column, texts, parts or [table.num_rows])
    if {"status", "metric"} <= set(table.column_names) and table["metric"].null_count:
        is_value = pc.equal(table["status"].cast(TEXT), "done")
        if lost := pc.sum(pc.and_(is_value, pc.is_null(table["metric"]))).as_py():
            raise DamagedFileError(f"has no metric in {lost} rows of values")
    check_values(table)


def longest_text(column: str) -> int:
    """Return how many bytes a text of a column has at most."""
    return LONGEST_NAME_IN_TABLES if column in NAMES else LONGEST_TEXT


def _longest(texts: pa.ChunkedArray, most: int) -> int:
    """Return how many bytes the longest of some texts has; the size of all texts, if that is at most `most`."""
    words = (chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk for chunk in texts.chunks)
    found = [one.nbytes if one.nbytes <= most else pc.max(pc.binary_length(one)).as_py() or 0 for one in words]
    return max(found, default=0)


def _most_written(texts: pa.Array) -> int:
    """Return how many bytes texts take at most if each of them is written out."""
    return int(texts.dictionary.nbytes * len(texts) if pa.types.is_dictionary(texts.type) else texts.nbytes)


def _check_length(name: str, column: pa.ChunkedArray, texts: pa.ChunkedArray, parts: Sequence[int]) -> None:
    """Refuse texts that are longer together than their part allows if each of them is written out."""
    for total, num_rows in zip(_written(column, texts, parts), parts, strict=True):
        if total > (most := most_bytes(num_rows)):
            raise DamagedFileError(f"has {total} bytes of text in {name}; its rows have no more than {most}")


def _written(column: pa.ChunkedArray, texts: pa.ChunkedArray, parts: Sequence[int]) -> list[int]:
    """Return how many bytes of text each part has in a column; its texts may be in lists."""
    if len(parts) == 1:
        return [sum(int(_lengths(chunk).sum()) for chunk in texts.chunks)]
    starts = _sums([np.array(parts)])
    if texts is not column:
        starts = _sums([as_numbers(pc.fill_null(pc.list_value_length(column), 0))])[starts]
    found: list[int] = np.diff(_sums(map(_lengths, texts.chunks))[starts]).tolist()
    return found


def _sums(numbers: Iterable[Numbers]) -> Numbers:
    """Return the sum of the first 0, 1, 2, ... of all numbers."""
    return np.concatenate([np.zeros(1, np.int64), *numbers]).cumsum(dtype=np.int64)


def _lengths(texts: pa.Array) -> Numbers:
    """Return how many bytes each text has."""
    if not pa.types.is_dictionary(texts.type):
        return as_numbers(pc.fill_null(pc.binary_length(texts), 0)).astype(np.int64)
    known = as_numbers(pc.fill_null(pc.binary_length(texts.dictionary), 0)).astype(np.int64)
    found: Numbers = np.append(known, 0)[as_numbers(pc.fill_null(texts.indices.cast(pa.int32()), len(known)))]
    return found


def unreadable(problem: BaseException) -> DamagedFileError:
    """Return the error about a file that pyarrow cannot read."""
    text = str(problem) or type(problem).__name__
    return DamagedFileError(f"not readable as Parquet ({text.splitlines()[0][:300]})")
