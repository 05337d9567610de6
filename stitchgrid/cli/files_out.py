"""How commands write tables and files: to a terminal, to stdout, or atomically to a file."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stitchgrid.catalog.output_formats import format_by_suffix
from stitchgrid.cli.streams import answering
from stitchgrid.paths import named_path, write_whole
from stitchgrid.printable import printable

if TYPE_CHECKING:
    import pyarrow as pa


def is_terminal() -> bool:
    """Return whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def format_of(form: str | None, out: str | None) -> str:
    """Return the format that was asked for, by name or by the suffix of a file.

    >>> format_of(None, "answers.CSV"), format_of("json", "answers.csv"), format_of(None, None)
    ('csv', 'json', 'table')
    """
    return form or format_by_suffix(Path(out or "").suffix).name


def emit(table: "pa.Table", form: str | None, out: str | None, *, every: bool = False) -> None:
    """Write a table to a file or to stdout, in one of the formats; `every` shows all rows at a terminal."""
    from stitchgrid.catalog.formats import render

    width = shutil.get_terminal_size().columns if is_terminal() and out is None else None
    text = render(table, format_of(form, out), width=width, every=every)
    encoding = "utf-8"
    if isinstance(text, str) and out is None and is_terminal():  # in files and pipes, csv and json keep every character
        text, encoding = printable(text), sys.stdout.encoding or encoding
    data = text if isinstance(text, bytes) else text.encode(encoding, "replace")
    if out is not None:
        write_file(named_path(out), data)
    else:
        write_answer(data)


def write_answer(data: bytes) -> None:
    """Write bytes to stdout.

    Raises:
        OutputError: If stdout cannot be written.
    """
    with answering():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def write_file(path: Path, data: bytes) -> None:
    """Write a file that the user named, atomically.

    Raises:
        InputError: If it cannot be written.
    """
    from stitchgrid.errors import InputError

    try:
        write_whole(path, data)
    except OSError as problem:
        raise InputError(f"cannot write {path}: {problem.strerror}; name another file with --out.") from problem
