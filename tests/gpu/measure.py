"""What a GPU does with the 8 x 8 grid of a ResNet-18 for images of 32x32, and the choices that only a GPU can settle.

Times are medians; networks have random weights and images are noise, since neither decides how long a thing takes. Each
question stands alone: what fails, or finds no time, says so in the JSON, and the others go on.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from xml.etree import ElementTree

import torch
from helpers_engine import matcher
from torch import Tensor

from stitchgrid.engine import stitched
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace
from stitchgrid.models.build import make_network
from stitchgrid.models.cut_network import cut_network_on
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.memory import kept_bytes
from stitchgrid.models.select import select_layers
from stitchgrid.planning import cost
from stitchgrid.precision import running_in
from stitchgrid.profiling.sample import Noise, NoisePair
from stitchgrid.records import DataSpec, MatcherSpec, Network, NetworkSpec, Preprocess, Shard, Sweep, canonical

ROUNDS = 3  # of which the median is told
PRECISIONS = ("fp32", "tf32", "bf16")
SIDE, NUM_CLASSES = 32, 10


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is computed: on a GPU what the targets are set for, in a rehearsal on a CPU hardly anything."""

    num_fit: int  # images of least squares
    num_train: int  # of an epoch of training
    num_eval: int
    product: int  # side of the matrices whose product is timed
    batch: int
    stacks: tuple[int, ...]
    decomposed: tuple[tuple[int, int], ...]  # (matrices, side)


GPU = Sizes(
    num_fit=1_000,
    num_train=50_000,
    num_eval=10_000,
    product=8_192,
    batch=256,
    stacks=(1_024, 2_048, 4_096, 8_192),
    decomposed=((64, 64), (64, 256), (32, 512)),
)
REHEARSAL = Sizes(
    num_fit=24, num_train=16, num_eval=16, product=256, batch=8, stacks=(16, 32), decomposed=((2, 16), (2, 32))
)


class Grid:
    """Every block of one ResNet-18 stitched into every other."""

    def __init__(self, device: torch.device, sizes: Sizes, *, width: int):
        self.device, self.sizes = device, sizes
        spec = NetworkSpec(
            name="resnet18", entry="resnet18", architecture="stitchgrid:resnet18", args=canonical({"width": width})
        )
        self.cut = cut_network_on(device, make_network(spec), (3, SIDE, SIDE), name="resnet18")
        layers = tuple(one.layer for one in select_layers(self.cut, ("blocks",)))
        self.record = Network(
            spec=spec,
            network_id="resnet18",
            weights_digest="random",
            preprocess=Preprocess(),
            layers=layers,
            num_cuts=len(self.cut.cuts),
            num_classes=NUM_CLASSES,
            num_parameters=sum(p.numel() for p in self.cut.module.parameters()),
            input_shape=(3, SIDE, SIDE),
            flops=self.cut.cuts[-1].layer.flops,
            num_kept_bytes=kept_bytes(self.cut.module, (3, SIDE, SIDE)),
        )

    @property
    def num_pairs(self) -> int:
        """Number of layer pairs."""
        return len(self.record.layers) ** 2

    def seconds(
        self, spec: MatcherSpec, *, num_fit: int, num_eval: int, precision: str = "fp32", rounds: int = ROUNDS
    ) -> dict[str, float]:
        """Return how long the whole grid takes with one matcher, and how fast that is."""
        sweep = Sweep(
            name="gpu",
            seed=0,
            data=DataSpec(dataset="noise"),
            networks=(self.record,),
            pairs=((0, 0),),
            matchers=(spec,),
            precision=precision,
            batch_size=self.sizes.batch,
            eval_data="eval",
            fit_data="fit",
            need_fit=None,
            num_fit=num_fit,
            num_eval=num_eval,
            num_fit_closed=num_fit,
            matcher_data=("data",),
        )
        images = NoisePair(
            fit=Noise(num_fit, (SIDE, SIDE), NUM_CLASSES, self.device),
            eval=Noise(num_eval, (SIDE, SIDE), NUM_CLASSES, self.device),
        )
        work = Workspace(sweep=sweep, images=images, network=lambda _: self.cut, device=self.device)  # type: ignore[arg-type]
        block = sweep.block(0, 0)
        shard = Shard(unit_id="gpu", blocks=(block,), matchers=(0,), flops=1.0, num_cells=self.num_pairs)

        def once() -> None:
            errors = {row.error for row in run_shard(shard, work)} - {None}
            if errors:
                raise RuntimeError(next(iter(errors)))

        took = timed(once, self.device, rounds=rounds)
        return {"seconds": took, "flops_per_second": cost(sweep, [block], (0,)) / took}


def timed(do: Callable[[], Any], device: torch.device, *, rounds: int = ROUNDS) -> float:
    """Return the median seconds of some rounds after a first one."""

    def once() -> float:
        wait(device)
        start = perf_counter()
        do()
        wait(device)
        return perf_counter() - start

    once()
    return median(once() for _ in range(rounds))


def wait(device: torch.device) -> None:
    """Wait for all that was asked of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(grid: Grid) -> dict[str, Any]:
    """Return where this is measured."""
    found: dict[str, Any] = {"torch": torch.__version__, "cpus": os.cpu_count(), "device": str(grid.device)}
    if grid.device.type == "cuda":
        of = torch.cuda.get_device_properties(grid.device)
        found |= {"gpu": of.name, "gpu_bytes": of.total_memory, "cuda": torch.version.cuda}
    return found


def ceilings(grid: Grid) -> dict[str, float]:
    """Return the FLOP/s of large matrix products by precision: what no network exceeds."""
    found = {}
    for name, dtype in (
        ("bf16", torch.bfloat16),
        ("tf32", torch.float32),
        ("fp32", torch.float32),
        ("fp64", torch.float64),
    ):
        side = grid.sizes.product
        x = torch.randn(side, side, device=grid.device).to(dtype)
        with running_in("tf32" if name == "tf32" else "fp32", grid.device):
            found[name] = 2 * side**3 / timed(lambda x=x: x @ x, grid.device)
    return found


def fit(grid: Grid) -> dict[str, Any]:
    """Return how long it takes to fit 64 maps; target: 0.2 s."""
    sizes = grid.sizes
    residual = matcher("direct", metrics=("residual",))
    return {p: grid.seconds(residual, num_fit=sizes.num_fit, num_eval=sizes.batch, precision=p) for p in PRECISIONS}


def evaluation(grid: Grid) -> dict[str, Any]:
    """Return how long it takes to evaluate 64 stitched networks on the evaluation images; target: 1.0 s."""
    sizes = grid.sizes
    direct = matcher("direct")
    return {p: grid.seconds(direct, num_fit=sizes.batch, num_eval=sizes.num_eval, precision=p) for p in PRECISIONS}


def epoch(grid: Grid) -> dict[str, Any]:
    """Return how long an epoch of task loss takes for 64 maps; target: 10 s."""
    sizes = grid.sizes
    spec = matcher("task_loss", epochs=1, batch_size=min(128, sizes.num_train))
    return {
        p: grid.seconds(spec, num_fit=sizes.num_train, num_eval=sizes.batch, precision=p, rounds=1)
        for p in ("bf16", "fp32")
    }


def host_waits(grid: Grid) -> dict[str, Any]:
    """Return how often the host waited for the GPU in the whole grid; wanted: none for each layer pair."""
    if grid.device.type != "cuda":
        return {"skipped": "only a GPU is waited for"}
    grid.seconds(matcher("direct"), num_fit=grid.sizes.batch, num_eval=grid.sizes.batch, rounds=1)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            grid.seconds(matcher("direct"), num_fit=grid.sizes.batch, num_eval=grid.sizes.batch, rounds=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{Path(one.filename).name}:{one.lineno}" for one in told if "synchroniz" in str(one.message)]
    runs = 2  # the first round, and the one that is timed
    return {
        "waits": len(waits) / runs,
        "per_layer_pair": len(waits) / runs / grid.num_pairs,
        "most": {place: waits.count(place) for place in sorted(set(waits), key=waits.count, reverse=True)[:12]},
    }


def layouts(grid: Grid) -> dict[str, Any]:
    """Return the seconds of a batch through the whole network, contiguous and channels-last, by precision."""
    images = torch.rand(grid.sizes.batch, 3, SIDE, SIDE, device=grid.device)
    found = {}
    for name in ("contiguous", "channels_last"):
        form = torch.contiguous_format if name == "contiguous" else torch.channels_last
        module = grid.cut.module.to(memory_format=form)  # type: ignore[call-overload]
        x = images.contiguous(memory_format=form)
        for precision in PRECISIONS:
            with torch.no_grad(), running_in(precision, grid.device):
                found[f"{name}, {precision}"] = timed(lambda module=module, x=x: module(x), grid.device, rounds=9)
    return found


def decompositions(grid: Grid) -> dict[str, Any]:
    """Return the seconds of batched SVD and eigh in float64 on the device, and on the host with the copies."""
    found = {}
    for num, side in grid.sizes.decomposed:
        x = torch.randn(num, side, side, dtype=torch.float64, device=grid.device)
        symmetric = x @ x.mT

        def svd(y: Tensor) -> Any:
            return torch.linalg.svd(y, full_matrices=False)

        for name, of, y in (("svd", svd, x), ("eigh", torch.linalg.eigh, symmetric)):
            found[f"{name} of {num} x {side}, device"] = timed(lambda of=of, y=y: of(y), grid.device)
            found[f"{name} of {num} x {side}, host"] = timed(
                lambda of=of, y=y: [one.to(grid.device) for one in of(y.cpu())], grid.device
            )
    return found


def stacks(grid: Grid) -> dict[str, Any]:
    """Return how long an evaluation takes with stacks of several sizes."""
    before = dict(stitched.STACK_IMAGES)
    try:
        found = {}
        for size in grid.sizes.stacks:
            stitched.STACK_IMAGES[grid.device.type] = size
            found[str(size)] = grid.seconds(
                matcher("direct"), num_fit=grid.sizes.batch, num_eval=grid.sizes.num_eval, precision="bf16", rounds=1
            )
        return found
    finally:
        stitched.STACK_IMAGES.update(before)


def compilation(grid: Grid) -> dict[str, Any]:
    """Return how long an evaluation takes with halves as they are, and compiled (after compilation)."""
    if grid.device.type != "cuda":
        return {"skipped": "on a CPU this takes minutes and tells nothing of a GPU"}
    found: dict[str, Any] = {}
    for name, compiles in (("eager", False), ("compiled", True)):
        with halves(grid.cut, compiles=compiles):
            start = perf_counter()
            took = grid.seconds(
                matcher("direct"), num_fit=grid.sizes.batch, num_eval=grid.sizes.num_eval, precision="bf16", rounds=1
            )
            found[name] = took | {"seconds_with_the_first_round": perf_counter() - start}
    return found


@contextmanager
def halves(network: CutNetwork, *, compiles: bool) -> Iterator[None]:
    """Let halves be made anew, compiled or not."""
    before, network.compiles = network.compiles, compiles
    try:
        yield
    finally:
        network.compiles = before


def graphs(grid: Grid) -> dict[str, Any]:
    """Return the seconds of a tail called as it is, and replayed from a CUDA graph."""
    if grid.device.type != "cuda":
        return {"skipped": "only a GPU has CUDA graphs"}
    layer = grid.record.layers[2]
    tail = grid.cut.suffix(layer.node)
    found = {}
    for num in (64, 256, 2_048):
        x = torch.randn(num, *layer.shape, device=grid.device).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), running_in("bf16", grid.device):
            found[f"eager, {num} images"] = timed(lambda x=x: tail(x), grid.device, rounds=9)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                tail(x)
            found[f"graph, {num} images"] = timed(graph.replay, grid.device, rounds=9)
    return found


QUESTIONS: tuple[Callable[[Grid], Any], ...] = (
    machine,
    ceilings,
    fit,
    evaluation,
    epoch,
    host_waits,
    layouts,
    decompositions,
    stacks,
    graphs,
    compilation,
)


def tests_told(path: Path | None) -> dict[str, Any]:
    """Return how the tests of values ended, from JUnit's XML."""
    if path is None or not path.exists() or not path.stat().st_size:
        return {"skipped": "no tests were run"}
    suite = ElementTree.parse(path).getroot()[0]
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} | {"failed": failed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the JSON after every question, so that a run that is cut short leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    chosen = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    device, sizes = torch.device("cuda" if has_gpu else "cpu"), GPU if has_gpu else REHEARSAL
    grid = Grid(device, sizes, width=64 if has_gpu else 4)
    found: dict[str, Any] = {"is_rehearsal": not has_gpu, "tests": tests_told(chosen.tests)}
    stop = perf_counter() + 60 * chosen.minutes
    for question in QUESTIONS:
        name, start = question.__name__, perf_counter()
        if start > stop:
            found[name] = {"skipped": "no time was left"}
            continue
        try:
            told = question(grid)
        except Exception as problem:  # of one question; the others go on
            told = {"error": f"{type(problem).__name__}: {problem}"}
        found[name] = told | {"asked_for_seconds": round(perf_counter() - start, 2)}
        sys.stderr.write(f"{name}: {json.dumps(told)}\n")
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    chosen.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    failed = found["tests"].get("failures", 0) + found["tests"].get("errors", 0)
    return int(bool(failed) or any("error" in one for one in found.values() if isinstance(one, dict)))


if __name__ == "__main__":
    raise SystemExit(main())
