"""Every statistic keeps one contract: its values are those of numpy in float64, whatever the batches are.

It reads no other layers than it names, and its cost grows with the images as it says. A statistic that is new has a
case here, or no values of its own.
"""

from dataclasses import replace

import numpy as np
import pytest
from helpers_engine import Zoo, every_cell, make_sweep, matcher, ranked, trained_zoo, whole_shard, workspace
from helpers_statistics import CASES, MAHALANOBIS, PAIRS, PWCCA, WITHOUT_VALUES, all_activations

from stitchgrid.records import EnergyRecipe, EnergySpec, Sweep
from stitchgrid.statistics.base import Statistic
from stitchgrid.statistics.gram import Grams
from stitchgrid.statistics.passes import SourceReading, TargetReading
from stitchgrid.statistics.shard import Collector
from stitchgrid.statistics.stitched_network import Training


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.mark.parametrize("batch_size", [1_000, 32, 7])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_values_are_those_of_numpy_whatever_the_batches(zoo, kind, pair, batch_size):
    case = CASES[kind]
    work = workspace(zoo, replace(make_sweep(zoo, [pair], case.specs, batch_size=batch_size), **case.evidence))
    cells = list(every_cell(work.sweep).values())
    statistic = case.statistic(work, cells)
    assert type(statistic) is kind
    wanted = case.wanted(work, cells, statistic, all_activations(work, statistic))
    found = case.found(work, cells, statistic)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        np.testing.assert_allclose(
            value, wanted[name], rtol=case.tolerance, atol=case.tolerance * np.abs(wanted[name]).max(), err_msg=name
        )


def everything(zoo: Zoo) -> Sweep:
    """Return a sweep that asks for every statistic there is."""
    energy = EnergySpec(recipe=EnergyRecipe(), num_fit=160, fit_data="fit")
    metrics = (*MAHALANOBIS, "ood_energy_auroc")
    trained = [
        matcher("task_loss", epochs=2, batch_size=32, adapter="mlp"),
        matcher("functional_alignment", epochs=2, batch_size=32),
    ]
    specs = [matcher("direct", metrics=metrics), matcher("ridge"), PWCCA, ranked(matcher("cka"), 2), *trained]
    return replace(make_sweep(zoo, PAIRS, specs), energy=energy, groups=4, shuffles=3)


def test_every_statistic_has_a_case_tells_its_cost_and_takes_as_much_more_as_there_are_more_images(zoo):
    sweep = everything(zoo)
    shard = Collector(sweep).of(whole_shard(sweep).blocks)
    assert {type(one) for one in shard} == set(CASES) | WITHOUT_VALUES == set(Statistic.__subclasses__())
    keys = {(k, layer) for k, network in enumerate(sweep.networks) for layer in range(len(network.layers))}
    for one in shard:
        assert one.layers <= keys
        assert one.flops() >= one.shared_flops() >= 0
        assert one.held_bytes() >= 0
        if isinstance(one, (SourceReading, TargetReading, Training)):
            continue  # a loss is found on images of another number
        twice = replace(one, num_images=2 * one.num_images)
        assert twice.flops() == pytest.approx((4 if isinstance(one, Grams) else 2) * one.flops())
        assert twice.layers == one.layers
    assert shard.flops() == pytest.approx(sum(one.flops() for one in shard))
