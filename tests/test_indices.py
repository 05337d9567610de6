from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers_indices import Matrix, explicit_procrustes, explicit_pwcca, hsic_cka, unit
from torch import Tensor

from stitchgrid import moments
from stitchgrid.matchers.indices import cka as cka_module
from stitchgrid.matchers.indices.cka import centred_gram, cka
from stitchgrid.matchers.indices.procrustes import procrustes
from stitchgrid.matchers.indices.pwcca import pwcca
from stitchgrid.moments import Side, find_axes, pair_moments, principal_axes


def cka_of(x: Tensor, y: Tensor) -> float:
    return cka([(centred_gram(x), centred_gram(y))]).item()


def pwcca_of(x: Tensor, y: Tensor) -> float:
    return pwcca([pair_moments(x, y)])[0, 0].item()


def procrustes_of(x: Tensor, y: Tensor) -> float:
    return procrustes([pair_moments(x, y)]).item()


@dataclass(frozen=True)
class Index:
    value: Callable[[Tensor, Tensor], float]
    oracle: Callable[[Matrix, Matrix], float]
    of_itself: float
    bounds: tuple[float, float]


INDICES = {
    "cka": Index(cka_of, hsic_cka, of_itself=1.0, bounds=(0.0, 1.0)),
    "pwcca": Index(pwcca_of, explicit_pwcca, of_itself=0.0, bounds=(0.0, 1.0)),
    "procrustes": Index(procrustes_of, explicit_procrustes, of_itself=0.0, bounds=(0.0, 2.0)),
}
every_index = pytest.mark.parametrize("name", INDICES)


def layer(rows: int, width: int, *, seed: int, rank: int | None = None) -> Tensor:
    """Return features of unequal scale with a rank and a mean of their own, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inner = width if rank is None else rank
    return draw(rows, inner) @ draw(inner, width) + 3 * draw(width)


def related(
    rows: int, width_x: int, width_y: int, *, rank_x: int | None = None, rank_y: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return two layers that share some of what they see."""
    x, y = layer(rows, width_x, seed=1, rank=rank_x), layer(rows, width_y, seed=2, rank=rank_y)
    if rank_x is None and rank_y is None:
        y = y + x @ layer(width_x, width_y, seed=3) / 4
    return x, y


SHAPES = {
    "equal widths": related(80, 6, 6),
    "source wider than target": related(80, 9, 4),
    "target wider than source": related(80, 4, 9),
    "rank-deficient source": related(80, 8, 5, rank_x=3),
    "rank-deficient target": related(80, 5, 8, rank_y=3),
    "both rank-deficient, source of higher rank": related(80, 9, 9, rank_x=6, rank_y=4),
    "more features than rows": related(12, 30, 5),
    "one feature each": related(40, 1, 1),
}


@every_index
@pytest.mark.parametrize("shape", SHAPES)
def test_an_index_is_the_textbook_formula_on_explicit_matrices(name, shape):
    x, y = SHAPES[shape]
    for a, b in ((x, y), (y, x)):
        assert INDICES[name].value(a, b) == pytest.approx(INDICES[name].oracle(a.numpy(), b.numpy()), rel=1e-6)


@every_index
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_features_give_the_index_of_the_same_numbers_in_float64(name, shape):
    x, y = (side.float() for side in SHAPES[shape])
    wanted = INDICES[name].oracle(x.double().numpy(), y.double().numpy())
    assert INDICES[name].value(x, y) == pytest.approx(wanted, rel=1e-6)


@every_index
@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_a_large_offset_of_float32_features_does_not_move_an_index(name, offset):
    x, y = ((side + offset).float() for side in SHAPES["equal widths"])
    wanted = INDICES[name].oracle(x.double().numpy() - offset, y.double().numpy() - offset)
    assert INDICES[name].value(x, y) == pytest.approx(wanted, rel=1e-6)


def test_procrustes_is_the_squared_distance_after_the_best_rotation():
    x, y = SHAPES["equal widths"]
    rotation, _ = scipy.linalg.orthogonal_procrustes(unit(x.numpy()), unit(y.numpy()))
    wanted = np.linalg.norm(unit(x.numpy()) @ rotation - unit(y.numpy())) ** 2
    assert procrustes_of(x, y) == pytest.approx(wanted, rel=1e-6)


def test_pwcca_weighs_by_the_source_so_exchanging_the_roles_is_another_number():
    x, y = SHAPES["source wider than target"]
    [[forth, back]] = pwcca([pair_moments(x, y)]).tolist()
    assert pwcca([pair_moments(y, x)]).tolist() == [pytest.approx((back, forth), rel=1e-9)]
    assert back == pytest.approx(explicit_pwcca(y.numpy(), x.numpy()), rel=1e-6)
    assert abs(forth - back) > 1e-2


@every_index
@pytest.mark.parametrize("shape", SHAPES)
def test_an_index_lies_within_its_bounds(name, shape):
    low, high = INDICES[name].bounds
    assert low - 1e-12 <= INDICES[name].value(*SHAPES[shape]) <= high + 1e-12


@every_index
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_is_like_itself(name, rank, dtype):
    x = layer(60, 7, seed=4, rank=rank).to(dtype)
    assert INDICES[name].value(x, x) == pytest.approx(INDICES[name].of_itself, abs=1e-6 if name == "cka" else 1e-9)


@every_index
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
@pytest.mark.parametrize("side", ["source", "target", "both"])
def test_a_layer_that_does_not_vary_has_no_value(name, value, side):
    alive, constant = layer(30, 4, seed=5).float(), torch.full((30, 3), value)
    x, y = {"source": (constant, alive), "target": (alive, constant), "both": (constant, constant)}[side]
    assert isnan(INDICES[name].value(x, y))


Transform = Callable[[Tensor], Tensor]


def rotated(x: Tensor) -> Tensor:
    return x @ torch.linalg.qr(layer(x.shape[1], x.shape[1], seed=6)).Q


TRANSFORMS: dict[str, Transform] = {
    "rotation": rotated,
    "scaling": lambda x: 0.3 * x,
    "shift": lambda x: x + torch.arange(x.shape[1]),
    "permutation": lambda x: x.flip(1),
    "general linear": lambda x: x @ (torch.eye(x.shape[1]).double() + layer(x.shape[1], x.shape[1], seed=7) / 3),
}
EVERY = frozenset(TRANSFORMS)
NOT_GENERAL = EVERY - {"general linear"}
#: What the method claims: which transforms of which side leave an index as it is. All others must change it.
INVARIANCES = {
    ("cka", "source"): NOT_GENERAL,
    ("cka", "target"): NOT_GENERAL,
    ("procrustes", "source"): NOT_GENERAL,
    ("procrustes", "target"): NOT_GENERAL,
    ("pwcca", "source"): NOT_GENERAL - {"rotation"},
    ("pwcca", "target"): EVERY,
}
CLAIMS = [(name, side, transform) for name, side in INVARIANCES for transform in TRANSFORMS]


@pytest.mark.parametrize(("name", "side", "transform"), CLAIMS)
def test_an_index_changes_under_what_it_is_not_invariant_to_and_under_nothing_else(name, side, transform):
    x, y = related(90, 6, 5)
    before = INDICES[name].value(x, y)
    change = TRANSFORMS[transform]
    after = INDICES[name].value(change(x), y) if side == "source" else INDICES[name].value(x, change(y))
    if transform in INVARIANCES[name, side]:
        assert after == pytest.approx(before, rel=1e-8)
    else:
        assert abs(after - before) > 1e-4


def test_the_gram_matrix_does_not_depend_on_the_blocks_of_features_and_images(monkeypatch):
    x = layer(40, 33, seed=8)
    whole = centred_gram(x)
    np.testing.assert_allclose(
        whole.numpy(), (x - x.mean(0)).numpy() @ (x - x.mean(0)).numpy().T, rtol=1e-10, atol=1e-10
    )
    monkeypatch.setattr(cka_module, "BLOCK_FEATURES", 5)
    monkeypatch.setattr(cka_module, "BLOCK_NUMBERS", 100)
    monkeypatch.setattr(cka_module, "BLOCK_IMAGES", 7)
    np.testing.assert_allclose(centred_gram(x).numpy(), whole.numpy(), rtol=1e-10, atol=1e-10)


def test_cka_of_few_independent_rows_is_large_because_it_is_biased():
    draw = lambda seed: torch.randn(100, 1_000, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert cka_of(draw(0), draw(1)) == pytest.approx(0.91, abs=0.01)


def test_the_mean_of_cka_over_batches_is_another_number():
    x, y = SHAPES["equal widths"]
    over_batches = np.mean([cka_of(x[part], y[part]) for part in (slice(0, 20), slice(20, 80))])
    assert abs(over_batches - cka_of(x, y)) > 1e-3


def test_correlations_beyond_the_rows_are_one_whatever_the_data():
    few, many = ((layer(rows, 6, seed=9), layer(rows, 6, seed=10)) for rows in (10, 2_000))
    assert pwcca_of(*few) < 0.5 < 0.9 < pwcca_of(*many)


@pytest.mark.parametrize("stack_bytes", [1, 2_000, 1 << 20], ids=["alone", "a few", "all"])
def test_many_pairs_together_give_what_each_gives_alone(monkeypatch, stack_bytes):
    monkeypatch.setattr(moments, "STACK_BYTES", stack_bytes)
    still = torch.ones(40, 4)
    sides = [layer(40, 4, seed=1), layer(40, 4, seed=2, rank=2), layer(40, 7, seed=3), still, layer(40, 4, seed=4)]
    pairs = [pair_moments(x, y) for x in sides for y in sides]
    for index in (pwcca, procrustes):
        alone = torch.cat([index([pair_moments(x, y)]) for x in sides for y in sides])
        torch.testing.assert_close(index(pairs), alone, rtol=1e-12, atol=1e-14, equal_nan=True)
        assert not index(pairs)[:3].isnan().any()


def test_axes_of_many_layers_found_together_are_those_of_each_alone():
    scatters = [(x - x.mean(0)).mT @ (x - x.mean(0)) for x in (layer(50, 9, seed=k, rank=k) for k in (4, 9, 1, 6))]
    basis = torch.linalg.qr(layer(9, 5, seed=20))[0]
    make = lambda: [Side(mean_D=s[0], scatter_DD=s, basis_Dr=b) for s in scatters for b in (None, basis)]  # noqa: E731
    together, alone = make(), make()
    find_axes(together)
    for one, other in zip(together, alone, strict=True):
        assert "axes" in vars(one)
        assert "axes" not in vars(other)
        torch.testing.assert_close(one.axes[0], other.axes[0])
        scatters_of = [axes_DK * values_K @ axes_DK.mT for values_K, axes_DK in (one.axes, other.axes)]
        torch.testing.assert_close(*scatters_of)


def test_principal_axes_carry_the_numerical_rank_and_nothing_else():
    x = layer(50, 9, seed=13, rank=4)
    scatter = (x - x.mean(0)).mT @ (x - x.mean(0))
    values, axes = principal_axes(scatter)
    assert axes.shape == (9, 4)
    assert (values.diff() <= 0).all()
    torch.testing.assert_close(axes.mT @ axes, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(axes * values @ axes.mT, scatter)
    assert principal_axes(torch.zeros(3, 3, dtype=torch.float64))[1].shape == (3, 0)
