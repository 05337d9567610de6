"""Kinds that are trained: what they start from, what they follow, and the addresses that their cells keep."""

from dataclasses import replace

import pytest
import torch
from helpers_engine import (
    FEW,
    Zoo,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    reference,
    run,
    trained_zoo,
    unlike_reference,
)

from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.registry import MATCHERS, default_metrics
from stitchgrid.models.select import last_features, later_blocks
from stitchgrid.records import Row, Sweep, canonical, digest

TRAINED = [kind for kind, about in MATCHERS.items() if about.is_trained]
FOLLOWING = [kind for kind in TRAINED if not MATCHERS[kind].needs_labels]


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


def measured(rows: list[Row], sweep: Sweep, metric: str) -> dict[tuple[int, int], float | None]:
    """Return a metric by source and target layer."""
    cells = every_cell(sweep)
    return {
        (cells[row.cell_id].source_layer, cells[row.cell_id].target_layer): row.value
        for row in rows
        if row.metric == metric
    }


def test_addresses_of_version_0_1_0_are_kept():
    asked = [
        matcher("direct"),
        matcher("task_loss", seed=3, epochs=2),
        matcher("cka"),
        matcher("pwcca"),
        matcher("procrustes"),
    ]
    assert [spec.params for spec in asked[:2]] == [
        '{"cls":"copy","pool":"mean","rcond":1e-12,"resize":"bilinear"}',
        '{"augment":"none","batch_size":256,"cls":"copy","epochs":2,"lr":0.001,"pool":"mean","resize":"bilinear",'
        '"weight_decay":1e-05}',
    ]
    sweep = make_sweep(trained_zoo(), [("conv", "token"), ("conv", "conv")], asked)
    assert digest(*sorted(every_cell(sweep))) == "3a32e0f08f18ca75dadd05d422f407a6"


@pytest.mark.parametrize(
    "params",
    [{"init": "direct"}, {"optimizer": "sgd"}, {"optimizer": "adamw", "weight_decay": 0.1}, {"init": "identity"}],
    ids=str,
)
def test_what_maps_start_from_and_how_they_are_trained_is_as_in_the_reference(zoo, params):
    asked = [matcher(kind, epochs=1, batch_size=16, lr=0.02, samples=80, **params) for kind in TRAINED]
    sweep = make_sweep(zoo, [("conv", "conv_again")], asked, layers=FEW)
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    wider = {"variance_ratio": 1e-4}  # steps of Adam follow the sign of gradients that are next to zero
    assert not unlike_reference(sweep, rows, found, wider=wider)


@pytest.mark.parametrize("adapter", ["affine_bn", "bottleneck", "mlp", "conv3x3"])
@pytest.mark.parametrize("pair", [("conv", "conv_again"), ("conv", "token"), ("token", "view")], ids="->".join)
def test_adapters_are_as_in_the_reference(zoo, adapter, pair):
    more = {"samples": 80, "epochs": 2, "batch_size": 16, "lr": 0.01, "adapter": adapter}
    metrics = [*default_metrics("task_loss"), *OOD_METRICS["mahalanobis"]]
    asked = [matcher(kind, metrics=metrics, **more) for kind in ("task_loss", "functional_alignment")]
    of_low_rank = matcher("task_loss", metrics=["residual"], **more)
    asked.append(replace(of_low_rank, params=canonical(of_low_rank.values | {"rank": 3})))
    sweep = make_sweep(zoo, [pair], asked, layers=FEW)
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    wider = {"variance_ratio": 1e-3, "residual": 1e-4, "r2": 1e-4, "loss": 1e-4, "negative_mass": 1e-3}
    if adapter == "affine_bn":  # divides by the spread of features that hardly vary
        wider = dict.fromkeys(wider, 1e-2)
    wider |= dict.fromkeys(OOD_METRICS["mahalanobis"], 2e-3)
    assert {row.error for row in rows} == {None}
    assert not unlike_reference(sweep, rows, found, wider=wider)
    if adapter == "conv3x3":
        kinds = {(f.kind, g.kind) for f in sweep.networks[0].layers for g in sweep.networks[-1].layers}
        assert any("inapplicable" in row.flags for row in rows) == (kinds != {("map", "map")})


def test_an_adapter_that_is_no_affine_map_has_no_affine_start():
    with pytest.raises(ValueError, match=r'init = "direct" is an affine map, and the adapter is .mlp.; drop one'):
        TrainingParams(init="direct", adapter="mlp")


@pytest.mark.parametrize("kind", TRAINED)
def test_a_map_that_starts_from_least_squares_and_stays_there_is_direct(zoo, kind):
    start = matcher(kind, init="direct", epochs=1, lr=1e-12, weight_decay=0, samples=80, metrics=["residual"])
    sweep = make_sweep(zoo, [("conv", "view")], [start])
    least = make_sweep(zoo, [("conv", "view")], [matcher("direct", samples=80, metrics=["residual"])])
    came, wanted = (measured(run(zoo, one), one, "residual") for one in (sweep, least))
    assert came == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_identity_is_a_start_for_equal_widths_alone(zoo, kind):
    sweep = make_sweep(zoo, [("conv", "conv")], [matcher(kind, init="identity", epochs=1, lr=1e-12, weight_decay=0)])
    rows = run(zoo, sweep)
    layers = sweep.networks[0].layers
    for (source, target), residual in measured(rows, sweep, "residual").items():
        is_apart = layers[source].width != layers[target].width
        assert (residual is None) == is_apart
        if source == target:
            assert residual == pytest.approx(0, abs=1e-9)
    flags = {row.flags for row in rows if row.value is None and row.metric == "residual"}
    assert all({"inapplicable", "undefined"} <= set(some) for some in flags)
    assert flags


@pytest.mark.parametrize("kind", FOLLOWING)
def test_kinds_that_follow_the_target_need_no_labels(zoo, kind):
    asked = [matcher(kind, epochs=12, batch_size=16, lr=0.02), matcher(kind, epochs=1, lr=1e-12)]
    sweep, before = (make_sweep(zoo, [("conv", "conv_again")], [one], layers=FEW) for one in asked)
    rows = run(zoo, sweep)
    assert not any(row.error for row in rows)
    came, drawn = (measured(run(zoo, one), one, "agreement") for one in (sweep, before))
    assert sum(came.values()) > sum(drawn.values()) + 0.5  # of 9 layer pairs


def test_what_comes_behind_a_layer_is_found_by_graph(zoo):
    network = zoo.cut["conv"]
    nodes = [layer.node for layer in zoo.layers("conv")]
    assert last_features(network, nodes[0]) == nodes[3]
    assert last_features(network, nodes[3]) is None
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    taken = network.taps([*nodes[:-1], network.logits])(x)
    for start in range(4):
        came = network.behind(nodes[start], [*nodes[start + 1 : 4], network.logits])(taken[start])
        for a, b in zip(came, taken[start + 1 :], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for start, node in enumerate(nodes[:4]):
        blocks = later_blocks(network, node)
        assert node not in blocks
        assert network.logits not in blocks
        assert blocks == sorted(blocks, key=lambda one: network.cut(one).position)
        assert all(network.cut(one).position > network.cut(nodes[start]).position for one in blocks)


def test_training_takes_its_defaults_from_one_place():
    assert {name for name, about in MATCHERS.items() if issubclass(about.params, TrainingParams)} == set(TRAINED)
