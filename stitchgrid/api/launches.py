"""Launches from Python: they do what the commands do, raise errors, and return a `Run`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from stitchgrid.api.runs import Run
from stitchgrid.api.tables import Table
from stitchgrid.display import Display
from stitchgrid.driver import Launch, Placement, preview
from stitchgrid.driver.drawn_images import list_images
from stitchgrid.jobfile import load_job, parse_job
from stitchgrid.jobfile.job import Job
from stitchgrid.store import Store


def launch(
    job: str | os.PathLike[str],
    store: str | os.PathLike[str] = "./grid",
    *,
    address: str | None = None,
    overrides: Sequence[str] = (),
    update: bool = False,
    retry_failed: bool = False,
    recompute: Sequence[str] = (),
    **where: Any,
) -> Run:
    """Compute the cells of a job that the store lacks.

    Args:
        job: Path of a job file, or the name of a job that ships with stitchgrid.
        store: A folder, or s3://bucket/prefix; it is made if it is missing.
        address: `local`: on this machine, with Ray; `none`: in this process; `auto` or HOST:PORT: on a Ray cluster;
            None: small jobs in this process, others on this machine with Ray.
        overrides: Edits of the job, as `--set` takes them: "data.eval.samples=500".
        update: If the store has a sweep of this name with other cells, make the job its next revision.
        retry_failed: Compute again the cells that failed before.
        recompute: Globs over kinds of matchers and names of models, or "all": compute their cells again; the new rows
            replace the old ones.
        where: `workers`, `gpus_per_worker`, `cpus_per_worker`, `drain_seconds`.

    Returns:
        The sweep after the launch; some cells may have failed, see `Run.failures`.

    Raises:
        JobFileError: If the job cannot run.
        InputError: If a glob of `recompute` matches nothing.
        StitchgridError: If the store, the cluster or a network cannot be used.
        KeyboardInterrupt: If it was interrupted; what is finished is kept.
    """
    how = {"update": update, "retry_failed": retry_failed, "recompute": recompute}
    return run_job(load_job(os.fspath(job), tuple(overrides)), store, {"address": address, **where}, **how)


def resume(
    sweep: str,
    store: str | os.PathLike[str] = "./grid",
    *,
    address: str | None = None,
    retry_failed: bool = False,
    recompute: Sequence[str] = (),
    **where: Any,
) -> Run:
    """Continue a sweep where it stopped; arguments, result and errors are those of `launch`."""
    how = {"retry_failed": retry_failed, "same_code": True, "recompute": recompute}
    return run_job(stored_job(sweep, store), store, {"address": address, **where}, **how)


def plan(
    job: str | os.PathLike[str],
    store: str | os.PathLike[str] = "./grid",
    *,
    address: str | None = None,
    overrides: Sequence[str] = (),
    recompute: Sequence[str] = (),
    **where: Any,
) -> str:
    """Return what a launch would do and what it would cost, in words; arguments and errors are those of `launch`."""
    loaded = load_job(os.fspath(job), tuple(overrides))
    how = {"update": True, "retry_failed": False, "recompute": recompute}
    return plan_job(loaded, store, {"address": address, **where}, **how)


def images(job: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> Table:
    """Return the images that a job draws: one row each, in drawn order, first those of `fit`.

    The columns are `role` (fit or eval), `drawn` (position in drawn order), `split`, `listed` (position in the sorted
    listing of the split), `id` (path of the image, else its position) and `label`. If you give features instead of
    images, their rows are in the order of `listed` or of `drawn`, or each has its `id`.

    Raises:
        JobFileError: If the job is not valid.
        InputError: If its images cannot be read.
    """
    return Table(list_images(load_job(os.fspath(job), tuple(overrides))))


# Functions that the commands call ------------------------------------------------------------------------------------


def run_job(job: Job, store: str | os.PathLike[str], where: Mapping[str, Any], **how: Any) -> Run:
    """Launch a parsed job.

    Args:
        job: The job.
        store: As for `launch`.
        where: Arguments of `driver.Placement`: `address`, `workers` and so on.
        how: Arguments of `driver.Launch.run`.

    Returns:
        The sweep; its `summary` says what this launch did.
    """
    opened = Store.open(os.fspath(store), create=True)
    summary = Launch(job, opened, Placement(**where), Display()).run(**how)
    return Run(opened, job.name, summary=summary)


def plan_job(job: Job, store: str | os.PathLike[str], where: Mapping[str, Any], **how: Any) -> str:
    """Return what a launch of a parsed job would do, in words; `how` holds arguments of `driver.preview`."""
    return preview(job, os.fspath(store), where=Placement(**where), say=Display().say, **how)


def stored_job(sweep: str, store: str | os.PathLike[str]) -> Job:
    """Return the job of a sweep, as the store keeps it.

    Raises:
        StoreError: If the store has no such sweep.
    """
    return parse_job(Store.open(os.fspath(store)).read_job(sweep), title=f"the stored job of sweep {sweep!r}")
