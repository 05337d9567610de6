"""A table as text for people and for other programs."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stitchgrid.catalog.output_formats import OUTPUT_FORMATS
from stitchgrid.catalog.terminal import is_number, terminal_table, whole_lines
from stitchgrid.errors import QueryError, nearest, one_line
from stitchgrid.printable import as_markdown, in_one_line, indented, printable

NULL_MARK = "-"  # NULL in a table for people; a text that is only a dash is shown in quotes
CRLF = "\r\n"
#: Places where a spreadsheet may see a formula. Where the language of a spreadsheet writes a comma in numbers, a
#: semicolon separates cells, also within quotes. The last four signs are full-width.
FORMULA_STARTS = re.compile('(?:^|(?<=;))(?="*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20])')


def render(table: pa.Table, format: str, *, width: int | None = None, every: bool = False) -> str | bytes:
    """Return the table in one of `OUTPUT_FORMATS`, as text or bytes.

    With `width`, the columns of the reader's terminal, a `table` keeps to that width and shows its first rows, or all
    of them if `every`. Without `width` nothing is cut or left out.

    Raises:
        QueryError: If there is no such format, or it cannot hold a value.
    """
    if format not in OUTPUT_FORMATS:
        raise QueryError(f"no output format {format!r}; {nearest(format, OUTPUT_FORMATS)}.")
    try:
        if format == "table" and width is not None:
            return terminal_table(table, _at_terminal, width=width, every=every)
        return OUTPUT_FORMATS[format].load()(table)
    except (OverflowError, ValueError, RecursionError, NotImplementedError, pa.ArrowException) as problem:
        raise QueryError(
            f"the result cannot be written as {format} ({one_line(problem)}); select the column as text "
            "(column::varchar), or choose another --format."
        ) from problem


def as_table(table: pa.Table) -> str:
    """Return aligned columns with the number of rows."""
    texts = (map(_for_people, row) for row in _rows(table))
    rows = [[indented(first), *others] for first, *others in texts]
    right = [is_number(field.type) for field in table.schema]
    lines = whole_lines([printable(name) for name in table.column_names], rows, right)
    count = f"({table.num_rows} row{'' if table.num_rows == 1 else 's'})"
    return "\n".join([*lines, "", count, ""])


def as_csv(table: pa.Table) -> str:
    """Return CSV with all digits; NULL is empty."""
    return _written(table, str)


def as_spreadsheet(table: pa.Table) -> str:
    """Return CSV in which every text is printable and in one line, and no text is a formula.

    A text that begins like a formula, or goes on like one after a semicolon, gets an apostrophe there.
    """
    return _written(table, lambda text: in_one_line(FORMULA_STARTS.sub("'", text)))


def _written(table: pa.Table, as_cell: Callable[[str], str]) -> str:
    lines: list[str] = []
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")  # so that a lone \r is quoted, too
    writer.writerow(map(as_cell, table.column_names))
    numbers = [is_number(field.type) for field in table.schema]
    for row in _rows(table):
        cells = map(_for_programs, row)
        writer.writerow([cell if number else as_cell(cell) for cell, number in zip(cells, numbers, strict=True)])
    return "".join(f"{line.removesuffix(CRLF)}\n" for line in lines)


def as_json(table: pa.Table) -> str:
    """Return a list of objects, one a line; numbers that JSON cannot write are null."""
    names = table.column_names
    objects = [json.dumps(dict(zip(names, map(_plain, row), strict=True)), ensure_ascii=False) for row in _rows(table)]
    return "[" + ",\n ".join(objects) + "]\n"


def as_markdown_table(table: pa.Table) -> str:
    """Return a table of Markdown, with short values."""
    heads = [_markdown_cell(printable(name)) for name in table.column_names]
    rules = ["---:" if is_number(field.type) else "---" for field in table.schema]
    rows = [[_markdown_cell(_for_people(value)) for value in row] for row in _rows(table)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *rows))


def as_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _rows(table: pa.Table) -> Iterable[tuple[Any, ...]]:
    columns = [column.to_pylist() for column in table.columns]
    return zip(*columns, strict=True) if columns else iter(())


def _for_people(value: Any) -> str:
    """Return a value as short text without control characters."""
    if value is None:
        return NULL_MARK
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_for_people, value))
    text = printable(json.dumps(_plain(value), ensure_ascii=False) if isinstance(value, dict) else str(value))
    return f'"{text}"' if text in {NULL_MARK, ""} else text


def _at_terminal(value: Any) -> str:
    """Return a value as text for the short lines of a terminal: numbers have four digits."""
    if isinstance(value, list):
        return ", ".join(map(_at_terminal, value))
    return f"{value:.4g}" if isinstance(value, float) else _for_people(value)


def _for_programs(value: Any) -> str:
    """Return a value as text, with all its digits; NULL is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return json.dumps(_plain(value), ensure_ascii=False)
    return value.hex() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: numbers that JSON cannot write become null."""
    for kinds, convert in PLAIN:
        if isinstance(value, kinds):
            return convert(value)
    return value


PLAIN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (float, lambda value: value if math.isfinite(value) else None),
    (Decimal, lambda value: int(value) if value == value.to_integral_value() else float(value)),
    ((date, datetime, time), lambda value: value.isoformat()),
    (timedelta, timedelta.total_seconds),
    (bytes, bytes.hex),
    (dict, lambda value: {str(key): _plain(item) for key, item in value.items()}),
    ((list, tuple), lambda value: list(map(_plain, value))),
)


def _markdown_cell(text: str) -> str:
    return as_markdown(text).replace("\n", "<br>")
