"""Time a job at growing sizes, to see how its time, memory and results grow; each launch is a process of its own."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, get_args

from rich.filesize import decimal
from scipy.optimize import brentq

from stitchgrid.bench.processes import Spent, machine, run_timed, today
from stitchgrid.driver.preview import EmptyStore
from stitchgrid.errors import InputError
from stitchgrid.jobfile import Job, parse_job
from stitchgrid.planning import make_plan
from stitchgrid.private_folder import private_space
from stitchgrid.profiling.sample import spread
from stitchgrid.records import Sweep
from stitchgrid.resolve import open_job_images, resolve

Axis = Literal["images", "layers", "networks", "matchers"]
AXES: tuple[Axis, ...] = get_args(Axis)
MOST_SIZES = 6
ROUNDS = 3
FEWEST = 8  # images: of fewer, some measures are undefined
STEEPEST = 8.0  # largest exponent that is looked for


@dataclass(frozen=True, kw_only=True)
class GrowthPoint:
    """A job of one size: medians of its launches."""

    size: int  # of the axis: images of each split, layers of each network, networks or matchers
    num_cells: int
    seconds: float  # wall-clock time of the whole command
    cpu_seconds: float
    peak_bytes: int  # memory of the process
    result_bytes: int  # of the store's parts


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a job grows along one axis."""

    job: str
    axis: Axis
    points: tuple[GrowthPoint, ...]  # from the smallest to the largest size
    date: str  # UTC
    machine: Mapping[str, str | int]

    @property
    def exponent(self) -> float:
        """Power of the size with which the CPU time grows beyond what every launch takes; NaN if it cannot be told."""
        return exponent([(one.size, one.cpu_seconds) for one in self.points])


def exponent(measured: Sequence[tuple[float, float]]) -> float:
    """Return the p of a + b n^p through the last three points (n, seconds); NaN if there is none from 0 to `STEEPEST`.

    >>> round(exponent([(1, 5.0), (2, 8.0), (4, 20.0)]), 6)  # 4 + n^2
    2.0
    """
    if len(measured) < 3:
        return nan
    (n1, t1), (n2, t2), (n3, t3) = measured[-3:]
    if t2 <= t1 or t3 <= t2:
        return nan

    def excess(p: float) -> float:
        return float((n3**p - n2**p) / (n2**p - n1**p) - (t3 - t2) / (t2 - t1))

    least = 1e-6
    return float(brentq(excess, least, STEEPEST)) if excess(least) <= 0 <= excess(STEEPEST) else nan


class _Variant(NamedTuple):
    """A job of one size."""

    size: int
    job: Job
    num_cells: int


def run_growth(job: Job, axis: Axis, *, say: Callable[[str], None]) -> Growth:
    """Return what launches of a job take at up to `MOST_SIZES` sizes, each twice the one before; nothing is kept.

    Each launch is a process that computes with one thread into a new store, and finds decoded images in the cache.
    Sizes are measured in turn, `ROUNDS` times; medians count.

    Args:
        job: The job.
        axis: What grows: the images of both splits, the layers of every network, the networks of the entry with most
            `seeds` (no other entry takes part), or the matchers, in the order of the job.
        say: Called with messages about the progress.

    Raises:
        InputError: If the job has fewer than two sizes along the axis.
        JobFileError: If the job cannot run.
        StitchgridError: If a launch fails.
    """
    variants = _variants(job, axis)
    took: dict[int, list[tuple[Spent, int]]] = {one.size: [] for one in variants}
    with private_space("growth") as folder:
        for number in range(ROUNDS):
            for variant in variants:
                say(f"{axis}: {variant.size}, round {number + 1} of {ROUNDS}")
                took[variant.size].append(_launch(variant.job, folder / f"{variant.size}-{number}"))
    return Growth(
        job=job.name,
        axis=axis,
        points=tuple(_point(one, took[one.size]) for one in variants),
        date=today(),
        machine=machine(),
    )


def _point(variant: _Variant, took: Sequence[tuple[Spent, int]]) -> GrowthPoint:
    return GrowthPoint(
        size=variant.size,
        num_cells=variant.num_cells,
        seconds=median(spent.seconds for spent, _ in took),
        cpu_seconds=median(spent.cpu_seconds for spent, _ in took),
        peak_bytes=max(spent.peak_bytes for spent, _ in took),
        result_bytes=took[0][1],
    )


def _variants(job: Job, axis: Axis) -> list[_Variant]:
    sweep = _sweep(job)
    most = _most(job, sweep, axis)
    sizes = doublings(most, exact=axis == "images")
    if len(sizes) < 2:
        raise InputError(f"job {job.name!r} cannot grow in {axis}: two sizes are wanted, and it has {most}.")
    sized = [(size, _sized(job, sweep, axis, size)) for size in sizes]
    return [_Variant(size, one, make_plan(_sweep(one), EmptyStore()).num_cells) for size, one in sized]


def doublings(most: int, *, exact: bool) -> list[int]:
    """Return up to `MOST_SIZES` sizes, each twice the one before, of which the last is at most `most`.

    They are powers of two; numbers of images (`exact`) are as near to `most` as they can be, and `FEWEST` at least.

    >>> doublings(27, exact=False), doublings(8000, exact=True)
    ([1, 2, 4, 8, 16], [250, 500, 1000, 2000, 4000, 8000])
    """
    bits = max(most // FEWEST if exact else most, 1).bit_length()
    times = min(MOST_SIZES, bits) - 1
    first = most >> times if exact else 1 << (bits - 1 - times)
    return [first << k for k in range(times + 1)]


def _most(job: Job, sweep: Sweep, axis: Axis) -> int:
    """Return the largest size of a job along an axis."""
    if axis == "images":
        return min(sweep.num_fit, sweep.num_eval)
    if axis == "layers":
        return min(len(network.layers) for network in sweep.networks)
    if axis == "networks":
        return max(len(one.seeds or ()) for one in job.models)
    return len(job.matchers)


def _sized(job: Job, sweep: Sweep, axis: Axis, size: int) -> Job:
    """Return a job of a smaller size along an axis."""
    table = job.to_dict()
    if axis == "images":
        table["data"]["fit"]["samples"] = table["data"]["eval"]["samples"] = size
    elif axis == "layers":
        names = {network.spec.entry: [layer.name for layer in network.layers] for network in sweep.networks}
        for entry in table["models"]:
            entry["layers"] = spread(names[entry["name"]], size)
    elif axis == "networks":
        entry = max(table["models"], key=lambda one: len(one.get("seeds") or ()))
        table["models"], table["grid"]["pairs"] = [{**entry, "seeds": entry["seeds"][:size]}], "all"
    else:
        table["matchers"] = table["matchers"][:size]
    return parse_job(table, title=job.name)


def _sweep(job: Job) -> Sweep:
    return resolve(job, open_job_images(job), EmptyStore()).sweep


def _launch(job: Job, folder: Path) -> tuple[Spent, int]:
    """Launch a job in a process of its own, into a new store in `folder`; return what it took, and its results' bytes.

    Raises:
        StitchgridError: If it fails.
    """
    folder.mkdir()
    described, store = folder / "job.json", folder / "grid"
    described.write_text(json.dumps(job.to_dict()))
    script = ("-P", "-m", "stitchgrid.bench.launch_script")  # -P: no code of the current folder
    spent = run_timed([sys.executable, *script, str(described), str(store)], f"a launch of {job.name!r}")
    return spent, sum(path.stat().st_size for path in store.rglob("*.parquet"))


def growth_text(found: Sequence[Growth]) -> str:
    """Return the figures as a table for each axis, for people."""
    return "\n\n".join(map(_table, found))


def _table(growth: Growth) -> str:
    lines = [f"{growth.job}: growth in {growth.axis}"]
    lines.append(f"{growth.axis:>10} {'cells':>10} {'seconds':>9} {'CPU s':>9} {'memory':>10} {'results':>10}")
    for one in growth.points:
        sizes = f"{decimal(one.peak_bytes):>10} {decimal(one.result_bytes):>10}"
        lines.append(f"{one.size:>10,} {one.num_cells:>10,} {one.seconds:>9.1f} {one.cpu_seconds:>9.1f} {sizes}")
    power = f"{growth.exponent:.2f}" if isfinite(growth.exponent) else "unknown"
    machine = ", ".join(f"{name} {value}" for name, value in growth.machine.items())
    return "\n".join(
        [
            *lines,
            f"exponent of {growth.axis} in the CPU time that is not every launch's, from the last three sizes: {power}",
            f"medians of {ROUNDS} rounds in turn, one thread; machine: {machine}; {growth.date}",
        ]
    )


def growth_json(found: Sequence[Growth]) -> str:
    """Return the figures as JSON, a list with an item for each axis; an unknown exponent is null."""
    tables = [asdict(one) | {"exponent": one.exponent if isfinite(one.exponent) else None} for one in found]
    return json.dumps(tables, indent=2)
