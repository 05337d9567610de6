"""Commands that read the results of a store: query, sql, atlas, report."""

import sys
from typing import TYPE_CHECKING

import click

from stitchgrid.cli.complete import complete_queries, complete_sweeps
from stitchgrid.cli.files_out import emit, format_of, is_terminal, write_answer, write_file
from stitchgrid.cli.options import OUTPUT, STORE
from stitchgrid.cli.output import say, warn_of_store
from stitchgrid.paths import named_path

if TYPE_CHECKING:
    import pyarrow as pa

    from stitchgrid.store import Store


@click.command()
@click.argument("question", metavar="[NAME|FILE.sql]", required=False, shell_complete=complete_queries)
@click.option("--param", "params", multiple=True, metavar="K=V", help="A parameter of the query; may be repeated.")
@click.option("--describe", is_flag=True, help="Only show the question, its parameters, columns and SQL.")
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
    """Answer a question about the content of a store; without NAME, list the questions.

    \b
    Example:
      stitchgrid query
      stitchgrid query best_source --describe
      stitchgrid query best_source --param sweep=quickstart --out best.csv
    """
    from stitchgrid.catalog.query_files import load_question, overview

    if question is None:
        say("\n".join(overview()))
        return
    asked = load_question(question)
    if describe:
        say(asked.description)
        return
    from stitchgrid.catalog import Catalog
    from stitchgrid.store import Store

    given = dict(_key_value(param) for param in params)
    with Catalog(Store.open(store)) as catalog:
        table = catalog.ask(asked, given)
        if asked.columns and format_of(form, out) == "table" and (out is not None or not is_terminal()):
            table = _without_constant_params(table)
        emit(table, form, out, every=every)
        warn_of_store(catalog)


def _without_constant_params(table: "pa.Table") -> "pa.Table":
    """Leave out the long columns of parameters that are the same in all rows; a terminal lists them below the rows."""
    names = [name for name in table.column_names if name == "params" or name.endswith("_params")]
    return table.drop_columns([name for name in names if len(table[name].unique()) <= 1])


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

    The statement is the argument, a file (-f), or stdin (-). Without a statement, a terminal shows a prompt for many
    statements; its command .help lists all commands.

    \b
    Example:
      stitchgrid sql
      stitchgrid sql "select metric, count(*) as n, avg(value) from results group by metric"
      stitchgrid sql -f mine.sql --out mine.parquet
    """
    from stitchgrid.catalog import Catalog
    from stitchgrid.store import Store

    if statement is None and file is None and sys.stdin.isatty():
        _converse(store, form, out)
        return
    text = _statement(statement, file)
    with Catalog(Store.open(store)) as catalog:
        emit(catalog.query(text), form, out, every=every)
        warn_of_store(catalog)


def _converse(store: str, form: str | None, out: str | None) -> None:
    """Read statements at a prompt."""
    from stitchgrid.cli.prompt import prompt
    from stitchgrid.cli.session import Session

    session = Session(store)
    try:
        if form is not None:
            session.run(f".mode {form}")
        if out is not None:
            session.run(f".out {out}")
        prompt(session)
    finally:
        session.close()


def _statement(statement: str | None, file: str | None) -> str:
    """Return the statement from the command line, a file or stdin.

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
@click.argument("sweeps", metavar="[SWEEP]...", nargs=-1, shell_complete=complete_sweeps)
@click.option("--out", type=click.Path(dir_okay=False), default="atlas.html", show_default=True, help="The page.")
@click.option("--figures", type=click.Path(file_okay=False), help="Also draw figures into this folder.")
@click.option("--only", metavar="SCORE,...", help="Only figures of these matchers, matcher.metric or metrics.")
@click.option("--pair", metavar="SOURCE,TARGET", help="Only figures of this pair; adds profile, best sources, scatter.")
@click.option("--width", type=float, help="Width of each figure in inches; 3.25 is a column. Default: 6.75.")
@click.option("--format", "formats", metavar="pdf,svg,png", help="Formats of each figure. Default: pdf.")
@click.option(
    "--serve", is_flag=True, help="Write nothing; serve the page to browsers on this machine, kept up to date."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port for --serve; default: any free port.")
@STORE
def atlas(
    sweeps: tuple[str, ...],
    out: str,
    figures: str | None,
    only: str | None,
    pair: str | None,
    width: float | None,
    formats: str | None,
    serve: bool,
    port: int,
    store: str,
) -> None:
    """Write one self-contained page with a heat map for every pair of models; default: all sweeps.

    Figures are for papers: heat maps of each matcher's score, or of those that --only names, each with its caption and
    numbers in files beside it.

    With --serve the page shows new results while a launch runs. Every user of this machine who has the address can read
    the page.

    \b
    Example:
      stitchgrid atlas quickstart --out atlas.html --figures figures
      stitchgrid atlas quickstart --figures figures --pair resnet/0,vit --width 3.25 --format pdf,png
      stitchgrid atlas --serve
    """
    from stitchgrid.atlas import WIDTH, FigureOptions, write_atlas
    from stitchgrid.catalog import Catalog
    from stitchgrid.store import Store

    if serve:
        if figures:
            raise click.UsageError("--serve writes nothing; run the command again without it to draw --figures.")
        _serve(Store.open(store), sweeps, port)
        return
    given = {"--only": only, "--pair": pair, "--width": width, "--format": formats}
    if figures and figures.lower().endswith((".pdf", ".png", ".svg")):
        raise click.UsageError(
            f"--figures must name a folder, got {figures!r}; --format chooses the formats of the files in it."
        )
    if not figures and (lone := [name for name, value in given.items() if value is not None]):
        raise click.UsageError(f"{', '.join(lone)} needs figures; name a folder for them with --figures DIR.")
    options = FigureOptions(
        only=_words(only),
        pair=pair,
        width=WIDTH if width is None else width,
        formats=("pdf",) if formats is None else _words(formats),
    )
    with Catalog(Store.open(store)) as catalog:
        folder = named_path(figures) if figures else None
        report = write_atlas(catalog, sweeps or catalog.sweeps, named_path(out), figures=folder, options=options)
        warn_of_store(catalog)
    say(f"{out}: {report}")
    if figures and pair is None:
        say("--pair SOURCE,TARGET draws the profile, best sources and scatter plot of one pair of networks.", err=True)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _serve(store: "Store", sweeps: tuple[str, ...], port: int) -> None:
    """Serve the atlas until Ctrl-C."""
    from stitchgrid.atlas.serve import AtlasServer, LivePage

    following = LivePage(store, sweeps)
    following.look()  # so that errors appear here, not in the browser
    with AtlasServer(following, port) as server:
        say(f"{server.url}\nThe page shows {store.uri} and updates itself; Ctrl-C stops the server.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("The server has stopped.", err=True)


@click.command()
@click.argument("sweeps", metavar="[SWEEP]...", nargs=-1, shell_complete=complete_sweeps)
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "markdown")),
    default="html",
    show_default=True,
    help="html: a page with figures; markdown: text without figures.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="The file; default: report.html, and stdout for Markdown.")
@STORE
def report(sweeps: tuple[str, ...], form: str, out: str | None, store: str) -> None:
    """Write a report on the matchers of sweeps: verdicts, each with its rule, tables, figures; default: all sweeps.

    It answers: do matchers prefer the right layer, do stitched activations stay in the distribution, which claims are
    misleading, and are matchers sensitive, specific and monotone?

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
