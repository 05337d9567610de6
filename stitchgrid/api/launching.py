"""Launches from Python: as the commands, with errors raised and a `Run` returned."""

import os
from collections.abc import Sequence
from typing import Any

from stitchgrid.api.runs import Run
from stitchgrid.display import Display
from stitchgrid.driver import Launch, Where, preview
from stitchgrid.jobfile import load_job, parse_job
from stitchgrid.jobfile.job import Job
from stitchgrid.store import Store


def launch(
    job: str | os.PathLike[str],
    store: str | os.PathLike[str] = "./grid",
    *,
    address: str = "local",
    overrides: Sequence[str] = (),
    update: bool = False,
    retry_failed: bool = False,
    **where: Any,
) -> Run:
    """Compute what a job asks for and the store lacks.

    Args:
        job: Path of a job file, or the name of a job that ships with stitchgrid.
        store: A folder, or s3://bucket/prefix; it is made if it is not there.
        address: `local`: Ray on this machine; `none`: in this process; `auto` or HOST:PORT: on a Ray cluster.
        overrides: Edits of the job, as `--set` takes them: "data.eval.samples=500".
        update: Let the job be the next revision of a sweep of its name.
        retry_failed: Compute cells again that failed before.
        where: `workers`, `gpus_per_worker`, `cpus_per_worker`, `drain_seconds`.

    Returns:
        The sweep as it is then; cells may have failed, see `Run.failures`.

    Raises:
        JobFileError: If the job cannot run.
        StitchgridError: If the store, the cluster or a network cannot be used.
        KeyboardInterrupt: If it was interrupted; what is finished is kept.
    """
    return _run(
        load_job(os.fspath(job), tuple(overrides)), store, address, where, update=update, retry_failed=retry_failed
    )


def resume(
    sweep: str,
    store: str | os.PathLike[str] = "./grid",
    *,
    address: str = "local",
    retry_failed: bool = False,
    **where: Any,
) -> Run:
    """Go on with a sweep where it stopped; arguments, result and errors are those of `launch`."""
    job = parse_job(Store.open(os.fspath(store)).read_job(sweep), title=f"the stored job of sweep {sweep!r}")
    return _run(job, store, address, where, retry_failed=retry_failed, same_code=True)


def plan(
    job: str | os.PathLike[str],
    store: str | os.PathLike[str] = "./grid",
    *,
    address: str = "local",
    overrides: Sequence[str] = (),
    **where: Any,
) -> str:
    """Return what a launch would do and what it would cost, in words; arguments and errors are those of `launch`."""
    loaded = load_job(os.fspath(job), tuple(overrides))
    how = Where(address=address, **where)
    return preview(loaded, os.fspath(store), update=True, retry_failed=False, where=how, say=Display().say)


def _run(job: Job, store: str | os.PathLike[str], address: str, where: dict[str, Any], **how: Any) -> Run:
    opened = Store.open(os.fspath(store), create=True)
    Launch(job, opened, Where(address=address, **where), Display()).run(**how)
    return Run(opened, job.name)
