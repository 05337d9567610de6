"""The command `answer`: the best source layer for each target layer of a sweep, and the evidence for it."""

from typing import TYPE_CHECKING

import click

from stitchgrid.cli.complete import complete_kinds, complete_layers, complete_networks, complete_sweeps
from stitchgrid.cli.files_out import emit, format_of, write_file
from stitchgrid.cli.options import OUTPUT, STORE
from stitchgrid.cli.output import say, warn_of_store
from stitchgrid.paths import named_path

if TYPE_CHECKING:
    from stitchgrid.catalog import Catalog
    from stitchgrid.catalog.answers import Answer
    from stitchgrid.catalog.missing_checks import Addition


class _Answer(click.Command):
    """Says which option takes a layer."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as problem:
            if problem.option_name == "--layer":
                told = "No such option: --layer; name the layer with its network, --target MODEL:LAYER."
                raise click.UsageError(told, ctx) from problem
            raise


@click.command(cls=_Answer)
@click.argument("sweep", required=False, shell_complete=complete_sweeps)
@click.option(
    "--target",
    metavar="MODEL[:LAYER]",
    shell_complete=complete_layers,
    help="Only this network, or this layer of it, as the target.",
)
@click.option("--source", metavar="MODEL", shell_complete=complete_networks, help="Only this network as the source.")
@click.option(
    "--matcher",
    "kinds",
    multiple=True,
    metavar="KIND",
    shell_complete=complete_kinds,
    help="Only this matcher; may be repeated.",
)
@OUTPUT
@STORE
def answer(
    sweep: str | None,
    target: str | None,
    source: str | None,
    kinds: tuple[str, ...],
    form: str | None,
    out: str | None,
    every: bool,
    store: str,
) -> None:
    """Say which layer of one network matches each layer of another best, and how sure that is; default: all sweeps.

    The verdict is `supported` if all needed checks passed and no other check failed; `not supported` if a network is
    untrained or at chance, or untrained twins or shuffled images match as well; else `weak`. Formats other than table
    show every check with its numbers.

    \b
    Example:
      stitchgrid answer quickstart
      stitchgrid answer quickstart --target b:layer2.0 --source a --matcher direct --format json
    """
    from stitchgrid.catalog import Catalog
    from stitchgrid.catalog.answers import as_table, find_wanted, read_answers
    from stitchgrid.catalog.missing_checks import additions, is_live
    from stitchgrid.catalog.output_formats import OUTPUT_FORMATS
    from stitchgrid.store import Store

    with Catalog(Store.open(store)) as catalog:
        sweeps = (sweep,) if sweep else catalog.sweeps
        for name in sweeps:
            catalog.require_sweep(name)
        wanted = find_wanted(catalog, sweeps, target=target, source=source, kinds=kinds)
        found = {name: read_answers(catalog, name, wanted) for name in sweeps}
        lacking = {name: additions(catalog, name, answers) for name, answers in found.items()}
        places = {name: "call of compare" if is_live(catalog, name) else "job" for name in found}
        notes = {name: _notes(catalog, name, answers) for name, answers in found.items()}
        warn_of_store(catalog)
    form = format_of(form, out)
    if form != "table":
        answers = [one for name in sweeps for one in found[name]]
        emit(as_table(answers, short=OUTPUT_FORMATS[form].for_people), form, out, every=every)
        return
    told = (_lines(name, found[name], lacking[name], notes[name], places[name]) for name in sweeps)
    text = "\n\n".join(map("\n".join, told))
    text = text or "The store holds no planned sweep: launch a job first."
    if out is None:
        say(text)
    else:
        write_file(named_path(out), f"{text}\n".encode())


def _notes(catalog: "Catalog", sweep: str, answers: "list[Answer]") -> list[str]:
    """Return what to know about a sweep without answers, and about cells that diverged."""
    from stitchgrid.catalog.findings import diverged_cells
    from stitchgrid.catalog.missing_checks import way_on

    nothing = [] if answers else [f"{sweep}: no answers yet; '{way_on(catalog, sweep)}' computes what is missing."]
    return [*nothing, *diverged_cells(catalog, sweep)]


def _lines(sweep: str, answers: "list[Answer]", lacking: "list[Addition]", notes: list[str], place: str) -> list[str]:
    from stitchgrid.catalog.answers import in_words

    if not answers:
        return notes
    lines = [f"{sweep}:", *in_words(answers)]
    lines += ["", *notes] if notes else []
    if lacking:
        width = max(len(one.what) for one in lacking)
        lines += ["", f"What to add to the {place}, so that more checks are computed:"]
        lines += [f"  {one.what:{width}}  {one.why}" for one in lacking]
    return lines
