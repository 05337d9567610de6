"""Commands that compute, or show what a launch would compute: launch, resume, plan."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from stitchgrid.cli.complete import complete_jobs, complete_sweeps
from stitchgrid.cli.files_out import emit
from stitchgrid.cli.options import HOW, RECOMPUTE, STORE, USUAL_STORE, WHERE
from stitchgrid.cli.output import say, say_begin
from stitchgrid.cli.status import is_in_store, require_sweep
from stitchgrid.cli.streams import going_on
from stitchgrid.printable import in_one_line

if TYPE_CHECKING:
    from stitchgrid.api.runs import Run
    from stitchgrid.jobfile import Job

SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Edit the job first: models.vit.seed=3; repeatable."
)
UPDATE = click.option(
    "--update", is_flag=True, help="If the sweep of this name has other cells, make this job its next revision."
)


@click.command()
@click.argument("jobfile", shell_complete=complete_jobs)
@STORE
@WHERE
@SET
@UPDATE
@HOW
@click.option("--dry-run", is_flag=True, help="Only say what would be done, like 'stitchgrid plan'.")
@click.pass_context
def launch(
    ctx: click.Context,
    /,
    jobfile: str,
    store: str,
    overrides: tuple[str, ...],
    update: bool,
    dry_run: bool,
    retry_failed: bool,
    recompute: tuple[str, ...],
    **flags: Any,
) -> None:
    """Compute the cells of a job that the store lacks. JOBFILE is a path, or the name of a shipped job.

    \b
    Example:
      stitchgrid launch quickstart
      stitchgrid launch jobs/quickstart.toml --store /data/grid --set data.eval.samples=500
    """
    from stitchgrid.jobfile import load_job

    job = load_job(jobfile, overrides)
    if dry_run:
        where = {name: flags[name] for name in ("address", "workers", "gpus_per_worker", "cpus_per_worker")}
        how = {"update": update, "retry_failed": retry_failed, "recompute": recompute}
        _show_plan(job, store, where, command=_command("launch", jobfile, store, *set_options(overrides)), **how)
        return
    say_begin(job.name)
    ctx.exit(_launch(job, store, update=update, retry_failed=retry_failed, recompute=recompute, **flags))


@click.command()
@click.argument("sweep", shell_complete=complete_sweeps)
@STORE
@WHERE
@HOW
@click.pass_context
def resume(ctx: click.Context, /, sweep: str, store: str, retry_failed: bool, **flags: Any) -> None:
    """Continue a sweep of the store where it stopped, whatever the reason; needs no job file.

    \b
    Example:
      stitchgrid resume quickstart
    """
    require_sweep(sweep, store)  # at once: what a launch imports takes long
    say_begin(sweep)
    from stitchgrid.api.launches import stored_job

    ctx.exit(_launch(stored_job(sweep, store), store, update=False, retry_failed=retry_failed, same_code=True, **flags))


@click.command()
@click.argument("jobfile", shell_complete=complete_jobs)
@STORE
@WHERE
@SET
@RECOMPUTE
@click.option("--retry-failed", is_flag=True, help="Count cells that failed before as cells to compute.")
@click.option(
    "--simulate",
    "simulated",
    metavar="K=V,...",
    help="Also simulate the run on many workers that may fail, such as num_workers=512,crashes_per_hour=0.1.",
)
@click.option(
    "--images",
    "listed",
    metavar="FILE",
    help="Only list the images that the job draws, in drawn order; the suffix of FILE decides the format.",
)
def plan(
    jobfile: str,
    store: str,
    overrides: tuple[str, ...],
    retry_failed: bool,
    recompute: tuple[str, ...],
    simulated: str | None,
    listed: str | None,
    **where: Any,
) -> None:
    """Say what a launch would do and why; never trains, never computes a cell.

    The time is an estimate: a few seconds of the same work, on noise, are timed where a worker would run. For workers
    on this machine that is this process, else one worker's share of the cluster at --address.

    \b
    Example:
      stitchgrid plan jobs/quickstart.toml
      stitchgrid plan jobs/quickstart.toml --address auto --gpus-per-worker 1
      stitchgrid plan jobs/quickstart.toml --images images.csv
    """
    from stitchgrid.jobfile import load_job

    if listed is not None:
        from stitchgrid.api.launches import images

        emit(images(jobfile, overrides=overrides).arrow(), None, listed)
        return
    _show_plan(
        load_job(jobfile, overrides),
        store,
        where,
        update=True,
        retry_failed=retry_failed,
        recompute=recompute,
        command=_command("launch", jobfile, store, *set_options(overrides)),
        simulated=simulated,
    )


def _show_plan(job: "Job", store: str, where: dict[str, Any], **how: Any) -> None:
    say_begin(job.name)
    from stitchgrid.api.launches import plan_job

    say(plan_job(job, store, where, **how))


def _launch(job: "Job", store: str, *, notify: str | None, **flags: Any) -> int:
    """Run a launch, show its summary, run the command of --notify; return the exit code."""
    from stitchgrid.errors import StitchgridError

    done: dict[str, int] = {}
    code = 1
    try:
        code = _run_launch(job, store, done, **flags)
    except StitchgridError as problem:
        code = problem.exit_code
        raise
    finally:
        if notify is not None:
            _notify(notify, job.name, code, done)
    return code


def _notify(command: str, sweep: str, code: int, done: dict[str, int]) -> None:
    """Run the user's command with the result of a launch in its environment; unknown numbers are empty."""
    import os
    import subprocess

    told = {"SWEEP": sweep, "EXIT": code, "DONE": done.get("done", ""), "FAILED": done.get("failed", "")}
    environment = os.environ | {f"STITCHGRID_{name}": str(value) for name, value in told.items()}
    words = ["/bin/sh", "-c", command]
    ended = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
    if ended:
        say(f"The command of --notify ended with exit code {ended}.", err=True)


def _run_launch(
    job: "Job",
    store: str,
    done: dict[str, int],
    *,
    update: bool,
    retry_failed: bool,
    keep_going: bool,
    force: bool,
    wait: bool,
    recompute: tuple[str, ...] = (),
    same_code: bool = False,
    **where: Any,
) -> int:
    """Run a launch and show its summary; return the exit code. `done` receives the numbers of done and failed cells."""
    try:
        from stitchgrid.api.launches import run_job

        run = run_job(
            job,
            store,
            where,
            update=update,
            retry_failed=retry_failed,
            fail_fast=not keep_going,
            force=force,
            same_code=same_code,
            wait=wait,
            recompute=recompute,
        )
    except KeyboardInterrupt:
        if is_in_store(job.name, store):
            kept = f"what is finished is kept. Go on with: {_command('resume', job.name, store)}"
        else:
            kept = "nothing was kept, as the sweep had not begun. Start again with the same command."
        say(f"\nInterrupted; {kept}", err=True)
        return 130
    summary = run.summary
    assert summary is not None, "a launch has one"
    done |= {"done": summary.num_done, "failed": sum(summary.failures.values())}
    with going_on():
        _show_summary(run, store)
    return 0 if summary.num_done == summary.num_cells else 1


def _command(verb: str, name: str, store: str, *options: str) -> str:
    """Return a command that can be pasted into a shell, even if the name begins like an option or has spaces."""
    given = [*options, *([] if store == USUAL_STORE else ["--store", store])]
    words = [*given, "--", name] if name.startswith("-") else [name, *given]
    return shlex.join(["stitchgrid", verb, *words])


def set_options(overrides: Sequence[str]) -> list[str]:
    """Return the options that make these edits of a job."""
    return [word for one in overrides for word in ("--set", one)]


def _show_summary(run: "Run", store: str) -> None:
    from stitchgrid.display import clock

    summary = run.summary
    assert summary is not None, "a launch has one"
    before = summary.num_done - summary.num_computed
    computed = f"computed {summary.num_computed} cells" if summary.num_computed else "nothing to compute"
    already = f" ({before} were there)" if before and summary.num_computed else ""
    say(
        f"\n{summary.sweep}: {summary.num_done} of {summary.num_cells} cells are there; {computed}{already} "
        f"in {clock(summary.seconds)}"
    )
    for reason, count in list(summary.failures.items())[:5]:
        first, *_ = reason.split("\n")
        say(f"  {count} without values: {in_one_line(first)}")
    for lines in run.findings():
        say("\n" + "\n".join(map(in_one_line, lines)))
    run.refresh()  # frees the tables that were read
    say(f"\nThe store is {run.store}. Next:")
    say(f"  {_command('atlas', summary.sweep, store, '--out', 'atlas.html')}")
    say(f"  {_command('answer', summary.sweep, store)}")
    say(f"  {_command('query', 'best_source', store)}")
    if summary.failures:
        say(f"  {_command('query', 'failures', store)}")
        say(f"  {_command('resume', summary.sweep, store, '--retry-failed')}")
