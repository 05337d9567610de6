"""The engine against the specification in code, and that against formulas of its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_engine import (
    FEW,
    NUM_CLASSES,
    SIDE,
    ConvStage,
    MeanStage,
    Staged,
    Zoo,
    by_cell,
    conv_net,
    every_cell,
    make_sweep,
    matcher,
    network_record,
    one_thread,  # noqa: F401  # a fixture
    reference,
    run,
    token_net,
    trained_zoo,
    unlike_reference,
)
from helpers_indices import explicit_procrustes, explicit_pwcca, hsic_cka
from helpers_models import stirred
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import MATCHERS, default_metrics
from stitchgrid.models.cut_network import cut_network
from stitchgrid.records import Layer, Sweep
from stitchgrid.reference.indices.cka import cka
from stitchgrid.reference.indices.procrustes import procrustes
from stitchgrid.reference.indices.pwcca import pwcca
from stitchgrid.reference.rows import compared, lay
from stitchgrid.reference.stitchers.direct import direct

PAIRS = [
    ("conv", "conv"),
    ("conv", "conv_again"),
    ("conv", "token"),
    ("token", "view"),
    ("view", "token"),
    ("token", "conv"),
]
INDEX_KINDS = [matcher(kind) for kind in sorted(MATCHERS) if MATCHERS[kind].family == "index"]
RULES = [{}, {"resize": "area", "cls": "pool"}, {"resize": "nearest", "cls": "drop", "pool": "cls"}]


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


#: Outputs of untrained networks vary by a thousandth of their mean, which float32 rounds: what is made of the
#: variance alone moves a thousand times as much as they do (seen: variance_ratio by 2.4e-5, pwcca by 8e-6).
OF_UNTRAINED = dict.fromkeys(
    ("variance_ratio", "pwcca", "pwcca_reverse", "svcca", "mean_cca", "linear_regression"), 1e-4
) | {"rsa": 1e-3}


def differences(
    zoo: Zoo, sweep: Sweep, *, wider: dict[str, float] | None = None
) -> dict[str, tuple[float | None, float]]:
    """Return where engine and reference differ, by what they measured."""
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    assert by_cell(rows).keys() == every_cell(sweep).keys()
    return unlike_reference(sweep, rows, found, wider=wider)


@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
def test_the_engine_gives_the_reference_values_of_every_index(zoo, pair):
    layers = None if pair == ("conv", "conv") else FEW
    assert not differences(zoo, make_sweep(zoo, [pair], INDEX_KINDS, batch_size=64, layers=layers))


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
def test_the_engine_gives_the_reference_values_of_closed_form_stitchers(zoo, pair, rules):
    stitchers = [kind for kind, about in MATCHERS.items() if about.family == "stitcher"]
    closed = [matcher(kind, **rules) for kind in stitchers if not MATCHERS[kind].is_trained]
    closed += [matcher("direct", metrics=OOD_METRICS["mahalanobis"], samples=90, **rules)]
    layers = FEW if rules else None
    assert not differences(zoo, make_sweep(zoo, [pair], closed, batch_size=64, layers=layers))


@pytest.mark.parametrize("augment", ["none", "crop4_flip"])
@pytest.mark.parametrize("pair", [("conv", "token"), ("token", "view")], ids="->".join)
def test_the_engine_gives_the_reference_values_of_trained_stitchers(zoo, pair, augment):
    trained = [
        matcher(
            kind,
            metrics=[*default_metrics(kind), *OOD_METRICS["mahalanobis"]],
            epochs=2,
            batch_size=16,
            augment=augment,
            samples=80,
            lr=0.01,
        )
        for kind, one in MATCHERS.items()
        if one.is_trained
    ]
    assert not differences(zoo, make_sweep(zoo, [pair], trained, batch_size=64, layers=FEW))


class Rows(nn.Module):
    """Makes maps of channels last, (N, H, W, C), which its successors keep."""

    def __init__(self, wide_in: int, wide_out: int):
        super().__init__()
        self.conv = nn.Conv2d(wide_in, wide_out, 4, stride=4)
        self.linear = nn.Linear(wide_out, wide_out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.linear(self.conv(x).permute(0, 2, 3, 1)))


class Mixed(nn.Module):
    """A linear layer on the last axis."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.gelu(self.linear(x))


class RowsMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


class Branching(ConvStage):
    """A stage that `torch.fx` cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


class Again(nn.Module):
    """Calls one activation twice, and ends in an operation that is no module's."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, stride=2)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.first(x))))
        return self.head((x * 2 - 0.1).mean((2, 3)))


@pytest.fixture(scope="module")
def odd_zoo() -> Zoo:
    """Return networks, untrained, of maps in NHWC, of modules that only hooks can cut, and a plain one."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        nets = {
            "rows": Staged([Rows(3, 5), Mixed(5), RowsMean(), nn.Linear(5, NUM_CLASSES)]),
            "hooked": Staged([Branching(3, 4), ConvStage(4, 6, stride=2), MeanStage(), nn.Linear(6, NUM_CLASSES)]),
            "token": token_net(),
            "conv": conv_net(),
        }
        zoo = Zoo.of(**{name: net.eval().requires_grad_(False) for name, net in nets.items()})
    assert [layer.axes for layer in zoo.layers("rows")] == ["NHWC", "NHWC", "ND", "ND"]
    assert zoo.cut["hooked"].way == "hooks"
    return zoo


@pytest.mark.parametrize(
    "pair", [("rows", "conv"), ("conv", "rows"), ("token", "rows"), ("hooked", "hooked")], ids="->".join
)
def test_the_engine_gives_the_reference_values_of_other_axes_and_of_hooked_networks(odd_zoo, pair):
    matchers = [*INDEX_KINDS, matcher("direct"), matcher("task_loss", epochs=1, batch_size=16, samples=64, lr=0.01)]
    sweep = make_sweep(odd_zoo, [pair], matchers, batch_size=64)
    assert not differences(odd_zoo, sweep, wider=OF_UNTRAINED)


def test_the_reference_replaces_one_of_two_calls_of_a_module_and_what_is_no_modules_output():
    cut = cut_network(stirred(Again(6)).eval(), (3, SIDE, SIDE))
    layers = tuple(one.layer for one in cut.cuts[:-2])
    assert [layer.name for layer in layers] == ["first", "act", "second", "act_1", "mul", "sub"]
    record = replace(network_record(trained_zoo(), "conv"), layers=layers)
    sweep = replace(make_sweep(trained_zoo(), [], [matcher("direct")]), networks=(record,), pairs=((0, 0),))
    assert not differences(Zoo(staged={}, cut={"conv": cut}), sweep, wider=OF_UNTRAINED)


@pytest.mark.parametrize("metrics", [("residual",), ("residual", "r2"), ("residual", "accuracy")], ids=",".join)
def test_the_reference_runs_a_stitched_network_only_where_a_metric_asks_for_it(zoo, metrics):
    sweep = make_sweep(zoo, [("conv", "token")], [replace(matcher("direct"), metrics=metrics)], batch_size=90)
    found = reference(zoo, sweep)
    num_images = []
    handle = zoo.cut["token"].module.register_forward_pre_hook(lambda _, x: num_images.append(len(x[0])))
    try:
        found.values([sweep.cell(0, 0, 1, 0, 0)])
    finally:
        handle.remove()
    assert num_images == [60, 90] + [90] * ("accuracy" in metrics)


def test_every_matcher_looks_at_its_own_number_of_images_in_both(zoo):
    counts = [matcher("direct", samples=40), matcher("cka", samples=25), matcher("pwcca", samples=33)]
    sweep = make_sweep(zoo, [("conv", "view")], [*counts, *INDEX_KINDS, matcher("direct")], layers=FEW)
    rows = run(zoo, sweep)
    assert {(row.matcher, row.num_fit, row.num_eval) for row in rows} == {
        *{("direct", num, 90) for num in (40, 60)},
        ("cka", None, 25),
        ("pwcca", None, 33),
        *{(spec.kind, None, 90) for spec in INDEX_KINDS},
    }
    assert not differences(zoo, sweep)


def test_cells_of_a_layer_pair_computed_together_have_the_values_they_have_alone(zoo):
    sweep = make_sweep(zoo, [("conv", "view")], [*INDEX_KINDS, matcher("direct"), matcher("cka", samples=30)])
    cells = [sweep.cell(0, 1, 1, 1, k) for k in range(len(sweep.matchers))]
    found = reference(zoo, sweep)
    together = found.values(cells)
    assert together == {cell.cell_id: found.values([cell])[cell.cell_id] for cell in cells}


def test_a_planted_rotation_is_found_by_the_reference():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double())[0]
    y = 3 * x @ rotation + 2
    weight, bias = direct(x, y, rcond=1e-12)
    torch.testing.assert_close(weight, 3 * rotation)
    torch.testing.assert_close(bias, torch.full_like(bias, 2))
    found = {**cka(x, y), **pwcca(x, y), **procrustes(x, y)}
    wanted = {"cka": 1, "pwcca": 0, "pwcca_reverse": 0, "procrustes": 0}
    assert found == pytest.approx(wanted, abs=1e-12)


def test_networks_of_other_classes_have_no_accuracy_in_either(zoo):
    sweep = make_sweep(zoo, [("conv", "view")], [matcher("direct")])
    networks = tuple(replace(network, is_labelled=False) for network in sweep.networks)
    assert not differences(zoo, replace(sweep, networks=networks))


def test_the_reference_fits_what_numpy_fits():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 5, generator=generator).double(), torch.randn(60, 3, generator=generator).double()
    weight, bias = direct(a, b + 7, rcond=1e-12)
    solution = np.linalg.lstsq(np.column_stack([a, np.ones(60)]), (b + 7).numpy())[0]
    np.testing.assert_allclose(np.vstack([weight, bias]), solution, rtol=1e-10)


@pytest.mark.parametrize("width", [3, 6])
def test_reference_indices_are_their_formulas(width):
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(40, w, 2, 2, generator=generator).double() for w in (4, width)]
    layers = [
        Layer(name="x", node="x", depth=0, kind="map", axes="NCHW", shape=(w, 2, 2), flops=0, grid=(2, 2))
        for w in (4, width)
    ]
    rows = [a.permute(0, 2, 3, 1).reshape(-1, a.shape[1]).numpy() for a in maps]
    flat = [a.flatten(1).numpy() for a in maps]
    assert cka(*(a.flatten(1) for a in maps))["cka"] == pytest.approx(hsic_cka(*flat), rel=1e-9)
    shaped = compared(*maps, *layers)
    assert procrustes(*shaped)["procrustes"] == pytest.approx(explicit_procrustes(*rows), rel=1e-9)
    both = pwcca(*shaped)
    assert both["pwcca"] == pytest.approx(explicit_pwcca(*rows), rel=1e-9)
    assert both["pwcca_reverse"] == pytest.approx(explicit_pwcca(*rows[::-1]), rel=1e-9)


def test_a_layer_that_does_not_vary_has_no_reference_value():
    flat, noise = torch.ones(10, 3).double(), torch.randn(10, 3, generator=torch.Generator().manual_seed(2)).double()
    for index in (cka, pwcca, procrustes):
        assert all(math.isnan(value) for value in index(flat, noise).values())


def test_the_reference_enlarges_a_map_as_its_neighbours_weights_say():
    small = Layer(name="x", node="x", depth=0, kind="map", axes="NCHW", shape=(1, 1, 2), flops=0, grid=(1, 2))
    large = replace(small, shape=(1, 1, 4), grid=(1, 4))
    laid = lay(torch.tensor([[[[0.0, 8.0]]]]), small, large, Rules())
    assert laid.flatten().tolist() == [0.0, 2.0, 6.0, 8.0]
