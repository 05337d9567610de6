"""Checks a job before a launch: that images decode and weights load, and each network's proof on real images."""

from collections.abc import Iterator
from functools import cache

import torch

from stitchgrid.cluster.placement import Placement
from stitchgrid.datasets import Images
from stitchgrid.datasets.device_images import near
from stitchgrid.driver.machine_check import Finding, examine_ray, fail
from stitchgrid.driver.missing_artefacts import units_before
from stitchgrid.driver.network_remarks import network_remarks
from stitchgrid.driver.preview import EmptyStore, open_if_there
from stitchgrid.engine.host import set_up_torch
from stitchgrid.engine.plain_networks import measure_network
from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import JobFileError, StitchgridError, is_out_of_memory, one_line
from stitchgrid.jobfile import Job
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.planning import make_plan
from stitchgrid.precision import choose_device
from stitchgrid.printable import first_few
from stitchgrid.profiling.assumed_speed import planned_speed, speed_there
from stitchgrid.resolve import ArtefactReader, Resolution, load_network, open_job_images, resolve
from stitchgrid.store import Store

SHOWN = 5  # names of classes in a message


def examine_job(job: Job, store_uri: str, address: str | None = None) -> Iterator[Finding]:
    """Yield findings about a job's device, images and networks; works in this process, trains and stores nothing.

    Where no `address` is given, Ray is examined as well if a launch would use it for this job.

    A network that the store holds is proven as it is stored. A network that is still to be trained gets a note.
    """
    try:
        device = torch.device(choose_device(job.numerics.device))
    except StitchgridError as problem:
        yield fail("device", problem)
        return
    yield Finding(what="device", told=str(device))
    try:
        images = open_job_images(job)
    except StitchgridError as problem:
        yield fail("images", problem)
        return
    yield from _of_images(images)
    try:
        store = open_if_there(store_uri)
        artefacts: ArtefactReader = store or EmptyStore()
        resolution = resolve(job, images, artefacts)
        where = settled_place(job, resolution, store) if address is None else None
    except JobFileError as problem:
        yield from (fail("job", one) for one in problem.problems or (str(problem),))
        return
    except StitchgridError as problem:
        yield fail("networks", problem)
        return
    if where == "local":
        yield examine_ray("local")
    elif where is not None:
        yield Finding(what="Ray", told="not needed: the job is small enough for one process")
    yield from _of_networks(resolution, images, artefacts, device)


def settled_place(job: Job, resolution: Resolution, store: Store | None) -> str | None:
    """Return the address at which a launch computes a job if the user names none: "local", or "none" without Ray."""
    where = Placement()
    speed = planned_speed(store, job.name, update=True) or speed_there(job.numerics.device, where)
    done = store.cell_status() if store else EmptyStore()
    plan = make_plan(resolution.sweep, done, retry_failed=False, speed=speed)
    before = units_before(resolution, plan, store or EmptyStore())
    return where.settled((plan.flops + sum(unit.flops for unit in before)) / plan.speed).address


def _of_images(images: Images) -> Iterator[Finding]:
    names = images.class_names
    some = first_few(names, SHOWN)
    size = images.eval.size
    told = f"{size[0]}x{size[1]} pixels" if size else "of several sizes"
    told += "" if images.eval.channels == 3 else f" with {images.eval.channels} channels"
    yield Finding(
        what="images",
        told=f"{images.fit.num:,} to fit on and {images.eval.num:,} to report on can be decoded, {told}, "
        f"{len(names)} classes ({some})",
    )
    if images.num_bad:
        yield Finding(what="images", told=f"{images.num_bad} cannot be read, and are left out", state="note")
    yield from (Finding(what="images", told=notice, state="note") for notice in images.notices)


def _of_networks(
    resolution: Resolution, images: Images, artefacts: ArtefactReader, device: torch.device
) -> Iterator[Finding]:
    """Yield for each network whether its weights load, then whether it is proven, or what is wrong."""
    sweep = resolution.sweep
    set_up_torch(None)

    @cache
    def network(position: int) -> CutNetwork:
        return load_network(sweep.networks[position], artefacts, device=device)

    work = Workspace(sweep=sweep, images=near(images, device), network=network, device=device)
    for position, record in enumerate(sweep.networks):
        if record.spec.is_twin:  # has the architecture of a network that is examined anyway
            continue
        what = f"network {record.name}"
        layers = f"{len(record.layers)} layers ({record.layers[0].name} .. {record.layers[-1].name})"
        if not record.is_known:
            yield Finding(what=what, told=f"{layers}; a launch trains it first, and proves it then", state="note")
            continue
        yield Finding(what=what, told=f"weights load, {record.num_parameters:,} parameters, {layers}")
        try:
            found = measure_network(work, position)
        except Exception as problem:  # the network's own code may fail in any way
            told = "there is not enough memory; set [numerics] batch_size lower" if is_out_of_memory(problem) else ""
            yield fail(what, told or one_line(problem))
            continue
        finally:
            network.cache_clear()
        if found["problems"]:
            yield fail(what, f"refused: {'; '.join(found['problems'])}")
            continue
        accuracy = "" if found["accuracy"] is None else f", accuracy {found['accuracy']:.3f}"
        yield Finding(what=what, told=f"proven on real images{accuracy}")
        for remark in network_remarks(record, found, resolution.class_names, precision=sweep.precision):
            yield Finding(what=what, told=remark, state="note")
