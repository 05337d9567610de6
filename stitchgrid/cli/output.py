"""How commands say something: whatever a store or a job holds, it cannot steer the terminal."""

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
        OutputError: If stdout does not take them; stderr may take them or not.
    """
    if err:
        click.echo(printable(text), err=True)
        return
    with answering():
        click.echo(printable(text))


def say_begin(what: str) -> None:
    """Say on stderr that work has begun, before what it needs is loaded: nobody is to wonder whether it has."""
    say(f"{what}: reading images and networks", err=True)


def say_problem(problem: StitchgridError) -> None:
    """Say on stderr what went wrong: short, and without what is secret."""
    say(f"Error: {shortened(masked(str(problem)))}", err=True)


def warn_of_damage(damaged: "tuple[Damage, ...]", *, where: str = "") -> None:
    """Say on stderr which files of the store were left out; of those that may not be read, the first and how many."""
    unseen = [one for one in damaged if one.is_forbidden]
    for one in damaged:
        if one not in unseen[1:]:
            more = f" So were {len(unseen) - 1} more." if one in unseen[:1] and len(unseen) > 1 else ""
            told = in_one_line(shortened(str(one)))
            say(f"Warning: left out: {where}{': ' * bool(where)}{told}{more}", err=True)


def warn_of_store(catalog: "Catalog") -> None:
    """Say on stderr which files of the store were left out, and what would make it quicker."""
    from stitchgrid.store import MANY_PARTS

    warn_of_damage(catalog.damaged)
    if catalog.num_loose_parts > MANY_PARTS:
        say(f"{catalog.num_loose_parts} small files were read one by one; 'stitchgrid compact' merges them.", err=True)
