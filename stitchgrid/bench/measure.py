"""Time the parts of a job by the engine and by the reference (the textbook procedure), and compare their values."""

import resource
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import inf, isnan
from os import sched_getaffinity
from pathlib import Path
from statistics import fmean, median_low
from time import perf_counter

import torch

from stitchgrid.bench.parts import Part, irreducible_flops, parts_of, product_flops, sample_pairs
from stitchgrid.datasets import Images
from stitchgrid.driver.preview import EmptyStore, open_if_there
from stitchgrid.engine.host import processor
from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import InputError
from stitchgrid.jobfile import Job
from stitchgrid.planning import CPU_SPEED, GPU_SPEED
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.private_folder import private_space
from stitchgrid.records import Cell, Row, Sweep
from stitchgrid.reference import Reference
from stitchgrid.resolve import open_job_images, resolve
from stitchgrid.store import Store
from stitchgrid.worker import Worker

PLAIN_SECONDS = 2.0  # for how long a plain network is timed, in each memory format
REPEAT_SECONDS = 20.0  # for how long a part is computed again and again
PRODUCT_WIDTH = 2048  # rows and columns of the matrices whose product is timed
FLOOR = 1e-3  # values below this are compared absolutely
COUNTS = frozenset({"accuracy", "agreement", "penalty", "relative_accuracy"})  # these are compared absolutely, too


@dataclass(frozen=True, kw_only=True)
class ValueDifference:
    """The largest difference between engine and reference in a metric, and where it is."""

    difference: float  # relative; absolute for shares of images, and for values below 1e-3; inf: one is undefined
    engine: float | None
    reference: float | None
    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class PartFigures:
    """The measurements of one part."""

    name: str
    num_cells: int
    num_pairs: int
    num_reference_pairs: int  # layer pairs on which the reference ran; its time is scaled up to all pairs
    engine_seconds: float
    reference_seconds: float
    irreducible_seconds: float  # time of the irreducible network evaluations, at the speed of the plain networks
    product_seconds: float  # time of the matrix products of the values, at the speed of large products
    images_per_second: float  # the irreducible network evaluations, counted in passes of whole networks
    flops_per_second: float
    peak_bytes: int  # peak memory of the process, or of the GPU
    errors: int  # number of failed cells
    differences: dict[str, ValueDifference] = field(default_factory=dict)  # by metric

    @property
    def ratio(self) -> float:
        """Time of the reference divided by the time of the engine."""
        return self.reference_seconds / self.engine_seconds

    @property
    def overhead(self) -> float:
        """Time of the engine divided by the time of the irreducible network evaluations."""
        return self.engine_seconds / self.irreducible_seconds

    @property
    def over_arithmetic(self) -> float:
        """Time of the engine divided by the time of the irreducible network evaluations and matrix products."""
        return self.engine_seconds / (self.irreducible_seconds + self.product_seconds)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All measurements of a job, and the machine."""

    job: str
    machine: dict[str, str | int]
    settings: list[str]  # settings that the worker chose by itself
    plain_flops_per_second: dict[str, float]  # by network
    product_flops_per_second: dict[str, float]  # of large matrix products, by precision
    parts: list[PartFigures]


def run_bench(
    job: Job, store_uri: str, *, num_pairs: int | None, threads: int | None, say: Callable[[str], None]
) -> Bench:
    """Measure a job and return its figures; nothing is stored.

    Args:
        job: The job.
        store_uri: The store that holds trained networks, if the job needs any.
        num_pairs: Number of layer pairs on which the reference runs; None: all.
        threads: Number of threads; None: one per CPU.
        say: Called with messages about the progress.

    Raises:
        JobFileError: If the job cannot run.
        InputError: If it has features instead of a network, or a network that is still to be trained.
    """
    if given := [spec.name for spec in job.network_specs() if spec.is_features]:
        raise InputError(
            f"{', '.join(given)}: activations from files have no network that could be timed; leave them out of the "
            "job."
        )
    images = open_job_images(job)
    store = open_if_there(store_uri)
    sweep = _resolved(job, images, store, store_uri)
    with private_space("bench") as folder:
        uri = (store or Store.open(str(folder), create=True)).uri  # a worker reads trained networks from a store
        worker = Worker(store=uri, device=job.numerics.device, threads=threads)
        work = worker.workspace(sweep)
        say("plain networks")
        speeds = _plain_speeds(work)
        say("matrix products")
        products = {dtype: _product_speed(work, dtype) for dtype in (torch.float32, torch.float64)}
        parts = [
            _measure(part, worker, products, num_pairs=num_pairs, say=say)
            for part in parts_of(sweep, speed=GPU_SPEED if worker.device.type == "cuda" else CPU_SPEED)
        ]
    return Bench(
        job=job.name,
        machine=_machine(work),
        settings=worker.settings(sweep),
        plain_flops_per_second={sweep.networks[position].name: speed for position, speed in speeds.items()},
        product_flops_per_second={str(dtype).removeprefix("torch."): speed for dtype, speed in products.items()},
        parts=parts,
    )


def _resolved(job: Job, images: Images, store: Store | None, store_uri: str) -> Sweep:
    resolution = resolve(job, images, store or EmptyStore())
    if resolution.to_make:
        names = ", ".join(unit.spec.name for unit in resolution.to_make)
        raise InputError(f"{names}: not trained yet in store {store_uri}; launch the job first, then run bench.")
    return resolution.sweep


def _plain_speeds(work: Workspace) -> dict[int, float]:
    """Return position of a network -> FLOP/s of the plain network."""
    return {position: _plain_speed(work, position) for position in range(len(work.sweep.networks))}


@torch.no_grad()
def _plain_speed(work: Workspace, position: int) -> float:
    """Return FLOP/s of the network as it was built, in the faster memory format, at the job's batch and precision."""
    record = work.sweep.networks[position]
    size = min(work.sweep.batch_size, work.sweep.num_eval)
    images = apply_preprocess(work.images.eval.batch(torch.arange(size)), record.preprocess).to(work.device)
    best = 0.0
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = deepcopy(work.network(position).module).to(memory_format=memory_format)
        x = images.contiguous(memory_format=memory_format)
        with work.precision():
            try:
                network(x)
            except RuntimeError:  # its forward makes views that this memory format does not allow
                continue
            seconds = _typical_seconds(partial(network, x), work, of=PLAIN_SECONDS)
        best = max(best, size * record.flops / seconds)
    return best


@torch.no_grad()
def _product_speed(work: Workspace, dtype: torch.dtype) -> float:
    """Return FLOP/s of a product of two large matrices."""
    matrix = torch.rand(PRODUCT_WIDTH, PRODUCT_WIDTH, dtype=dtype, device=work.device)
    out = matrix @ matrix
    seconds = _typical_seconds(partial(torch.matmul, matrix, matrix, out=out), work, of=PLAIN_SECONDS / 2)
    return 2.0 * PRODUCT_WIDTH**3 / seconds


def _typical_seconds(compute: Callable[[], object], work: Workspace, *, of: float) -> float:
    """Return the median time of a computation (the lower of two medians), repeated for about `of` seconds."""
    times: list[float] = []
    _synchronise(work)
    while sum(times) + min(times, default=0.0) < of or not times:
        start = perf_counter()
        compute()
        _synchronise(work)
        times.append(perf_counter() - start)
    return median_low(times)


def _measure(
    part: Part,
    worker: Worker,
    product_speeds: dict[torch.dtype, float],
    *,
    num_pairs: int | None,
    say: Callable[[str], None],
) -> PartFigures:
    work = worker.workspace(part.sweep)
    pairs = part.layer_pairs()
    say(f"{part.name}: engine, {len(part.cells)} cells")
    speeds = [_plain_speeds(work)]  # before and after the engine, because the speed of machines varies
    rows, engine_seconds, peak_bytes = _engine(part, work, worker)
    speeds.append(_plain_speeds(work))
    chosen = pairs if num_pairs is None else sample_pairs(pairs, num_pairs, seed=part.sweep.seed)
    say(f"{part.name}: reference, {len(chosen)} of {len(pairs)} layer pairs")
    values, reference_seconds = _reference(chosen, work)
    flops = irreducible_flops(part)
    networks = part.sweep.networks
    return PartFigures(
        name=part.name,
        num_cells=len(part.cells),
        num_pairs=len(pairs),
        num_reference_pairs=len(chosen),
        engine_seconds=engine_seconds,
        reference_seconds=reference_seconds * len(pairs) / len(chosen),
        irreducible_seconds=fmean(sum(flops[one] / speed[one] for one in flops) for speed in speeds),
        product_seconds=sum(flops / product_speeds[dtype] for dtype, flops in product_flops(part).items()),
        images_per_second=sum(flops[position] / networks[position].flops for position in flops) / engine_seconds,
        flops_per_second=sum(flops.values()) / engine_seconds,
        peak_bytes=peak_bytes,
        errors=sum(row.error is not None for row in rows),
        differences=_differences(part.sweep, chosen, rows, values),
    )


def _engine(part: Part, work: Workspace, worker: Worker) -> tuple[list[Row], float, int]:
    """Return a part's rows, the time of computing them, and the peak of memory.

    A quick part is computed several times, because the first time includes allocating memory.
    """
    rows: list[Row] = []
    _forget_peak(work)

    def compute() -> None:
        rows[:] = [row for shard in part.shards for row in worker.rows(shard, work)]

    seconds = _typical_seconds(compute, work, of=REPEAT_SECONDS)
    return rows, seconds, _peak(work)


def _reference(pairs: Sequence[list[Cell]], work: Workspace) -> tuple[dict[str, dict[str, float]], float]:
    reference = Reference(work.sweep, work.images, work.network, device=work.device)
    start = perf_counter()
    values: dict[str, dict[str, float]] = {}
    for cells in pairs:
        values |= reference.values(cells)
    return values, perf_counter() - start


def _differences(
    sweep: Sweep, pairs: Sequence[list[Cell]], rows: Sequence[Row], values: dict[str, dict[str, float]]
) -> dict[str, ValueDifference]:
    came = {(row.cell_id, row.metric): row.value for row in rows}
    failed = {row.cell_id for row in rows if row.error is not None}  # counted, not compared
    worst: dict[str, ValueDifference] = {}
    for cell in (cell for cells in pairs for cell in cells if cell.cell_id not in failed):
        for metric, wanted in values[cell.cell_id].items():
            value = came.get((cell.cell_id, metric))
            found = ValueDifference(
                difference=_apart(metric, value, wanted),
                engine=value,
                reference=None if isnan(wanted) else wanted,
                source=_place(sweep, cell.source_key),
                target=_place(sweep, cell.target_key),
            )
            if metric not in worst or found.difference > worst[metric].difference:
                worst[metric] = found
    return worst


def _apart(metric: str, value: float | None, wanted: float) -> float:
    if value is None or isnan(wanted):
        return 0.0 if value is None and isnan(wanted) else inf
    if metric == "r2":  # r2 is 1 minus a ratio, and the rounding error is proportional to the ratio
        value, wanted = 1 - value, 1 - wanted
    return abs(value - wanted) / (1.0 if metric in COUNTS else max(abs(wanted), FLOOR))


def _place(sweep: Sweep, key: tuple[int, int]) -> str:
    network = sweep.networks[key[0]]
    return f"{network.name} {network.layers[key[1]].name}"


def _synchronise(work: Workspace) -> None:
    if work.device.type == "cuda":
        torch.cuda.synchronize(work.device)


def _forget_peak(work: Workspace) -> None:
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the process since its start
        return


def _peak(work: Workspace) -> int:
    if work.device.type == "cuda":
        return torch.cuda.max_memory_allocated(work.device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _machine(work: Workspace) -> dict[str, str | int]:
    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu",
        "cores": len(sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": work.sweep.precision,
        "batch_size": work.sweep.batch_size,
    }
