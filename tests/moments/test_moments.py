from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from stitchgrid.moments import CrossSums, Merger, PairMoments, RowSums, exact_mean, find_finite, pair_moments, sums
from stitchgrid.statistics import moments as statistics

X_WIDTHS, Y_WIDTHS = [3, 3, 1, 4], [2, 5]
FIELDS = ("mean_x_D", "mean_y_E", "xx_DD", "xy_DE", "yy_EE")

Sides = tuple[list[Tensor], list[Tensor]]


def draw(
    rows: int, widths: list[int], *, seed: int, offset: float = 0.0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixed = [
        torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator)
        for width in widths
    ]
    return [(offset + block).to(dtype) for block in mixed]


def both_sides(rows: int, *, seed: int, offset: float = 0.0) -> Sides:
    return draw(rows, X_WIDTHS, seed=seed, offset=offset), draw(rows, Y_WIDTHS, seed=seed + 1, offset=-offset)


def add(cross: CrossSums, x: list[Tensor], y: list[Tensor]) -> None:
    rows_x, rows_y = cross.x.centre(x), cross.y.centre(y)
    cross.add(rows_x, rows_y)
    cross.x.add(rows_x)
    cross.y.add(rows_y)


def summed(sides: Sides, *parts: slice) -> CrossSums:
    cross = CrossSums(RowSums(X_WIDTHS), RowSums(Y_WIDTHS))
    for part in parts:
        add(cross, [block[part] for block in sides[0]], [block[part] for block in sides[1]])
    return cross


def explicit(x: Tensor, y: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return the moments by their definition: subtract the mean of every column, then multiply."""
    x_RD, y_RE = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
    x_c, y_c = x_RD - x_RD.mean(0), y_RE - y_RE.mean(0)
    return dict(zip(FIELDS, (x_RD.mean(0), y_RE.mean(0), x_c.T @ x_c, x_c.T @ y_c, y_c.T @ y_c), strict=True))


def assert_same(came: PairMoments, wanted: dict[str, NDArray[np.float64]], *, rtol: float = 1e-12) -> None:
    for name, matrix in wanted.items():
        scale = np.abs(matrix).max(initial=1e-300)
        np.testing.assert_allclose(getattr(came, name).numpy(), matrix, rtol=rtol, atol=rtol * scale, err_msg=name)


def every_pair(sums: CrossSums, sides: Sides, *, rtol: float = 1e-12) -> None:
    for i, x in enumerate(sides[0]):
        for j, y in enumerate(sides[1]):
            assert_same(sums.pair(i, j), explicit(x, y), rtol=rtol)


def test_moments_of_every_pair_are_those_of_the_explicit_centred_matrices():
    sides = both_sides(50, seed=0)
    sums = summed(sides, slice(0, 50))
    every_pair(sums, sides)
    assert sums.pair(2, 1).num_rows == 50


@given(cuts=st.lists(st.integers(0, 30), max_size=6), offset=st.sampled_from([0.0, 1e4]), num_slices=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_batches_and_slices_of_any_split_equal_one_pass(cuts, offset, num_slices):
    sides = both_sides(30, seed=3, offset=offset)
    with patch.object(sums, "_num_parallel", lambda device: num_slices):
        total = summed(sides, *(slice(a, b) for a, b in pairwise([0, *sorted(cuts), 30])))
    assert total.pair(0, 0).num_rows == 30
    every_pair(total, sides, rtol=1e-9 if offset else 1e-11)


@pytest.mark.parametrize("block", [1, 5, 1_000], ids=["a block a layer", "blocks of layers", "one block"])
def test_layers_against_themselves_give_every_pair_and_each_layers_own_products(monkeypatch, block):
    monkeypatch.setattr(statistics, "BLOCK", block)
    widths = [3, 3, 2, 4, 4]
    blocks = draw(50, widths, seed=20, offset=3.0)
    rows = RowSums(widths)
    cross = CrossSums(rows, rows, blocks=statistics.mirrored_blocks(widths))
    for part in (slice(0, 20), slice(20, 50)):
        centred = rows.centre([block[part] for block in blocks])
        cross.add(centred, centred)
        rows.add(centred)
    every_pair(cross, (blocks, blocks), rtol=1e-11)


def test_rows_that_an_operator_would_make_are_counted_without_making_them():
    weights_PQ = torch.rand(12, 5, generator=torch.Generator().manual_seed(21), dtype=torch.float64)
    weights_PQ /= weights_PQ.sum(1, keepdim=True)
    [few], [many] = draw(5, [3], seed=22, offset=2.0), draw(12, [4], seed=23)
    x, y = RowSums([3]), RowSums([4])
    cross = CrossSums(x, y)
    rows_x, rows_y = x.centre([few]), y.centre([many])
    cross.add(rows_x, weights_PQ.mT @ rows_y)
    x.add(rows_x, partners=weights_PQ.mT @ (weights_PQ @ rows_x), num_rows=12)
    y.add(rows_y)
    assert_same(cross.pair(0, 0), explicit(weights_PQ @ few.double(), many), rtol=1e-11)


@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
@pytest.mark.parametrize("parts", [1, 7])
def test_a_large_offset_of_float32_features_keeps_centring(offset, parts):
    sides = both_sides(700, seed=5, offset=offset)
    edges = torch.linspace(0, 700, parts + 1).int().tolist()
    sums = summed(sides, *(slice(a, b) for a, b in pairwise(edges)))
    every_pair(sums, sides, rtol=1e-11)


def test_adding_rows_leaves_the_given_tensors_as_they_were():
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    kept = x.clone(), y.clone()
    pair_moments(x, y)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_of_any_floating_type_are_summed_in_float64(dtype):
    [x], [y] = draw(40, [3], seed=9, dtype=dtype), draw(40, [2], seed=10, dtype=dtype)
    came = pair_moments(x, y)
    assert all(getattr(came, name).dtype == torch.float64 for name in FIELDS)
    assert_same(came, explicit(x.double(), y.double()))


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e-7, 12345.678])
def test_a_constant_feature_has_exactly_no_variance(value):
    x, y = torch.full((1_000, 2), value), torch.randn(1_000, 3, generator=torch.Generator().manual_seed(0))
    sums = CrossSums(RowSums([2]), RowSums([3]))
    for part in (slice(0, 49), slice(49, 400), slice(400, 1_000)):
        add(sums, [x[part]], [y[part]])
    assert not sums.pair(0, 0).xx_DD.any()
    assert not sums.pair(0, 0).xy_DE.any()
    assert all(torch.equal(exact_mean(x[:count].double()), x[0].double()) for count in range(1, 200))
    assert torch.equal(exact_mean(x.double().view(4, 250, 2), -2, keepdim=True), x[:4, None].double())


def test_no_rows_change_nothing_and_give_no_moments():
    sums = CrossSums(RowSums([2]), RowSums([3]))
    add(sums, [torch.empty(0, 2)], [torch.empty(0, 3)])
    assert sums.x.num_rows == sums.y.num_rows == 0
    with pytest.raises(ValueError, match=r"at least one row, got none; call add\(\) first"):
        sums.pair(0, 0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("side", ["source", "target"])
def test_activations_that_are_not_finite_spoil_only_their_own_pairs(bad, side):
    sides = both_sides(20, seed=13)
    sides[0 if side == "source" else 1][1][4, 0] = bad
    sums = summed(sides, slice(0, 20))
    spoilt, sound = ((1, 0), (0, 0)) if side == "source" else ((0, 1), (0, 0))
    assert_same(sums.pair(*sound), explicit(sides[0][sound[0]], sides[1][sound[1]]))
    with pytest.raises(ValueError, match=r"need finite activations, got inf or NaN; look at the network's weights"):
        sums.pair(*spoilt)


def test_rows_that_come_after_a_judgement_are_judged_too():
    sides = both_sides(30, seed=13)
    sides[0][1][25] = torch.nan
    sums = summed(sides, slice(0, 20))
    find_finite([sums.x, sums.y])
    assert_same(sums.pair(1, 0), explicit(sides[0][1][:20], sides[1][0][:20]))
    add(sums, [block[20:] for block in sides[0]], [block[20:] for block in sides[1]])
    with pytest.raises(ValueError, match="need finite activations"):
        sums.pair(1, 0)
    assert_same(sums.pair(0, 0), explicit(sides[0][0], sides[1][0]))


@given(
    cuts=st.lists(st.integers(1, 39), min_size=2, max_size=5, unique=True),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1e4]),
)
@settings(max_examples=40, deadline=None)
def test_moments_merge_in_any_order_and_grouping(cuts, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    x, y = (offset + torch.randn(40, width, generator=generator, dtype=torch.float64) for width in (3, 5))
    parts = [pair_moments(x[a:b], y[a:b]) for a, b in pairwise([0, *sorted(cuts), 40])]
    merge = Merger()
    from_left, from_right = parts[0], parts[-1]
    for part in parts[1:]:
        from_left = merge([from_left, part])
    for part in reversed(parts[:-1]):
        from_right = merge([part, from_right])
    for came in (merge(parts), merge(parts[::-1]), from_left, from_right):
        assert came.num_rows == 40
        assert_same(came, explicit(x, y), rtol=1e-9)
