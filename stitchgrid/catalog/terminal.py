"""A table for a terminal: no wider than the terminal, one line per row, constant columns only once, below the rows."""

import json
import re
from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any

import pyarrow as pa
from rich.cells import cell_len, chop_cells

from stitchgrid.printable import indented, printable

GAP = "  "
WIDE_GAP = "   "
RULE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
ROWS = 40  # most lines that are shown, unless all are asked for
RECORDS = 10  # most records, for rows with more columns than fit in a line
LOOKED_AT = 20_000  # most rows of a table in which constant columns are looked for
FEWEST = 3  # fewest columns of a line
NARROWEST = 8  # fewest characters to which a text is cut
LEGIBLE = 13  # the same, where columns can be left out instead
DIGEST = re.compile(r"[0-9a-f]{16,64}")
DIGEST_LETTERS = 8
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

Texts = list[str]  # the values of one column as texts, from the first row to the last


def terminal_table(table: pa.Table, as_text: Callable[[Any], str], *, width: int, every: bool = False) -> str:
    """Return a table as lines of at most `width` columns of a terminal.

    Constant columns are listed below the rows. JSON is shortened to the keys in which rows differ, a digest to its
    beginning. Text that does not fit is cut; rows with more columns than fit are shown as records.

    Args:
        table: The rows.
        as_text: Returns a value as text.
        width: Columns of the terminal.
        every: Whether to show all rows, instead of the first 40 (or 10 records).
    """
    num_rows = table.num_rows
    is_whole = num_rows <= LOOKED_AT
    looked_at = table if is_whole or every else table.slice(0, ROWS)
    names = [printable(name) for name in table.column_names]
    whole = [[as_text(value) for value in column.to_pylist()] for column in looked_at.columns]
    same = {k for k, column in enumerate(whole) if is_whole and num_rows > 1 and len(set(column)) == 1}
    texts = list(map(_shortened, whole))
    kept = [k for k in range(len(names)) if k not in same] or list(range(len(names)))
    numbers = [is_number(table.schema.field(k).type) for k in kept]
    heads, columns = [names[k] for k in kept], [texts[k] for k in kept]
    sizes, num_fitting = _sizes(heads, columns, numbers, width), len(heads)
    has_lines = num_rows == 1 and any("\n" in column[0] for column in columns)
    if sizes is None and num_rows > RECORDS:
        sizes, num_fitting = _leading_sizes(heads, columns, numbers, width)
    if sizes is None or has_lines:
        shown = num_rows if every else min(num_rows, RECORDS)
        lines = _as_records(heads, columns, shown, width)
    else:
        shown = num_rows if every else min(num_rows, ROWS)
        lines = _as_lines(heads, columns[:num_fitting], numbers, sizes, shown)
    if num_fitting < len(heads):
        more = ", ".join(heads[num_fitting:])
        lines += ["", *wrap(f"More columns, in a wider terminal, records (limit 10) or a file: {more}", width)]
    told = [f"{names[k]} {texts[k][0]}" for k in sorted(same) if k not in kept]
    if told:
        lines += ["", *(_cut(line, width) for line in wrap(f"In all rows: {'; '.join(told)}", width))]
    return "\n".join([*lines, "", *wrap(_count(shown, num_rows), width), ""])


def whole_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Return the lines of all rows, with nothing cut: a row has as many lines as its longest cell.

    Args:
        heads: The names of the columns.
        rows: For each row, a text for each column.
        right: For each column, whether its texts are aligned to the right.
    """
    cells = [[_split(text) for text in row] for row in (heads, *rows)]
    num_heads = max(map(len, cells[0]), default=0)
    cells[0] = [[""] * (num_heads - len(cell)) + cell for cell in cells[0]]
    sizes = [max(cell_len(line) for cell in column for line in cell) for column in zip(*cells, strict=True)]
    lines = [
        WIDE_GAP.join(
            _padded(cell[k] if k < len(cell) else "", size, right=is_right)
            for cell, size, is_right in zip(row, sizes, right, strict=True)
        ).rstrip()
        for row in cells
        for k in range(max(map(len, row), default=0))
    ]
    rule = RULE * cell_len(WIDE_GAP.join(" " * size for size in sizes))
    return [*lines[:num_heads], rule, *lines[num_heads:]]


def _split(text: str) -> list[str]:
    return [line.expandtabs() for line in text.split("\n")]


def _count(shown: int, num_rows: int) -> str:
    if shown == num_rows:
        return f"({num_rows:,} row{'' if num_rows == 1 else 's'})"
    return f"({shown} of {num_rows:,} rows; --all shows all of them, --out FILE.csv writes them to a file)"


def _shortened(texts: Texts) -> Texts:
    """Return the texts of a column, shorter: JSON objects without the keys that all share, digests' first letters."""
    if all(DIGEST.fullmatch(text) for text in texts):
        different = len(set(texts))
        letters = next(n for n in range(DIGEST_LETTERS, 65) if len({text[:n] for text in texts}) == different)
        return [text[:letters] for text in texts]
    objects = [_object(text) for text in texts] if len(set(texts)) > 1 else []
    if not objects or any(one is None for one in objects):
        return texts
    keys = list(dict.fromkeys(key for one in objects if one is not None for key in one))
    told = [{key: json.dumps(one[key]) for key in keys if key in one} for one in objects if one is not None]
    differing = [key for key in keys if len({one.get(key) for one in told}) > 1]
    return [", ".join(f"{key}={one[key]}" for key in differing if key in one) or "{}" for one in told]


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _sizes(
    heads: Texts, columns: Sequence[Texts], numbers: Sequence[bool], width: int, narrowest: int = NARROWEST
) -> list[int] | None:
    """Return the width of each column; None if they do not fit even with all texts cut."""
    longest = [max([0, *map(cell_len, column)]) for column in columns]
    whole = [max(cell_len(head), size) for head, size in zip(heads, longest, strict=True)]
    least = [
        size if number else min(max(size, min(cell_len(head), NARROWEST)), narrowest)
        for size, number, head in zip(longest, numbers, heads, strict=True)
    ]
    left = width - len(GAP) * (len(heads) - 1)
    for most in range(max(whole, default=0), 0, -1):
        sizes = [max(small, min(size, most)) for small, size in zip(least, whole, strict=True)]
        if sum(sizes) <= left:
            return sizes
    return None


def _leading_sizes(
    heads: Texts, columns: Sequence[Texts], numbers: Sequence[bool], width: int
) -> tuple[list[int] | None, int]:
    """Return the widths of as many leading columns as fit, and their number; None and all if fewer than FEWEST fit."""
    for num in range(len(heads) - 1, FEWEST - 1, -1):
        if (sizes := _sizes(heads[:num], columns[:num], numbers[:num], width, LEGIBLE)) is not None:
            return sizes, num
    return None, len(heads)


def _as_lines(
    heads: Texts, columns: Sequence[Texts], numbers: Sequence[bool], sizes: Sequence[int], shown: int
) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        fitted = (
            _padded(_cut(_one_line(cell), size), size, right=right)
            for cell, size, right in zip(cells, sizes, numbers, strict=False)
        )
        return GAP.join(fitted).rstrip()

    rows = [line([column[k] for column in columns]) for k in range(shown)]
    return [line(heads), GAP.join("-" * size for size in sizes), *rows]


def _as_records(heads: Texts, columns: Sequence[Texts], shown: int, width: int) -> list[str]:
    longest = min(max(map(cell_len, heads), default=0), max(NARROWEST, width // 3))
    lines: list[str] = []
    for row in range(shown):
        lines += [""] * bool(row)
        for head, column in zip(heads, columns, strict=True):
            first, *more = indented(column[row]).split("\n")
            name = _padded(_cut(head, longest), longest, right=False)
            lines += [_cut(f"{name}{GAP}{first}", width), *(_cut(line, width) for line in more)]
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()) if "\n" in text else text


def _cut(text: str, size: int) -> str:
    """Return a text of at most `size` columns; if it is longer, its middle is cut, since names differ at their ends."""
    if cell_len(text) <= size:
        return text
    half = max(0, (size - 1) // 2)
    start, end = _first(text, size - 1 - half), _first(text[::-1], half)[::-1]
    return f"{start}{ELLIPSIS}{end}"


def _first(text: str, size: int) -> str:
    return chop_cells(text, size)[0] if size > 0 and text else ""


def _padded(text: str, size: int, *, right: bool) -> str:
    space = " " * max(0, size - cell_len(text))
    return space + text if right else text + space


def is_number(kind: pa.DataType) -> bool:
    """Return whether values of a type are numbers, which a table aligns to the right."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
