"""How commands say something: whatever a store or a job holds, it cannot steer the terminal."""

import click

from stitchgrid.printable import printable


def say(text: str, *, err: bool = False) -> None:
    """Write lines to stdout, or to stderr."""
    click.echo(printable(text), err=err)


def warn_of_damage(damaged: tuple[object, ...]) -> None:
    """Say on stderr which files of the store were left out."""
    for one in damaged:
        say(f"Warning: left out: {one}", err=True)
