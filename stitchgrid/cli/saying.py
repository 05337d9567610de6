"""How commands say something: whatever a store or a job holds, it cannot steer the terminal."""

import click

from stitchgrid.printable import printable


def say(text: str, *, err: bool = False) -> None:
    """Write lines to stdout, or to stderr."""
    click.echo(printable(text), err=err)
