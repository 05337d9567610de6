"""Options that several commands share."""

from collections.abc import Callable
from typing import TypeVar

import click

from stitchgrid.catalog.output_formats import OUTPUT_FORMATS

Command = TypeVar("Command", bound=Callable[..., object])

STORE_VARIABLE, USUAL_STORE = "STITCHGRID_STORE", "./grid"
STORE = click.option(
    "--store",
    envvar=STORE_VARIABLE,
    default=USUAL_STORE,
    show_default=True,
    show_envvar=True,
    help="Where results are kept: a folder, or s3://bucket/prefix.",
)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return several options as one decorator, in this order in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


FORMAT_AND_FILE = together(
    click.option(
        "--format",
        "form",
        type=click.Choice(tuple(OUTPUT_FORMATS)),
        help="Format of the rows; default: by the suffix of --out, else table. spreadsheet: "
        f"{OUTPUT_FORMATS['spreadsheet'].says}.",
    ),
    click.option("--out", type=click.Path(dir_okay=False), help="Write to this file instead of stdout."),
)

OUTPUT = together(
    FORMAT_AND_FILE,
    click.option("--all", "every", is_flag=True, help="Show all rows at a terminal, not the first 40."),
)

WHERE = together(
    click.option(
        "--address",
        metavar="local|auto|HOST:PORT|none",
        help="local: Ray on this machine; auto or HOST:PORT: a running Ray cluster; none: this process, without Ray. "
        "Default: none for small jobs, else local.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Workers to start; default: as many as have room."),
    click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="GPUs of one worker: 1, 0.5, ..."),
    click.option("--cpus-per-worker", type=click.FloatRange(min=0), help="CPUs, hence threads, of one worker."),
)

RECOMPUTE = click.option(
    "--recompute",
    multiple=True,
    metavar="GLOB",
    help="Compute cells again that have values: those of a matcher or model, or all; repeatable. The new values "
    "replace the old ones.",
)

HOW = together(
    RECOMPUTE,
    click.option(
        "--drain-seconds",
        type=click.FloatRange(min=0),
        default=60.0,
        show_default=True,
        help="Time to finish running shards after Ctrl-C or SIGTERM; a second Ctrl-C or SIGTERM stops at once.",
    ),
    click.option("--force", is_flag=True, help="Take the sweep over from a launch that works on it."),
    click.option("--wait", is_flag=True, help="If another launch works on the sweep, wait for its end first."),
    click.option(
        "--notify",
        metavar="COMMAND",
        help="Run this command in a shell at the end, also after a failure. Its environment has $STITCHGRID_SWEEP, "
        "_EXIT (the exit code), _DONE and _FAILED (numbers of cells).",
    ),
    click.option("--retry-failed", is_flag=True, help="Compute again the cells that failed before."),
    click.option(
        "--keep-going/--fail-fast", default=True, show_default=True, help="Go on when a cell fails, or stop at once."
    ),
)
