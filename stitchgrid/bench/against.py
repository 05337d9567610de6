"""Time the CKA of a job as a whole command, in turn with another program; each run is a process of its own."""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from stitchgrid.bench.processes import Spent, machine, run_timed, today
from stitchgrid.catalog import Catalog
from stitchgrid.driver.preview import EmptyStore
from stitchgrid.errors import InputError
from stitchgrid.jobfile import Job
from stitchgrid.models.architecture import find_code
from stitchgrid.models.build import build_network
from stitchgrid.models.freeze import thaw
from stitchgrid.precision import choose_device
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.private_folder import private_space
from stitchgrid.records import Network, Sweep
from stitchgrid.resolve import open_job_images, resolve
from stitchgrid.statistics.needs import images_of
from stitchgrid.store import Store

Rival = Literal["script", "pytorch-cka"]
ROUNDS = 5
SCRIPTS = {"script": "hook_script.py", "pytorch-cka": "pytorch_cka_script.py"}
ABOUT = {
    "script": "a script with hooks and Gram matrices in float32, all images at once",
    "pytorch-cka": "the average of an unbiased estimate over batches of 100 images: another statistic",
}


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The times of the runs of one command."""

    command: str
    seconds: tuple[float, ...]  # wall-clock time from start to end of the process
    cpu_seconds: tuple[float, ...]  # CPU time of all cores

    @property
    def medians(self) -> tuple[float, float]:
        """Median of the seconds, and median of the CPU seconds."""
        return median(self.seconds), median(self.cpu_seconds)


@dataclass(frozen=True, kw_only=True)
class Against:
    """The times of a job by stitchgrid and by a rival, another program."""

    job: str
    num_pairs: int  # layer pairs
    num_images: int
    engine_runs: Runs
    rival_runs: Runs
    about: str  # what the rival computes
    difference: float  # the largest difference between the two values of a layer pair
    date: str  # UTC
    machine: Mapping[str, str | int]

    @property
    def ratio(self) -> float:
        """Median wall-clock time of stitchgrid divided by that of the rival."""
        return self.engine_runs.medians[0] / self.rival_runs.medians[0]


def run_against(job: Job, launched: Sequence[str], rival: Rival, *, say: Callable[[str], None]) -> Against:
    """Return the times of `stitchgrid launch` and of a rival for the CKA of a job, run in turn; nothing is kept.

    The images are decoded beforehand for both: stitchgrid finds them in its cache, and the rival gets a file with the
    networks and their preprocessed images. Both times include loading, and stitchgrid's the writing of a store.

    Args:
        job: The job.
        launched: Arguments of `stitchgrid launch`: the job file, and its edits.
        rival: The program to compare with.
        say: Called with messages about the progress.

    Raises:
        InputError: If the rival cannot compute the job, or is not installed.
        JobFileError: If the job cannot run.
        StitchgridError: If one of the commands fails.
    """
    _require(rival)
    if told := _not_comparable(job):
        raise InputError(f"job {job.name!r} cannot be compared with {rival}: {'; '.join(told)}.")
    images = open_job_images(job)
    sweep = resolve(job, images, EmptyStore()).sweep
    if told := _not_modules(sweep):
        raise InputError(f"job {job.name!r} cannot be compared with {rival}: {'; '.join(told)}.")
    _, num_images = images_of(sweep, 0)
    with private_space("bench") as folder:
        inputs, values = folder / "inputs.pt", folder / "values.json"
        taken = {}
        for position in sorted({position for pair in sweep.pairs for position in pair}):
            network = sweep.networks[position]
            pixels = apply_preprocess(images.eval.batch(0, num_images), network.preprocess)
            taken[network.name] = (thaw(build_network(network.spec)), _modules(network), pixels)
        torch.save((taken, [(sweep.networks[f].name, sweep.networks[g].name) for f, g in sweep.pairs]), inputs)
        engine_runs: list[Spent] = []
        rival_runs: list[Spent] = []
        script = [sys.executable, str(Path(__file__).with_name(SCRIPTS[rival])), str(inputs), str(values)]
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}")
            store = folder / f"grid-{number}"
            command = [sys.executable, "-P", "-m", "stitchgrid.cli"]  # -P: no code of the current folder
            launch = [*command, "launch", *launched, "--store", str(store)]
            engine_runs.append(run_timed(launch, "stitchgrid launch"))
            rival_runs.append(run_timed(script, rival))
        difference = _difference(sweep, store, json.loads(values.read_text()))
    num_pairs = sum(len(sweep.networks[f].layers) * len(sweep.networks[g].layers) for f, g in sweep.pairs)
    return Against(
        job=job.name,
        num_pairs=num_pairs,
        num_images=num_images,
        engine_runs=_runs("stitchgrid launch", engine_runs),
        rival_runs=_runs(rival, rival_runs),
        about=ABOUT[rival],
        difference=difference,
        date=today(),
        machine=machine(),
    )


def _runs(command: str, spent: Sequence[Spent]) -> Runs:
    return Runs(
        command=command,
        seconds=tuple(one.seconds for one in spent),
        cpu_seconds=tuple(one.cpu_seconds for one in spent),
    )


def _require(rival: Rival) -> None:
    if rival == "pytorch-cka":
        try:
            importlib.metadata.version(rival)
        except importlib.metadata.PackageNotFoundError as problem:
            raise InputError(
                "pytorch-cka is not installed here; install it with pip install pytorch-cka, or use --against script."
            ) from problem


def _not_comparable(job: Job) -> list[str]:
    """Return the reasons for which a rival cannot compute a job, before its networks are read."""
    told = []
    matchers = job.matcher_specs()
    if others := [spec.kind for spec in matchers if spec.kind != "cka"]:
        told.append(f"it asks for {', '.join(dict.fromkeys(others))}, but both can compute only cka")
    elif len(matchers) != 1 or matchers[0].rank is not None:
        told.append("it must have exactly one matcher, cka of full rank")
    if job.controls.untrained or job.controls.shuffled or job.intervals.groups or job.probe_spec() is not None:
        told.append("it asks for controls, intervals or probes, which take additional time")
    if job.numerics.precision != "fp32" or job.numerics.compile:
        told.append("it does not use plain fp32")
    if choose_device(job.numerics.device) != "cpu":
        told.append('both compute on the CPU; set numerics.device = "cpu"')
    for spec in job.network_specs():
        if spec.is_features:
            told.append(f"model {spec.name!r} is features, not a network")
        elif spec.is_made:
            told.append(f"model {spec.name!r} is still to be trained; give it a checkpoint, or random weights")
        elif (code := find_code(spec)) is not None and code.is_own:
            told.append(f"model {spec.name!r} is made by your own code, which cannot be passed to another process")
    return told


def _not_modules(sweep: Sweep) -> list[str]:
    """Return the reasons for which hooks cannot read the layers of a sweep."""
    told = []
    for network in sweep.networks:
        known = dict(build_network(network.spec).named_modules())
        if missing := [layer.name for layer in network.layers if layer.name not in known]:
            told.append(
                f"hooks can read only outputs of modules, but {', '.join(missing)} of {network.name!r} are not; choose "
                "other layers with `layers`"
            )
    return told


def _modules(network: Network) -> list[str]:
    return [layer.name for layer in network.layers]


def _difference(sweep: Sweep, store: Path, values: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the largest difference between the values of a store and those of a script."""
    asked = "select source_model, source_index, target_model, target_index, value from results"
    with Catalog(Store.open(str(store))) as catalog:
        found = {tuple(row.values())[:4]: row["value"] for row in catalog.query(asked).to_pylist()}
    largest = 0.0
    for (f, g), matrix in zip(sweep.pairs, values, strict=True):
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                engine_value = found.get((sweep.networks[f].name, i, sweep.networks[g].name, j))
                largest = max(largest, abs((nan if engine_value is None else engine_value) - value))
    return largest


def against_text(found: Against) -> str:
    """Return the times as lines of text, for people."""
    lines = [f"{found.job}: cka of {found.num_pairs} layer pairs on {found.num_images:,} images"]
    width = max(len(runs.command) for runs in (found.engine_runs, found.rival_runs))
    for runs in (found.engine_runs, found.rival_runs):
        seconds, spent = runs.medians
        each = ", ".join(f"{one:.1f}" for one in runs.seconds)
        lines.append(f"  {runs.command:<{width}}  {seconds:6.2f} s, {spent:.2f} s of CPU time ({each})")
    return "\n".join(
        [
            *lines,
            f"medians of {len(found.engine_runs.seconds)} rounds in turn; each run is a process of its own, and images "
            "are decoded beforehand",
            f"{found.rival_runs.command}: {found.about}",
            f"ratio: stitchgrid takes {found.ratio:.2f} times as long",
            f"largest difference in value: {found.difference:.1e}",
            f"machine: {', '.join(f'{name} {value}' for name, value in found.machine.items())}; {found.date}",
        ]
    )


def against_json(found: Against) -> str:
    """Return the times as JSON."""

    def shown(runs: Runs) -> dict[str, Any]:
        seconds, spent = runs.medians
        return {
            "command": runs.command,
            "median_seconds": seconds,
            "median_cpu_seconds": spent,
            "seconds": runs.seconds,
            "cpu_seconds": runs.cpu_seconds,
        }

    table = {name: getattr(found, name) for name in ("job", "num_pairs", "num_images", "about", "difference", "date")}
    table |= {"ratio": found.ratio, "machine": dict(found.machine)}
    return json.dumps(
        table | {"engine_runs": shown(found.engine_runs), "rival_runs": shown(found.rival_runs)}, indent=2
    )
