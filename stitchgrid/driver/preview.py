"""What a launch would do, and at what cost, in words."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, product
from math import prod
from typing import Any

from rich.filesize import decimal

from stitchgrid.cluster.placement import Placement
from stitchgrid.datasets import Images
from stitchgrid.display import clock
from stitchgrid.driver.estimate import Estimate, estimate, evidence_shares, networks_to_train, pairs_to_try
from stitchgrid.driver.missing_artefacts import units_before
from stitchgrid.driver.network_remarks import network_remarks, versions_changed
from stitchgrid.driver.recompute import recomputation
from stitchgrid.driver.revision import check_same_cells, other_cells
from stitchgrid.driver.versions import version_lines
from stitchgrid.engine.host import Host
from stitchgrid.errors import NoStoreError, StoreError
from stitchgrid.jobfile import Job
from stitchgrid.matchers.layouts import is_known
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.planning import Plan, make_plan
from stitchgrid.printable import first_few
from stitchgrid.profiling.assumed_speed import planned_speed, speed_there
from stitchgrid.profiling.speed_trial import SpeedTrial, measure_speed
from stitchgrid.records import Network, NetworkSpec, ProbeNetwork, Sweep, TrainDetector
from stitchgrid.resolve import Resolution, not_made, open_job_images, resolve
from stitchgrid.scheduler import SimulationSettings, parse_settings, simulate
from stitchgrid.statistics.needs import images_of
from stitchgrid.store import CellStatus, Damage, Store


class EmptyStore:
    """Stands in for a store that a launch would make."""

    def has_artefact(self, kind: str, key: str) -> bool:  # noqa: ARG002
        """Return that nothing is there."""
        return False

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Refuse: nothing is there."""
        raise StoreError(f"no {kind} {key}: the store does not exist yet.")

    def artefact_generation(self, kind: str, key: str) -> int:  # noqa: ARG002
        """Return that nothing was made anew."""
        return 0

    def generation(self, cell_id: str) -> int | None:  # noqa: ARG002
        """Return that there are no rows."""
        return None

    def metrics_done(self, cell_id: str) -> frozenset[str]:  # noqa: ARG002
        """Return that nothing is done."""
        return frozenset()

    def failed(self, cell_id: str) -> str | None:  # noqa: ARG002
        """Return that nothing has failed."""
        return None


def preview(
    job: Job,
    store_uri: str,
    *,
    update: bool,
    retry_failed: bool,
    recompute: Sequence[str] = (),
    command: str = "",
    where: Placement | None = None,
    simulated: str | None = None,
    say: Callable[[str], None],
) -> str:
    """Return in words what a launch of the job would do; trains nothing, computes none of its cells, writes nothing.

    If there is work to do, the speed of a worker is measured `where` it would run. `say` gets remarks on the networks
    and on this measurement. With settings in `simulated`, the text also tells how a cluster of many workers, some of
    which fail, would compute the sweep. `command` is the command of the launch, to which the text may add options.

    Raises:
        InputError: If a glob to recompute matches nothing.
        JobFileError: If the job cannot run, or would be refused under its name.
        ClusterError: If there is no cluster at the address.
    """
    settings = None if simulated is None else parse_settings(simulated)
    images = open_job_images(job)
    store = open_if_there(store_uri)
    asked = recomputation(job, recompute, store)
    resolution = resolve(job, images, store or EmptyStore(), update=update, anew=asked.anew(job))
    again = asked.of_cells(resolution.sweep)
    evaluations = resolution.evaluations()
    for network, unit in zip(resolution.sweep.networks, evaluations, strict=True):
        found = _stored(store, "evaluation", unit.unit_id)
        for remark in network_remarks(network, found, resolution.class_names, precision=job.numerics.precision):
            say(f"{network.name}: {remark}")
        if changed := versions_changed(network, found):
            say(f"{network.name}: {changed}")
    for notice in geometry_notices(resolution.sweep):
        say(notice)
    where = where or Placement()
    speed = planned_speed(store, job.name, update=update) or speed_there(job.numerics.device, where)
    done = store.cell_status() if store else EmptyStore()
    plan = make_plan(resolution.sweep, done, retry_failed=retry_failed, again=again, speed=speed)
    if store:
        check_same_cells(store, resolution.sweep, plan.shards, update=update or asked.may_change(job))
    unproven = not_made("evaluation", evaluations, store or EmptyStore())
    before = units_before(resolution, plan, store or EmptyStore())
    num_unprobed, num_detectors = (sum(isinstance(unit, of) for unit in before) for of in (ProbeNetwork, TrainDetector))
    lines = list(_lines(job, store_uri, resolution, plan, num_unprobed=num_unprobed))
    if store and update and (differences := other_cells(store, resolution.sweep, plan.shards)):
        lines.append(f"a launch needs --update: the store has a sweep {job.name!r} with other cells")
        lines += [f"  {one}" for one in differences]
    if isinstance(done, CellStatus):
        lines += damage_notices(done.damaged)
        lines += version_lines(plan, done, again=again, command=command or f"stitchgrid launch {job.name}")
    cost: Estimate | None = None
    where = where.settled((plan.flops + sum(unit.flops for unit in before)) / plan.speed)
    if plan.todo or before:
        measured_speed = _measured_speed(job, plan, where, num_detectors=len(resolution.detectors()), say=say)
        cost = estimate(
            plan,
            measured_speed.trial,
            image_bytes=image_bytes(images),
            num_workers=measured_speed.size.num_workers,
            speed_share=measured_speed.speed_share,
            before=before,
        )
        lines += _cost(cost, measured_speed)
        if plan.sweep.compiles:
            lines.append("the time is that of networks which are not compiled; compiling them comes on top")
    if unproven:
        lines.append(f"networks to prove and to measure first: {len(unproven)}")
    if num_detectors:
        lines.append(f"detectors to train first: {num_detectors}")
    if settings is not None:
        measured = {} if cost is None else {"flops_per_second": cost.flops_per_second}
        settled = SimulationSettings(**{**measured, **settings})  # type: ignore[arg-type]
        lines.append(str(simulate(plan.todo, settled)))
    return "\n".join(lines)


def _measured_speed(
    job: Job, plan: Plan, where: Placement, *, num_detectors: int, say: Callable[[str], None]
) -> SpeedTrial:
    """Measure the speed of a worker, and say what could not be measured."""
    measured_speed = measure_speed(
        plan.sweep,
        pairs_to_try(plan.sweep, plan.todo or plan.shards),
        networks_to_train(plan.sweep),
        where,
        device=job.numerics.device,
        max_units=max(len(plan.shards), len(plan.sweep.networks), num_detectors),
        say=say,
    )
    for problem in measured_speed.trial.problems:
        say(f"The speed could not be measured for {problem}. That of the other work is taken instead.")
    return measured_speed


def _stored(store: Store | None, kind: str, key: str) -> dict[str, Any] | None:
    """Return a stored artefact, read from JSON; None if the store does not have it."""
    if store is None or not store.has_artefact(kind, key):
        return None
    found: dict[str, Any] = json.loads(store.read_artefact(kind, key))
    return found


def geometry_notices(sweep: Sweep) -> list[str]:
    """Return a line for each network whose sequences have an unknown grid, so that stitches into or from it fail."""
    stitchers = [spec for spec in sweep.matchers if MATCHERS[spec.kind].family == "stitcher"]
    failing: Counter[int] = Counter()
    for source, target in sweep.pairs:
        for f, g in product(sweep.networks[source].layers, sweep.networks[target].layers):
            unknown = {network for network, layer in ((source, f), (target, g)) if layer.is_in_order_only}
            num = sum(not is_known(f, g, Rules.of(spec)) for spec in stitchers) if unknown else 0
            failing.update(dict.fromkeys(unknown, num))
    return [
        f"{sweep.networks[k].name}: nothing tells how the tokens of its sequences lie on a grid, so that {num} of its "
        "cells will fail; give their grid in its table, such as tokens = { prefix = 1, grid = [4, 4] }"
        for k, num in sorted(failing.items())
        if num
    ]


def damage_notices(damaged: Sequence[Damage]) -> list[str]:
    """Return a line about files of the store that cannot be trusted or read; no line if there are none."""
    if not damaged:
        return []
    return [
        f"Warning: left out of the store: {first_few([str(one) for one in damaged], 3)}. Cells that are missing "
        "now are computed again; 'stitchgrid check' says more."
    ]


def open_if_there(uri: str) -> Store | None:
    """Return a store, None if it does not exist.

    Raises:
        StoreError: If the store cannot be read.
    """
    try:
        return Store.open(uri)
    except NoStoreError:
        return None


def image_bytes(images: Images) -> int:
    """Return the size of all decoded images, which each worker maps into memory."""
    return sum(
        (4 if split.is_float else 1) * split.channels * prod(split.size or (224, 224)) * split.num
        for split in (images.fit, images.eval)
    )


def _lines(job: Job, store_uri: str, resolution: Resolution, plan: Plan, *, num_unprobed: int) -> Iterator[str]:
    sweep = plan.sweep
    yield f"{job.name}, store {store_uri}"
    yield f"images: {sweep.data.dataset}, {sweep.num_fit} to fit on ({sweep.num_fit_closed} for closed forms), " + (
        f"{sweep.num_eval} to evaluate on"
    )
    yield from (f"  {notice}" for notice in resolution.notices)
    yield "models:"
    described = [(network.spec, _model(network)) for network in sweep.networks]
    yield from (f"  {named}: {text}" for named, text in _entries(described))
    yield "matchers:"
    for position, spec in enumerate(sweep.matchers):
        seed = "" if spec.seed is None else f" seed {spec.seed}"
        yield f"  {spec.kind}{seed} {spec.params}, {_looks_at(sweep, position)}: {', '.join(spec.metrics)}"
    yield from evidence_lines(sweep)
    if sweep.probes is not None:
        yield _probes(sweep, num_unprobed)
    for what, is_twin in (("train", False), ("initialise", True)):
        if to_make := [(unit.spec, "") for unit in resolution.to_make if unit.spec.is_twin == is_twin]:
            yield f"networks to {what} first: {', '.join(named for named, _ in _entries(to_make))}"
    yield f"cells: {plan.num_cells}, to compute {plan.num_todo}, done {plan.num_done}"
    yield from (f"  {count} {reason}" for reason, count in sorted(plan.reasons.items(), key=lambda one: -one[1]))
    yield f"shards: {len(plan.shards)}, to run {len(plan.todo)}"


def evidence_lines(sweep: Sweep) -> list[str]:
    """Return a line for each kind of evidence that a sweep has, with the share of operations that it adds."""
    told = evidence_told(sweep)
    return [f"{told[name]}: {100 * share:+.0f} % operations" for name, share in evidence_shares(sweep).items()]


def evidence_told(sweep: Sweep) -> dict[str, str]:
    """Return in words what evidence a sweep has, by the names of `evidence_shares`."""
    trained = dict.fromkeys(spec.kind for spec in sweep.matchers if MATCHERS[spec.kind].is_trained)
    but = f" (not for {', '.join(trained)}: trained maps are not trained anew)" if trained else ""
    found = {
        "untrained": (
            any(network.spec.is_twin for network in sweep.networks),
            "untrained twins of all trained networks, as sources",
        ),
        "shuffled": (sweep.shuffles, f"{sweep.shuffles} draw{'s' * (sweep.shuffles > 1)} of shuffled images{but}"),
        "groups": (sweep.groups, f"intervals from {sweep.groups} groups of evaluation images, with maps held fixed"),
    }
    return {name: text for name, (is_there, text) in found.items() if is_there}


def matcher_lines(sweep: Sweep) -> list[str]:
    """Return a line for each kind of matcher and the images it looks at, whatever its seeds, ranks and parameters."""
    found = Counter((spec.kind, _looks_at(sweep, position)) for position, spec in enumerate(sweep.matchers))
    return [f"{kind}{'' if num == 1 else f' ({num} times)'}: {seen}" for (kind, seen), num in found.items()]


def _looks_at(sweep: Sweep, matcher: int) -> str:
    """Return on how many images a matcher is fitted, for how long if it is trained, and on how many it is evaluated."""
    spec, (num_fit, num_eval) = sweep.matchers[matcher], images_of(sweep, matcher)
    kind = MATCHERS[spec.kind]
    if kind.family == "index":
        return f"on {num_eval} images"
    if not kind.is_trained:
        return f"fitted on {num_fit} images"
    epochs, steps = spec.values["epochs"], -(-num_fit // spec.values["batch_size"])
    times = f"{epochs} epoch{'s' * (epochs > 1)} of {steps} step{'s' * (steps > 1)}"
    return f"trained on {num_fit} images for {times}"


def _probes(sweep: Sweep, num_unprobed: int) -> str:
    assert sweep.probes is not None
    ranks = ", ".join("full" if rank is None else str(rank) for rank in sweep.probes.ranks)
    return (
        f"probes: rank {ranks}, C = {sweep.probes.C:g}, fitted on {sweep.num_probe_fit} images; "
        f"networks to probe: {num_unprobed}"
    )


def _entries(described: Iterable[tuple[NetworkSpec, str]]) -> Iterator[tuple[str, str]]:
    """Yield the names of networks, and their text; alike networks of one entry of the job are named together."""
    for (_, text), alike in groupby(described, lambda one: (one[0].entry, one[1])):
        names = [spec.name for spec, _ in alike]
        yield ", ".join(names) if len(names) <= 2 else f"{names[0]} .. {names[-1]} ({len(names)} networks)", text


def _model(network: Network) -> str:
    if network.spec.is_features:
        layers = f"{len(network.layers)} of {network.num_cuts} layers"
        span = f"{network.layers[0].name} .. {network.layers[-1].name}"
        return f"activations from {network.spec.weights}, {layers} ({span})"
    layers = f"{len(network.layers)} of {network.num_cuts} cuts"
    to_come = "" if network.is_known else ", to be initialised" if network.spec.is_twin else ", to be trained"
    return (
        f"{network.spec.architecture}, {layers} ({network.layers[0].name} .. "
        f"{network.layers[-1].name}), {network.num_parameters:,} parameters, {network.flops / 1e6:.4g} MFLOP an image"
        + to_come
    )


def _cost(cost: Estimate, measured_speed: SpeedTrial) -> Iterator[str]:
    place, num = measured_speed.trial.place, measured_speed.size.num_workers
    threads = f"{place.threads} thread" + "s" * (place.threads > 1)
    yield (
        f"cost: {cost.flops:.3g} FLOPs, at {cost.flops_per_second / 1e9:.3g} GFLOP/s a worker about "
        f"{clock(cost.seconds)} on {num} worker{'s' * (num > 1)}, plus start-up"
    )
    yield f"measured on {place.host}: {place.device} ({place.name}), {threads}, {place.precision}" + _busy(place)
    yield (
        f"each worker: {decimal(cost.image_bytes)} of images, up to {decimal(cost.worker_bytes)} of memory "
        f"({decimal(place.memory_bytes)} free there); all: {decimal(cost.result_bytes)} of results"
    )


def _busy(place: Host) -> str:
    """Return a remark if other processes used the CPUs meanwhile, else nothing."""
    if not place.is_busy:
        return ""
    taken = f"{place.others_cpus:.1f} of {place.num_cpus}"
    return f"; other processes used {taken} CPUs meanwhile, so the time is less certain"
