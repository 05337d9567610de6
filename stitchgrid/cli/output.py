"""How commands print messages: text from a store or a job cannot send control characters to the terminal."""

from typing import TYPE_CHECKING

import click

from stitchgrid.cli.streams import answering
from stitchgrid.errors import StitchgridError
from stitchgrid.printable import in_one_line, masked, printable, shortened

if TYPE_CHECKING:
    from stitchgrid.catalog import Catalog
    from stitchgrid.store import Damage


def say(text: str, *, err: bool = False) -> None:
    """Write lines to stdout, or to stderr.

    Raises:
        OutputError: If stdout cannot be written; failures of stderr are ignored.
    """
    if err:
        click.echo(printable(text), err=True)
        return
    with answering():
        click.echo(printable(text))


def say_begin(what: str) -> None:
    """Say on stderr that work has begun, before the slow imports."""
    say(f"{what}: reading images and networks", err=True)


def say_problem(problem: StitchgridError) -> None:
    """Print an error on stderr, shortened, and with secrets masked."""
    say(f"Error: {shortened(masked(str(problem)))}", err=True)


def warn_of_damage(damaged: "tuple[Damage, ...]", *, where: str = "") -> None:
    """Say on stderr which files of the store were left out; of unreadable ones, only the first and their number."""
    unseen = [one for one in damaged if one.is_forbidden]
    for one in damaged:
        if one not in unseen[1:]:
            more = f" {len(unseen) - 1} more could not be read." if one in unseen[:1] and len(unseen) > 1 else ""
            told = in_one_line(shortened(str(one)))
            say(f"Warning: left out: {where}{': ' * bool(where)}{told}{more}", err=True)


def warn_of_store(catalog: "Catalog") -> None:
    """Say on stderr which files of the store were left out, and whether compacting would make it faster."""
    from stitchgrid.store import MANY_PARTS

    warn_of_damage(catalog.damaged)
    if catalog.num_loose_parts > MANY_PARTS:
        say(f"{catalog.num_loose_parts} small files were read one by one; 'stitchgrid compact' merges them.", err=True)
