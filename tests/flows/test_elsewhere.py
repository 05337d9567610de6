"""The engine on a device that is not the CPU: everything lies where it is used, and the host seldom waits."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers_elsewhere import ARRIVALS, IS_POSSIBLE, NAME, appear, in_process_of_its_own, moved, working_there
from helpers_engine import (
    FEW,
    FakeImages,
    FakeSplit,
    assert_close,
    every_cell,
    make_sweep,
    matcher,
    network_record,
    trained_zoo,
    values,
    whole_shard,
    workspace,
)
from helpers_flow import run as command
from torch import Tensor

from stitchgrid import worker
from stitchgrid.catalog import Catalog
from stitchgrid.datasets.device_images import ResidentImages
from stitchgrid.engine import stitched
from stitchgrid.engine.energy_detector import train_detector
from stitchgrid.engine.probes import Probe, probe_layers
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace, forward
from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.models.cut_network import cut_network
from stitchgrid.records import EnergyRecipe, EnergySpec, MatcherSpec, Preprocess, ProbeSpec, Row, canonical
from stitchgrid.store import Store

pytestmark = pytest.mark.skipif(not IS_POSSIBLE, reason="this torch knows no devices made in Python")

PAIRS = [("conv", "conv"), ("conv", "token"), ("token", "view")]
RECIPE = EnergyRecipe(epochs=1, finetune_epochs=1, width=4, depth=1, batch_size=32)
LAYERS = FEW | {"conv": (0, 1, 2, 3)}
KEYS = [(0, 2), (1, 0), (0, 3)]  # a map, tokens, a vector


JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
eval = { split = "test", samples = 48 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = { train = "short" }
[recipes.short]
epochs = 1
augment = "crop4_flip"
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka"
"""


class Ranges(FakeSplit):
    """Images that are asked for by their first and last position."""

    def batch(self, start: int, stop: int) -> Tensor:  # type: ignore[override]
        return self.pixels[start:stop]


@dataclass(frozen=True)
class Seen:
    """What came of the same work on the device that is elsewhere, and on the CPU."""

    there: list[Row]
    here: list[Row]
    probes: list[list[Probe]]  # there, here
    sanity: list[list[float]]  # of trained detectors, there and here
    num_waits: list[int]  # of the host, for a network with two layers and with four
    num_arrivals: list[int]  # of what the host sends, likewise
    num_cells: list[int]
    sized: list[Tensor]  # a layer's activations of images that differ in size: there, here
    launched: list[dict[tuple[str, ...], float]]  # what a whole launch stores, training included: there, here


STITCHER_METRICS = tuple(metric.name for metric in OF_STITCHERS if metric.name != "residual_at")


def matchers() -> list[MatcherSpec]:
    trained = [matcher("task_loss", metrics=STITCHER_METRICS, epochs=1, augment=how) for how in ("none", "crop4_flip")]
    stitchers = [matcher("direct", metrics=STITCHER_METRICS), *trained]
    indices = [matcher(kind) for kind in ("cka", "pwcca", "procrustes")]
    reduced = [replace(one, params=canonical({**one.values, "rank": 2})) for one in [stitchers[0], *indices]]
    return [*stitchers, *indices, *reduced]


def look() -> Seen:
    device = appear()
    stitched.STACK_IMAGES[device.type] = stitched.STACK_IMAGES["cuda"]
    torch.set_num_threads(1)
    zoo = trained_zoo()
    energy = EnergySpec(recipe=RECIPE, num_fit=64, fit_data="fit")
    probes_of = ProbeSpec(ranks=(None, 2), samples=60)
    sweep = replace(
        make_sweep(zoo, PAIRS, matchers(), layers=LAYERS), energy=energy, probes=probes_of, groups=3, shuffles=2
    )
    work = workspace(zoo, sweep)
    detectors = {
        (network, layer): train_detector(work, (network, layer), None)
        for network in {target for _, target in sweep.pairs}
        for layer in range(len(sweep.networks[network].layers))
    }
    work = replace(work, detector=detectors.__getitem__)
    here = run_shard(whole_shard(sweep), work)
    with working_there() as waits:
        cut = {name: cut_network(moved(network.module), network.input_shape) for name, network in zoo.cut.items()}
        elsewhere = Workspace(
            sweep=sweep,
            images=ResidentImages(FakeImages(fit=Ranges(160, seed=1), eval=Ranges(90, seed=2)), device),
            network=lambda position: cut[sweep.networks[position].name],
            device=device,
            detector={key: moved(detector) for key, detector in detectors.items()}.__getitem__,
        )
        there = run_shard(whole_shard(sweep), elsewhere)
        probes = probe_layers(elsewhere, 0)
        trained = [train_detector(elsewhere, key, None) for key in KEYS]
        sized = [of_images_that_differ_in_size(one) for one in (elsewhere, work)]
        num_waits, num_arrivals, num_cells = [], [], []
        for layers in (2, 4):
            some = make_sweep(zoo, PAIRS[:1], matchers())
            some = replace(some, networks=(network_record(zoo, "conv", range(layers)),))
            waits.clear()
            run_shard(whole_shard(some), replace(elsewhere, sweep=some))
            num_arrivals.append(waits[ARRIVALS])
            num_waits.append(waits.total() - waits[ARRIVALS])
            num_cells.append(len(every_cell(some)))
    with tempfile.TemporaryDirectory() as folder:
        launched = [launch(folder, "here")]
        worker.choose_device = lambda word: NAME
        with working_there() as waits:
            launched.insert(0, launch(folder, "there"))
        assert waits.total(), "nothing was computed there"
    return Seen(
        there=there,
        here=here,
        probes=[probes, probe_layers(work, 0)],
        sanity=[[d.sanity_auroc.item() for d in trained], [detectors[key].sanity_auroc.item() for key in KEYS]],
        num_waits=num_waits,
        num_arrivals=num_arrivals,
        num_cells=num_cells,
        sized=sized,
        launched=launched,
    )


def of_images_that_differ_in_size(work: Workspace) -> Tensor:
    """Return a layer's activations of images that come one by one from the host."""
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(256, (3, 20 + k, 17), generator=generator, dtype=torch.uint8) for k in range(3)]
    network = replace(work.sweep.networks[0], preprocess=Preprocess(resize=(12, 12)))
    work = replace(work, sweep=replace(work.sweep, networks=(network, *work.sweep.networks[1:])))
    return forward(work, pixels, {0: [1]})[0][0, 1].cpu()


def launch(folder: str, name: str) -> dict[tuple[str, ...], float]:
    """Return what a launch stores that trains its networks on augmented images.

    Rounding may give these other digests, hence cells other ids.
    """
    job = Path(folder) / "job.toml"
    job.write_text(JOB)
    command("launch", job, "--store", f"{folder}/{name}", "--address", "none")
    with Catalog(Store.open(f"{folder}/{name}")) as catalog:
        rows = catalog.query("select matcher, source_layer, target_layer, metric, value from results").to_pylist()
    return {tuple(row[column] for column in row if column != "value"): row["value"] for row in rows}


@pytest.fixture(scope="module")
def seen() -> Seen:
    return in_process_of_its_own(look)


def test_every_value_is_that_of_the_cpu(seen):
    assert not {row.error for row in seen.there} - {None}
    there, here = values(seen.there), values(seen.here)
    assert there.keys() == here.keys()
    assert len({metric for _, metric in there}) > len(STITCHER_METRICS)
    told_by_order = {key for key in here if key[1].startswith("ood_")}  # of scores, two of which may change places
    assert all(there[key] == pytest.approx(here[key], abs=1e-3) for key in told_by_order)
    assert_close({key: value for key, value in there.items() if key not in told_by_order}, here)


def test_a_launch_stores_what_it_stores_on_the_cpu(seen):
    there, here = seen.launched
    assert len(there) == 3 * 3 * (9 + 1)
    assert there.keys() == here.keys()
    assert all(there[one] == pytest.approx(here[one], rel=1e-4, abs=1e-5) for one in here)


def test_no_layer_pair_makes_the_host_wait_for_the_device(seen):
    (few, many), (few_cells, many_cells) = seen.num_waits, seen.num_cells
    assert many_cells == 4 * few_cells
    # of the layers added, whose halves are looked at besides; their pairs would add 12 for each matcher that waits
    assert 0 < many - few <= 11 * 3
    assert seen.num_arrivals[0] == seen.num_arrivals[1] > 0


def test_images_that_differ_in_size_are_resized_there(seen):
    there, here = seen.sized
    torch.testing.assert_close(there, here)


def test_probes_and_detectors_come_out_as_on_the_cpu(seen):
    there, here = seen.probes
    assert len(there) == 2 * 4  # ranks of the layers
    for one, other in zip(there, here, strict=True):
        assert (one.layer_index, one.rank, one.flags, one.error) == (other.layer_index, other.rank, other.flags, None)
        assert one.accuracy == other.accuracy
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert seen.sanity[0] == pytest.approx(seen.sanity[1], abs=0.05)
