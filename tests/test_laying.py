"""The operator that lays rows of one layout on another, against `resize_rows` and the definition of an adjoint."""

from itertools import product

import torch
from torch import Tensor

from stitchgrid.engine.laying import Laying
from stitchgrid.matchers.alignment import Layout, resize_rows
from stitchgrid.matchers.catalogue import Rules

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


def test_the_way_there_is_resizing_and_the_way_back_its_adjoint():
    for source, target, rules in CASES:
        one = Laying(source, target, rules, device=CPU)
        x, y = draw(source.num_rows, seed=0), draw(target.num_rows, seed=1)
        torch.testing.assert_close(one.there(x), resize_rows(x, source, target, rules))
        torch.testing.assert_close((one.there(x) * y).sum(), (x * one.back(y)).sum())
        torch.testing.assert_close(one.there_and_back(x), one.back(one.there(x)))


def test_means_stay_means_exactly_where_it_says_so():
    for source, target, rules in CASES:
        one = Laying(source, target, rules, device=CPU)
        constant = torch.full((1, source.num_rows, 1), 3.0, dtype=torch.float64)
        stays = torch.allclose(one.there(constant), torch.full((1, target.num_rows, 1), 3.0, dtype=torch.float64))
        assert stays == one.keeps_means


def test_only_more_rows_are_an_enlargement():
    small, large = LAYOUTS[1], LAYOUTS[3]
    assert Laying(small, large, Rules(), device=CPU).enlarges
    assert not Laying(large, small, Rules(), device=CPU).enlarges
    assert not Laying(small, small, Rules(), device=CPU).enlarges
