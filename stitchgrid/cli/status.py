"""Commands that show the progress of sweeps, on any machine that can read the store: status, logs."""

import click

from stitchgrid.cli.complete import complete_sweeps
from stitchgrid.cli.options import STORE
from stitchgrid.cli.output import say, warn_of_store
from stitchgrid.errors import StitchgridError
from stitchgrid.printable import in_one_line


def is_in_store(sweep: str, store: str) -> bool:
    """Return whether a store is there and has a sweep of this name; False as well where it cannot be read."""
    try:
        require_sweep(sweep, store)
    except StitchgridError:
        return False
    return True


def require_sweep(sweep: str, store: str) -> None:
    """Check that a store has a sweep, without what a launch imports.

    Raises:
        StoreError: If there is no such store or sweep; the error names the known ones.
    """
    from stitchgrid.store import Store

    Store.open(store).read_job(sweep)


@click.command()
@click.argument("sweep", required=False, shell_complete=complete_sweeps)
@click.option("--watch", is_flag=True, help="Show again every two seconds until the launch is over.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@STORE
def status(sweep: str | None, watch: bool, form: str, store: str) -> None:
    """Say how far sweeps are: done, running, failed by reason, rate, time left.

    \b
    Example:
      stitchgrid status quickstart --watch
    """
    import time

    from stitchgrid.catalog.progress import as_json, as_text, read_progress
    from stitchgrid.store import Store

    opened = Store.open(store)
    while True:
        found = read_progress(opened, sweep, warn=warn_of_store)
        if watch and form == "table":
            click.clear()
        say(as_json(found) if form == "json" else as_text(found))
        if not watch or not any(one.is_running for one in found):
            return
        time.sleep(2)


@click.command()
@click.argument("sweep", shell_complete=complete_sweeps)
@click.argument("shard", required=False)
@STORE
@click.pass_context
def logs(ctx: click.Context, sweep: str, shard: str | None, store: str) -> None:
    """Show the log of a shard; without SHARD, list the shards that have logs.

    A log has an entry for every attempt at the shard: where it ran, the settings that were chosen, errors with their
    tracebacks, how its worker died. The view `cells` has the shard of each cell; the first letters of the shard's id
    are enough.

    \b
    Example:
      stitchgrid logs quickstart
      stitchgrid logs quickstart 3f2a
    """
    from stitchgrid.errors import InputError, nearest
    from stitchgrid.store import Store

    opened = Store.open(store)
    opened.read_job(sweep)  # so that the error for a wrong name lists the known ones
    names = opened.log_names(sweep)
    if shard is None:
        say("\n".join(map(in_one_line, names)) or "No logs yet.")
        return
    chosen = [name for name in names if name.startswith(shard)]
    if not chosen:
        raise InputError(f"no log of a shard {shard!r} in sweep {sweep!r}; {nearest(shard, names)}.")
    for name in chosen:
        say(opened.read_log(sweep, name) or "")
    if any(opened.log_problems(sweep, name) for name in chosen):
        ctx.exit(1)
