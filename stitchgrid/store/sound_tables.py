"""Parquet files of a store: looked at before their data are read, and again before anybody counts on what they say.

The footer says which columns there are, of which types, and how much memory they take; what asks for more than a
file of a store needs is not read. Then texts are UTF-8, and nothing is NULL that every reader takes for granted. A
file that promises less than its pages hold is refused by none of this; its digest tells only that it is whole.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.duplicates import as_numbers
from stitchgrid.store.limits import GB, KB, MB
from stitchgrid.store.schemas import REQUIRED, TEXT, TEXTS, text_columns

MOST_ROWS = 16_000_000  # of one file
MOST_GROUPS = 100_000
MOST_TEXTS = 4 * MOST_ROWS  # in the lists of one column
SEEN: deque[tuple[Any, Any, "Shape"]] = deque(maxlen=16)  # schemas of footers; most files of a store share one
UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)


def most_bytes(num_rows: int) -> int:
    """Return how many bytes so many rows of a store take at most, as a file, decoded, or in one column."""
    return min(64 * MB + 4 * KB * num_rows, 1 * GB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the schema in a footer comes to."""

    names: tuple[str, ...]  # of columns
    leaves: tuple[tuple[str, str, int], ...]  # of texts: column, path below it, position


def read_table(data: bytes, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return these columns of a Parquet file that has this schema, or those of it that are there.

    Texts are dictionaries but for `cell_id`.

    Raises:
        DamagedFileError: If it is not a Parquet file of this schema within the limits.
    """
    return sound(read_unchecked(data, schema, columns), schema)


def read_unchecked(data: bytes, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return columns of a Parquet file whose footer was looked at, and whose content `sound` is still to look at."""
    file, wanted = open_table(data, schema, columns)
    try:
        table = file.read(columns=wanted, use_threads=False)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem
    plain = [name for name in wanted if name == "cell_id" or schema.field(name).type == TEXTS]
    is_packed = any(table[name].type != schema.field(name).type for name in plain)
    return sound(table, schema) if is_packed else table  # before anybody writes its texts out


def open_table(
    data: bytes, schema: pa.Schema, columns: Sequence[str] | None = None
) -> tuple[pq.ParquetFile, list[str]]:
    """Return a Parquet file to read rows from, and which of the columns it has; what is read goes through `sound`.

    Reads from a `BufferReader`: pyarrow aborts the interpreter's exit after reading from a Python file object.

    Raises:
        DamagedFileError: If it is not a Parquet file of this schema within the limits.
    """
    footer, shape = read_footer(data, schema)
    names = frozenset(shape.names)
    wanted = [name for name in columns or schema.names if name in names]
    texts = [name for name in text_columns(schema) if name in wanted]
    packed = _packed(footer, shape, [name for name in wanted if name not in texts])
    try:
        return pq.ParquetFile(pa.BufferReader(data), metadata=footer, read_dictionary=[*texts, *packed]), wanted
    except UNREADABLE as problem:
        raise unreadable(problem) from problem


def sound(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return what was read of a file of this schema; errors as those of `check_content`."""
    check_content(table, schema)
    for index, name in enumerate(table.column_names):
        kind = schema.field(name).type
        if (name == "cell_id" or kind == TEXTS) and table[name].type != kind:
            table = table.set_column(index, pa.field(name, kind), table[name].cast(kind))
    return table


def read_footer(data: bytes, schema: pa.Schema) -> tuple[pq.FileMetaData, Shape]:
    """Return the footer of a Parquet file whose columns are of these types and which asks for no more than its share.

    Raises:
        DamagedFileError: If it is not such a file.
    """
    if not data:
        raise DamagedFileError("empty file")
    try:
        footer = pq.read_metadata(pa.BufferReader(data))
        shape = _shape(footer, schema)
    except UNREADABLE as problem:
        raise unreadable(problem) from problem
    _check_sizes(footer)
    return footer, shape


def _shape(footer: pq.FileMetaData, schema: pa.Schema) -> Shape:
    """Return the shape of a file that has this schema; one that was seen lately is not looked at again."""
    wanted = id(schema), (footer.metadata or {}).get(b"ARROW:schema")
    for seen, known, shape in SEEN:
        if seen == wanted and known.equals(footer.schema):
            return shape
    names = footer.schema.to_arrow_schema().names
    _check_types(footer.schema.to_arrow_schema(), schema)
    columns = [footer.schema.column(number) for number in range(footer.num_columns)]
    leaves = [(one.path, number) for number, one in enumerate(columns) if one.physical_type == "BYTE_ARRAY"]
    shape = Shape(names=tuple(names), leaves=tuple((path.partition(".")[0], path, at) for path, at in leaves))
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
    """Return the type of what a column holds: data files of snapshots say that their texts were dictionaries."""
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


def _packed(footer: pq.FileMetaData, shape: Shape, columns: Sequence[str]) -> list[str]:
    """Return the paths of texts that are not read as dictionaries and whose file has them as such.

    A file of a few kilobytes may repeat one long text a million times.
    """
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    found = []
    for column, path, at in shape.leaves:
        if column not in columns:
            continue
        chunks = [group.column(at) for group in groups]
        num_texts = sum(chunk.num_values for chunk in chunks)
        if not 0 <= num_texts <= MOST_TEXTS:
            raise DamagedFileError(f"has {num_texts} texts in {path}; no file of a store has more than {MOST_TEXTS}")
        longest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
        if num_texts * longest > most_bytes(0) and any(not _is_plain(chunk) for chunk in chunks):
            found.append(path)
    return found


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    return not chunk.has_dictionary_page and set(chunk.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"}


def check_content(table: pa.Table, schema: pa.Schema) -> None:
    """Look at what a table of this schema says.

    Raises:
        DamagedFileError: If a text is not UTF-8 or too long, or something is NULL that no reader expects to be.
    """
    try:
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as problem:
        raise DamagedFileError(f"holds what is no text or no list ({str(problem).splitlines()[0][:200]})") from problem
    for name in table.column_names:
        column, kind = table[name], schema.field(name).type
        if column.null_count and name in REQUIRED:
            raise DamagedFileError(f"has no {name} in {column.null_count} rows")
        if kind == TEXTS:
            column = pc.list_flatten(column)
            if column.null_count:
                raise DamagedFileError(f"has no text in {column.null_count} places of {name}")
        if kind in (TEXT, TEXTS):
            _check_length(name, column, most_bytes(table.num_rows))


def _check_length(name: str, column: pa.ChunkedArray, most: int) -> None:
    """Refuse texts that would together be longer than `most` if every one of them were written out."""
    total = 0
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            total += chunk.nbytes
        elif chunk.dictionary.nbytes * len(chunk) <= most_bytes(0):
            continue
        else:
            lengths = as_numbers(pc.fill_null(pc.binary_length(chunk.dictionary), 0)).astype(np.int64)
            total += int(lengths[as_numbers(chunk.indices.drop_null())].sum())
    if total > most:
        raise DamagedFileError(f"has {total} bytes of text in {name}; its rows have no more than {most}")


def unreadable(problem: BaseException) -> DamagedFileError:
    """Return what to say of a file that pyarrow cannot read."""
    text = str(problem) or type(problem).__name__
    return DamagedFileError(f"not readable as Parquet ({text.splitlines()[0][:300]})")
