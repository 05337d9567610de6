"""Commands that compare sweeps, and export them for other tools: diff, export."""

import click

from stitchgrid.cli.complete import complete_sweeps
from stitchgrid.cli.files_out import emit
from stitchgrid.cli.options import OUTPUT, STORE
from stitchgrid.cli.output import say, warn_of_store
from stitchgrid.paths import named_path


@click.command()
@click.argument("a", shell_complete=complete_sweeps)
@click.argument("b", shell_complete=complete_sweeps)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    help="Values that differ by at most this much count as the same: absolute, and relative for values above 1.",
)
@OUTPUT
@STORE
@click.pass_context
def diff(
    ctx: click.Context,
    a: str,
    b: str,
    tolerance: float,
    form: str | None,
    out: str | None,
    every: bool,
    store: str,
) -> None:
    """List values that changed from sweep A to sweep B, that are new and that are gone; exits with 1 if any changed.

    A and B are each SWEEP (in --store) or STORE:SWEEP. Cells are matched by the names of networks and layers, and by
    kind, parameters and seed of the matcher. The last column is the status of the cell in the sweep that lacks the
    value.

    \b
    Example:
      stitchgrid diff monday tuesday
      stitchgrid diff old/grid:quickstart quickstart --tolerance 1e-4 --format csv
    """
    from stitchgrid.catalog.difference import compare, find_sweep, open_both

    first, second = (find_sweep(text, store) for text in (a, b))
    catalogs = open_both(first, second)
    try:
        found = compare(catalogs[0], first.sweep, catalogs[1], second.sweep, tolerance=tolerance)
        emit(found.rows, form, out, every=every)
        for catalog in dict.fromkeys(catalogs):
            warn_of_store(catalog)
    finally:
        for catalog in dict.fromkeys(catalogs):
            catalog.close()
    say(
        f"{found.num_changed} values changed, {found.num_new} new, {found.num_gone} gone, {found.num_same} the same "
        f"(tolerance {tolerance:g})",
        err=True,
    )
    if found.num_changed:
        ctx.exit(1)


@click.command()
@click.argument("sweeps", metavar="[SWEEP]...", nargs=-1, shell_complete=complete_sweeps)
@click.option("--duckdb", "file", type=click.Path(dir_okay=False), metavar="FILE", help="Write a DuckDB file.")
@click.option(
    "--parquet", "folder", type=click.Path(file_okay=False), metavar="DIR", help="Write VIEW.parquet files to a folder."
)
@STORE
def export(sweeps: tuple[str, ...], file: str | None, folder: str | None, store: str) -> None:
    """Write all views of sweeps (results, cells, models, answers, ...) for other tools; default: all sweeps.

    If the export fails, nothing changes on disk. It replaces an earlier export; any other file or folder is refused.

    \b
    Example:
      stitchgrid export --duckdb results.duckdb
      stitchgrid export --parquet results quickstart
    """
    from stitchgrid.catalog import Catalog
    from stitchgrid.catalog.export import export_duckdb, export_parquet
    from stitchgrid.store import Store

    if (file is None) == (folder is None):
        raise click.UsageError("give either --duckdb FILE or --parquet DIR.")
    with Catalog(Store.open(store)) as catalog:
        if file is not None:
            counts = export_duckdb(catalog, named_path(file), sweeps)
        else:
            counts = export_parquet(catalog, named_path(str(folder)), sweeps)
        warn_of_store(catalog)
    say(f"{file or folder}: {', '.join(f'{num} {name}' for name, num in counts.items())}")
