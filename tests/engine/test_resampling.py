"""The operator that lays rows of one layout on another, against `resize_rows` and the definition of an adjoint."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from stitchgrid.engine import resampling
from stitchgrid.engine.resampling import Resampling
from stitchgrid.matchers.alignment import resize_rows
from stitchgrid.matchers.layouts import Layout
from stitchgrid.matchers.params import Rules

LAYOUTS = [
    Layout(num_prefix=0, grid=None),
    Layout(num_prefix=0, grid=(3, 4)),
    Layout(num_prefix=1, grid=(5, 2)),
    Layout(num_prefix=2, grid=(9, 10)),
]
RULES = [
    Rules(resize=resize, cls=cls, pool=pool)
    for resize, cls, pool in product(("bilinear", "area", "nearest"), ("copy", "pool", "drop"), ("mean", "cls"))
]
CASES = list(product(LAYOUTS, LAYOUTS, RULES))
CPU = torch.device("cpu")


def draw(rows: int, *, seed: int) -> Tensor:
    return torch.randn(2, rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("cost", [0.0, math.inf], ids=["by kernels", "by products"])
def test_the_way_there_is_resizing_and_the_way_back_its_adjoint(cost, monkeypatch):
    monkeypatch.setattr(resampling, "KERNEL_COST", cost)
    monkeypatch.setattr(resampling, "ADJOINT_KERNEL_COST", cost)
    for source, target, rules in CASES:
        one = Resampling(source, target, rules, device=CPU)
        x, y = draw(source.num_rows, seed=0), draw(target.num_rows, seed=1)
        torch.testing.assert_close(one.matvec(x), resize_rows(x, source, target, rules))
        torch.testing.assert_close((one.matvec(x) * y).sum(), (x * one.rmatvec(y)).sum())
        torch.testing.assert_close(one.normal(x), one.rmatvec(one.matvec(x)))


def test_means_stay_means_exactly_where_it_says_so():
    for source, target, rules in CASES:
        one = Resampling(source, target, rules, device=CPU)
        constant = torch.full((1, source.num_rows, 1), 3.0, dtype=torch.float64)
        stays = torch.allclose(one.matvec(constant), torch.full((1, target.num_rows, 1), 3.0, dtype=torch.float64))
        assert stays == one.keeps_means


def test_kernels_take_over_where_they_are_cheaper():
    near, small = Layout(num_prefix=1, grid=(28, 28)), Layout(num_prefix=0, grid=(4, 4))
    large = Layout(num_prefix=0, grid=(30, 30))
    asked = [
        (near, large, Rules()),
        (large, small, Rules()),
        (small, large, Rules()),
        (near, large, Rules(resize="area")),
    ]
    made = [Resampling(*one, device=CPU) for one in asked]
    assert [(one._resizes, one._returns, one._goes_both_ways) for one in made] == [
        (True, True, True),
        (True, True, True),
        (False, False, False),
        (False, False, False),
    ]
