"""The command line, which calls all other packages. It imports nothing heavy until a command runs."""

import sys
from typing import Any

import click

from stitchgrid import __version__
from stitchgrid.cli.answer import answer
from stitchgrid.cli.bench import bench
from stitchgrid.cli.complete import completion
from stitchgrid.cli.exchange import diff, export
from stitchgrid.cli.first_steps import doctor, init, manual
from stitchgrid.cli.maintenance import check, compact, gc, merge, remove
from stitchgrid.cli.models import layers, matchers, models
from stitchgrid.cli.output import say, say_problem
from stitchgrid.cli.queries import atlas, query, report, sql
from stitchgrid.cli.run import launch, plan, resume
from stitchgrid.cli.status import logs, status
from stitchgrid.cli.streams import robust_streams
from stitchgrid.errors import StitchgridError
from stitchgrid.worker_logs import show_on_stderr


class CommandGroup(click.Group):
    """Turns errors that users can act on, and interrupts, into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except StitchgridError as problem:
            say_problem(problem)
            ctx.exit(problem.exit_code)
        except KeyboardInterrupt:
            say("Interrupted.", err=True)
            ctx.exit(130)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Compare neural networks layer by layer: stitching, CKA, CCA and Procrustes on all layer pairs.

    \b
    Example:
      stitchgrid launch quickstart
      stitchgrid answer quickstart
      stitchgrid atlas --out atlas.html
      stitchgrid manual start
    """


BEGINNING = (manual, init, doctor)
RUNNING = (launch, resume, plan, bench, status, logs)
LOOKING = (layers, models, matchers, completion)
ASKING = (answer, query, sql, atlas, report, diff, export)
KEEPING = (check, compact, merge, remove, gc)
for command in (*BEGINNING, *RUNNING, *LOOKING, *ASKING, *KEEPING):
    cli.add_command(command)


def main() -> None:
    """Run the command line; $STITCHGRID_LOG, a level such as "debug", shows the log of this process's workers."""
    with robust_streams():
        show_on_stderr()
        sys.exit(cli())
