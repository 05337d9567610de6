"""Options that several commands share."""

from collections.abc import Callable
from typing import TypeVar

import click

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

SUFFIXES = {".csv": "csv", ".json": "json", ".md": "markdown", ".parquet": "parquet"}
FORMATS = ("table", "csv", "spreadsheet", "json", "markdown", "parquet")


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
        type=click.Choice(FORMATS),
        help="How to write the rows; default: what the name of --out ends with, else a table. spreadsheet: csv whose "
        "texts no spreadsheet takes for a formula.",
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
        default="local",
        show_default=True,
        metavar="local|auto|HOST:PORT|none",
        help="Ray on this machine, a running Ray cluster, or none: in this process, without Ray.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Workers to start; default: what the machine bears."),
    click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="GPUs of one worker: 1, 0.5, ..."),
    click.option("--cpus-per-worker", type=click.FloatRange(min=0), help="CPUs, hence threads, of one worker."),
)

HOW = together(
    click.option(
        "--drain-seconds",
        type=click.FloatRange(min=0),
        default=60.0,
        show_default=True,
        help="Time for what is in flight when Ctrl-C or SIGTERM comes; a second one ends at once.",
    ),
    click.option("--force", is_flag=True, help="Take the sweep over from a launch that is at it."),
    click.option("--wait", is_flag=True, help="Wait for the end of a launch that is at the sweep, then go on."),
    click.option(
        "--notify",
        metavar="COMMAND",
        help="Run it in a shell at the end, whatever came: $STITCHGRID_SWEEP, _EXIT (the exit code), _DONE and _FAILED "
        "(numbers of cells) tell.",
    ),
    click.option("--retry-failed", is_flag=True, help="Compute cells again that failed before."),
    click.option(
        "--keep-going/--fail-fast", default=True, show_default=True, help="Go on when a cell fails, or stop at once."
    ),
)
