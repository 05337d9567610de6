"""The engine on a GPU, where there is one: the CPU's values, in the precision and the way that the job asks for."""

from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from helpers_engine import (
    FakeImages,
    FakeSplit,
    Values,
    Zoo,
    close,
    make_sweep,
    matcher,
    ratio,
    run,
    trained_zoo,
    values,
    whole_shard,
    workspace,
)
from torch import Tensor

from stitchgrid.datasets.device_images import ResidentImages, near
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace, forward
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.registry import default_metrics
from stitchgrid.models.cut_network import cut_network_on
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.moments import exact_mean
from stitchgrid.records import MatcherSpec, Preprocess, Sweep, canonical

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")]

PAIRS = [("conv", "conv"), ("conv", "token"), ("token", "view")]
INDICES = [matcher(kind) for kind in ("cka", "pwcca", "procrustes")]
DISTANCES = OOD_METRICS["mahalanobis"]
CLOSED = [matcher("direct", metrics=[*default_metrics("direct"), *DISTANCES]), *INDICES]
REDUCED = [replace(one, params=canonical({**one.values, "rank": 2})) for one in CLOSED]
FEW_STEPS = matcher("task_loss", epochs=1, batch_size=32)  # five
#: Of 90 images, of which rounding may turn one or two.
COUNTED = ("accuracy", "relative_accuracy", "penalty", "agreement", *DISTANCES)


class Ranges(FakeSplit):
    """Images that are asked for by positions, or by the first and the last of them."""

    size = (12, 12)

    def batch(self, start: Tensor | int, stop: int | None = None) -> Tensor:  # type: ignore[override]
        return self.pixels[start] if stop is None else self.pixels[start:stop]


@dataclass(frozen=True)
class There:
    """The networks on a device."""

    zoo: Zoo
    device: torch.device
    cut: dict[str, CutNetwork]

    def run(self, matchers: list[MatcherSpec], *, precision: str = "fp32") -> Values:
        sweep = make_sweep(self.zoo, PAIRS, matchers, precision=precision)
        rows = run_shard(whole_shard(sweep), self.workspace(sweep))
        assert not {row.error for row in rows} - {None}
        return values(rows)

    def workspace(self, sweep: Sweep) -> Workspace:
        images = FakeImages(fit=Ranges(160, seed=1), eval=Ranges(90, seed=2))
        return Workspace(
            sweep=sweep,
            images=near(images, self.device),  # type: ignore[arg-type]
            network=lambda position: self.cut[sweep.networks[position].name],
            device=self.device,
        )


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def there(device: torch.device) -> There:
    zoo = trained_zoo()
    cut = {
        name: cut_network_on(device, deepcopy(one.module), one.input_shape, name=name) for name, one in zoo.cut.items()
    }
    return There(zoo, device, cut)


@pytest.fixture(scope="module")
def exact(there: There) -> Values:
    return there.run(CLOSED)


def unlike(came: Values, wanted: Values, *, tolerance: float) -> dict[tuple[str, str | None], tuple[object, object]]:
    """Return where values differ: by two images in 90 where images are counted, else in proportion."""
    assert came.keys() == wanted.keys()
    different = {}
    for key, value in came.items():
        one, other = ratio(key[1], value), ratio(key[1], wanted[key])
        counted = key[1] in COUNTED and one is not None and other is not None
        if not (abs(one - other) < 2.5 / 90 if counted else close(one, other, tolerance=tolerance)):  # type: ignore[operator]
            different[key] = one, other
    return different


def test_closed_form_values_are_those_of_the_cpu(there):
    matchers = [*CLOSED, *REDUCED]
    assert not unlike(
        there.run(matchers), values(run(there.zoo, make_sweep(there.zoo, PAIRS, matchers))), tolerance=1e-4
    )


def test_maps_trained_for_a_few_steps_are_those_of_the_cpu(there):
    wanted = values(run(there.zoo, make_sweep(there.zoo, PAIRS, [FEW_STEPS])))
    assert not unlike(there.run([FEW_STEPS]), wanted, tolerance=1e-3)


@pytest.mark.parametrize("augment", ["none", "crop4_flip"])
def test_training_again_gives_the_same_bits(there, augment):
    spec = matcher("task_loss", epochs=2, batch_size=32, augment=augment)
    assert there.run([spec]) == there.run([spec])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_less_precise_networks_give_finite_values_near_those_of_fp32(there, exact, precision):
    came = there.run([*CLOSED, FEW_STEPS], precision=precision)
    assert all(value is None or abs(value) < float("inf") for value in came.values())
    names = {spec.kind: position for position, spec in enumerate(CLOSED)}
    sweeps = [make_sweep(there.zoo, PAIRS, CLOSED, precision=one) for one in ("fp32", precision)]
    layers = [(0, k, 0, k) for k in range(4)]
    for kind, metric in (("direct", "residual"), ("cka", "cka"), ("procrustes", "procrustes")):
        for one in [(0, 1, 0, 2), (0, 0, 0, 1), *layers]:
            ids = [sweep.cell(*one, names[kind]).cell_id for sweep in sweeps]
            assert came[ids[1], metric] == pytest.approx(exact[ids[0], metric], abs=0.03)


@pytest.mark.slow  # compilation
def test_compiled_networks_give_the_same_values(there, exact, monkeypatch):
    for network in there.cut.values():
        monkeypatch.setattr(network, "compiles", True)
    assert not unlike(there.run(CLOSED), exact, tolerance=1e-4)


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e-7, 12345.678])
def test_equal_numbers_centre_to_zero(device, value):
    x = torch.full((199, 2), value, dtype=torch.float32, device=device).double()
    assert all(torch.equal(exact_mean(x[:count]), x[0]) for count in range(1, 200))


def test_images_that_differ_in_size_are_those_of_the_cpu(there):
    sweep = make_sweep(there.zoo, PAIRS, CLOSED)
    network = replace(sweep.networks[0], preprocess=Preprocess(resize=(12, 12)))
    sweep = replace(sweep, networks=(network, *sweep.networks[1:]))
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(256, (3, 20 + k, 17), generator=generator, dtype=torch.uint8) for k in range(3)]
    came, wanted = (
        forward(work, pixels, {0: [1]})[0][0, 1].cpu() for work in (there.workspace(sweep), workspace(there.zoo, sweep))
    )
    torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-5)


def test_images_lie_on_the_device(there):
    work = there.workspace(make_sweep(there.zoo, PAIRS, CLOSED))
    assert isinstance(work.images, ResidentImages)
    for split in (work.images.fit, work.images.eval):
        assert {split.batch(torch.arange(3)).device, split.labels.device} == {there.device}
    activations, logits = forward(work, work.images.eval.batch(torch.arange(3)), {0: [1]}, scored={0})
    assert {activations[0, 1].device, logits[0].device} == {there.device}
