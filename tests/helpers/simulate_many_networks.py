"""Plans and simulates a sweep of very many networks, by hand: what would it take, and what would break first?

`python tests/helpers/simulate_many_networks.py [NETWORKS [WORKERS ...]]`. Ten architectures of torchvision, at 224
pixels, stand for all networks, as if each had been trained from many seeds: four layers each, `cka_unbiased` on 500
images, and direct matching's residual of maps fitted on 1,000. Costs are those of the cost model; the speed of a GPU is
assumed.
"""

import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

from stitchgrid.driver.preview import EmptyStore
from stitchgrid.driver.sweep_tables import cell_table
from stitchgrid.jobfile import parse_job
from stitchgrid.planning import GPU_SPEED, make_plan
from stitchgrid.records import Sweep
from stitchgrid.resolve import open_job_images, resolve
from stitchgrid.scheduler import SimulationSettings, simulate

LAYERS = {
    "resnet18": ["layer1.1", "layer2.1", "layer3.1", "layer4.1"],
    "resnet50": ["layer1.2", "layer2.3", "layer3.5", "layer4.2"],
    "resnet101": ["layer1.2", "layer2.3", "layer3.22", "layer4.2"],
    "densenet121": ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.denseblock4"],
    "efficientnet_b0": ["features.2.1", "features.3.1", "features.5.2", "features.7.0"],
    "mobilenet_v3_large": ["features.3", "features.6", "features.12", "features.15"],
    "regnet_y_3_2gf": ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"],
    "convnext_tiny": ["features.1.2", "features.3.2", "features.5.8", "features.7.2"],
    "swin_t": ["features.1.1", "features.3.1", "features.5.5", "features.7.1"],
    "vit_b_16": [f"encoder.layers.encoder_layer_{k}" for k in (2, 5, 8, 11)],
}
FAILURES = {"crashes_per_hour": 0.01, "hangs_per_hour": 0.001, "node_losses_per_hour": 0.01}


def many(num_networks: int) -> Sweep:
    """Return a sweep of all pairs of so many networks."""
    models = [
        {"name": name, "architecture": f"torchvision:{name}", "weights": "random", "layers": layers}
        | {"preprocess": {"resize": [224, 224]}}
        for name, layers in LAYERS.items()
    ]
    data = {"dataset": "digits", "labels": "none", "fit": {"samples": 1000}, "eval": {"samples": 500}}
    matchers = [{"kind": "cka_unbiased"}, {"kind": "direct", "metrics": ["residual"]}]
    job = parse_job({"name": "many", "data": data, "models": models, "matchers": matchers}, title="many")
    sweep = resolve(job, open_job_images(job), EmptyStore()).sweep
    networks = tuple(
        replace(one, network_id=f"{one.network_id}{k}", spec=replace(one.spec, name=f"{one.name}/{k}"))
        for k in range(-(-num_networks // len(models)))
        for one in sweep.networks
    )[:num_networks]
    pairs = tuple((f, g) for f in range(num_networks) for g in range(num_networks))
    return replace(sweep, networks=networks, pairs=pairs)


def report(num_networks: int, workers: list[int]) -> Iterator[str]:
    """Yield lines about the plan and about each simulated run."""
    sweep = many(num_networks)
    start = perf_counter()
    plan = make_plan(sweep, EmptyStore(), speed=GPU_SPEED)
    seconds, peak = perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield f"{num_networks:,} networks: {plan.num_cells:,} cells, {len(plan.shards):,} shards, {plan.flops:.3g} FLOPs"
    yield f"planned in {seconds:.0f} s, up to {peak:.1f} GiB"
    start = perf_counter()
    rows, size = 0, 0
    for first in range(0, len(plan.shards), 1000):
        table = cell_table(sweep, plan.shards[first : first + 1000])
        rows, size = rows + table.num_rows, size + table.nbytes
    yield f"table of cells: {rows:,} rows, {size / 1e9:.1f} GB in memory, made in {perf_counter() - start:.0f} s"
    for num in workers:
        settings = SimulationSettings(num_workers=num, flops_per_second=GPU_SPEED, **FAILURES)
        start = perf_counter()
        yield f"{simulate(plan.todo, settings)}\n(simulated in {perf_counter() - start:.0f} s)"


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1300
    for line in report(number, [int(word) for word in sys.argv[2:]] or [8, 64, 512]):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
