"""The engine against the specification in code, and that against formulas of its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_engine import (
    IMAGES,
    Zoo,
    by_cell,
    close,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    run,
    trained_zoo,
)
from helpers_indices import explicit_procrustes, explicit_pwcca, hsic_cka

from stitchgrid.matchers.catalogue import MATCHERS, Rules
from stitchgrid.records import Layer, Sweep
from stitchgrid.reference import INDICES, Reference, lay, least_squares

PAIRS = [("conv", "conv_again"), ("conv", "token"), ("token", "view"), ("view", "token"), ("token", "conv")]
INDEX_KINDS = [matcher(kind) for kind in sorted(MATCHERS) if MATCHERS[kind].family == "index"]
RULES = [{}, {"resize": "area", "cls": "pool"}, {"resize": "nearest", "cls": "drop", "pool": "cls"}]


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


def reference(zoo: Zoo, sweep: Sweep) -> Reference:
    network = lambda position: zoo.cut[sweep.networks[position].name]  # noqa: E731
    return Reference(sweep, IMAGES, network, device=torch.device("cpu"))


def unlike(zoo: Zoo, sweep: Sweep, *, tolerance: float | None = None) -> dict[str, tuple[float | None, float]]:
    """Return where engine and reference differ, by what they measured."""
    found = reference(zoo, sweep)
    different = {}
    for cell_id, rows in by_cell(run(zoo, sweep)).items():
        wanted = found.values([every_cell(sweep)[cell_id]])[cell_id]
        assert rows.keys() == wanted.keys()
        for metric, row in rows.items():
            came, value = row.value, wanted[metric or ""]
            if metric == "r2" and came is not None:
                came, value = 1 - came, 1 - value
            if tolerance is not None and came is not None:
                is_same = abs(came - value) <= tolerance * max(abs(value), 1e-3)
            else:
                is_same = close(came, value)
            if not is_same:
                different[f"{row.matcher} {metric} {row.source_layer} {row.target_layer}"] = (came, value)
    return different


@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
def test_the_engine_gives_the_reference_values_of_every_index(zoo, pair):
    assert {spec.kind for spec in INDEX_KINDS} == set(INDICES)
    assert not unlike(zoo, make_sweep(zoo, [pair], INDEX_KINDS, batch_size=64))


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
def test_the_engine_gives_the_reference_values_of_closed_form_stitchers(zoo, pair, rules):
    closed = [matcher(kind, **rules) for kind, one in MATCHERS.items() if one.family == "stitcher" and not one.trained]
    assert not unlike(zoo, make_sweep(zoo, [pair], closed, batch_size=64))


@pytest.mark.parametrize("augment", ["none", "crop4_flip"])
@pytest.mark.parametrize("pair", [("conv", "token"), ("token", "view")], ids="->".join)
def test_the_engine_gives_the_reference_values_of_trained_stitchers(zoo, pair, augment):
    trained = [
        matcher(kind, epochs=2, batch_size=16, augment=augment, samples=80, lr=0.01)
        for kind, one in MATCHERS.items()
        if one.trained
    ]
    assert not unlike(zoo, make_sweep(zoo, [pair], trained, batch_size=64), tolerance=1e-4)


def test_networks_of_other_classes_have_no_accuracy_in_either(zoo):
    sweep = make_sweep(zoo, [("conv", "view")], [matcher("direct")])
    networks = tuple(replace(network, is_labelled=False) for network in sweep.networks)
    assert not unlike(zoo, replace(sweep, networks=networks))


def test_the_reference_fits_what_numpy_fits():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 5, generator=generator).double(), torch.randn(60, 3, generator=generator).double()
    weight, bias = least_squares(a, b + 7, rcond=1e-12)
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
    assert INDICES["cka"](*maps, *layers)["cka"] == pytest.approx(hsic_cka(*flat), rel=1e-9)
    assert INDICES["procrustes"](*maps, *layers)["procrustes"] == pytest.approx(explicit_procrustes(*rows), rel=1e-9)
    both = INDICES["pwcca"](*maps, *layers)
    assert both["pwcca"] == pytest.approx(explicit_pwcca(*rows), rel=1e-9)
    assert both["pwcca_reverse"] == pytest.approx(explicit_pwcca(*rows[::-1]), rel=1e-9)


def test_a_layer_that_does_not_vary_has_no_reference_value():
    layer = Layer(name="x", node="x", depth=0, kind="vector", axes="ND", shape=(3,), flops=0)
    flat, noise = torch.ones(10, 3).double(), torch.randn(10, 3, generator=torch.Generator().manual_seed(2)).double()
    for index in INDICES.values():
        assert all(math.isnan(value) for value in index(flat, noise, layer, layer).values())


def test_the_reference_enlarges_a_map_as_its_neighbours_weights_say():
    small = Layer(name="x", node="x", depth=0, kind="map", axes="NCHW", shape=(1, 1, 2), flops=0, grid=(1, 2))
    large = replace(small, shape=(1, 1, 4), grid=(1, 4))
    laid = lay(torch.tensor([[[[0.0, 8.0]]]]), small, large, Rules())
    assert laid.flatten().tolist() == [0.0, 2.0, 6.0, 8.0]
