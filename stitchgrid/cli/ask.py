"""Commands that ask a store: query, sql, atlas, report."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stitchgrid.cli.options import OUTPUT, STORE, SUFFIXES
from stitchgrid.cli.saying import say, warn_of_store
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
    return form or SUFFIXES.get(Path(out or "").suffix.lower(), "table")


def emit(table: "pa.Table", form: str | None, out: str | None, *, every: bool = False) -> None:
    """Write a table to a file or to stdout, in one of the formats; `every` shows all rows at a terminal."""
    from stitchgrid.catalog.formats import render

    width = shutil.get_terminal_size().columns if is_terminal() and out is None else None
    text = render(table, format_of(form, out), width=width, every=every)
    encoding = "utf-8"
    if isinstance(text, str) and out is None and is_terminal():  # elsewhere csv and json lose nothing
        text, encoding = printable(text), sys.stdout.encoding or encoding
    data = text if isinstance(text, bytes) else text.encode(encoding, "replace")
    if out is not None:
        write_file(named_path(out), data)
    else:
        write_answer(data)


def write_answer(data: bytes) -> None:
    """Write bytes to stdout.

    Raises:
        OutputError: If it does not take them.
    """
    with answering():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def write_file(path: Path, data: bytes) -> None:
    """Write a file the user named, whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    from stitchgrid.errors import InputError

    try:
        write_whole(path, data)
    except OSError as problem:
        raise InputError(f"cannot write {path}: {problem.strerror}; name another file with --out.") from problem


@click.command()
@click.argument("question", metavar="[NAME|FILE.sql]", required=False)
@click.option("--param", "params", multiple=True, metavar="K=V", help="A parameter of the query; may be repeated.")
@click.option("--describe", is_flag=True, help="Show the question, its parameters, columns and SQL instead.")
@OUTPUT
@STORE
def query(
    question: str | None,
    params: tuple[str, ...],
    describe: bool,
    form: str | None,
    out: str | None,
    every: bool,
    store: str,
) -> None:
    """Answer a question about what a store holds; without NAME, list the questions.

    \b
    Example:
      stitchgrid query
      stitchgrid query best_source --describe
      stitchgrid query best_source --param sweep=quickstart --out best.csv
    """
    from stitchgrid.catalog import Catalog, list_questions, load_question
    from stitchgrid.store import Store

    if question is None:
        for known in list_questions():
            say(f"{known.name:24}  {known.question}")
        return
    asked = load_question(question)
    if describe:
        say(asked.description)
        return
    given = dict(_key_value(param) for param in params)
    with Catalog(Store.open(store)) as catalog:
        emit(catalog.ask(asked, given), form, out, every=every)
        warn_of_store(catalog)


def _key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise click.BadParameter(f"wanted K=V, got {text!r}.", param_hint="--param")
    return key, value


@click.command()
@click.argument("statement", metavar='["SELECT ..."|-]', required=False)
@click.option("-f", "--file", "file", type=click.Path(dir_okay=False), help="A file with the statement.")
@OUTPUT
@STORE
def sql(statement: str | None, file: str | None, form: str | None, out: str | None, every: bool, store: str) -> None:
    """Run one SELECT over the views results, answers, pairs, cells, models, layers and others ("show tables").

    The statement is given as it stands, from a file, or with - from stdin.

    \b
    Example:
      stitchgrid sql "select metric, count(*) as n, avg(value) from results group by metric"
      stitchgrid sql -f mine.sql --out mine.parquet
    """
    from stitchgrid.catalog import Catalog
    from stitchgrid.store import Store

    text = _statement(statement, file)
    with Catalog(Store.open(store)) as catalog:
        emit(catalog.query(text), form, out, every=every)
        warn_of_store(catalog)


def _statement(statement: str | None, file: str | None) -> str:
    """Return the one statement that was given in one of the ways.

    Raises:
        InputError: If a file, or stdin, cannot be read as text.
    """
    from stitchgrid.errors import InputError

    if (statement is None) == (file is None):
        raise click.UsageError('give one statement: "SELECT ...", - for stdin, or -f FILE.')
    try:
        if file is not None:
            return named_path(file).read_text("utf-8")
        return sys.stdin.read() if statement == "-" else str(statement)
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"cannot read the statement from {file or 'stdin'} as UTF-8 text: {problem}.") from problem


@click.command()
@click.argument("sweeps", metavar="[SWEEP]...", nargs=-1)
@click.option("--out", type=click.Path(dir_okay=False), default="atlas.html", show_default=True, help="The page.")
@click.option("--figures", type=click.Path(file_okay=False), help="Also draw figures into this folder.")
@STORE
def atlas(sweeps: tuple[str, ...], out: str, figures: str | None, store: str) -> None:
    """Write one self-contained page with a heat map for every pair of models; default: all sweeps.

    \b
    Example:
      stitchgrid atlas quickstart --out atlas.html --figures figures
    """
    from stitchgrid.atlas import write_atlas
    from stitchgrid.catalog import Catalog
    from stitchgrid.store import Store

    with Catalog(Store.open(store)) as catalog:
        report = write_atlas(
            catalog, sweeps or catalog.sweeps, named_path(out), figures=named_path(figures) if figures else None
        )
        warn_of_store(catalog)
    say(f"{out}: {report}")


@click.command()
@click.argument("sweeps", metavar="[SWEEP]...", nargs=-1)
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "markdown")),
    default="html",
    show_default=True,
    help="A page with figures, or Markdown without.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="The file; default: report.html, and stdout for Markdown.")
@STORE
def report(sweeps: tuple[str, ...], form: str, out: str | None, store: str) -> None:
    """Write what sweeps say about their matchers: verdicts, each with its rule, tables and figures; default: all.

    Do matchers prefer the right layer, do stitches stay in the distribution, which claims mislead, and are matchers
    sensitive, specific and monotone?

    \b
    Example:
      stitchgrid report quickstart --out report.html
      stitchgrid report quickstart --format markdown
    """
    from stitchgrid.catalog import Catalog
    from stitchgrid.report import render_report
    from stitchgrid.store import Store

    with Catalog(Store.open(store)) as catalog:
        text = render_report(catalog, sweeps or catalog.sweeps, form).encode()
        warn_of_store(catalog)
    target = out or ("report.html" if form == "html" else None)
    if target is None:
        write_answer(text)
    else:
        write_file(named_path(target), text)
        say(f"{target}: {', '.join(sweeps or catalog.sweeps)}")
