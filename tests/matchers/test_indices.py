import numpy as np
import pytest
import scipy.linalg
import torch
from helpers_indices import explicit_procrustes, explicit_pwcca, hsic_cka, unit
from torch import Tensor

from stitchgrid.matchers import gram as gram_module
from stitchgrid.matchers.gram import centred_gram
from stitchgrid.matchers.indices import cka as cka_module
from stitchgrid.matchers.indices.procrustes import Procrustes
from stitchgrid.matchers.indices.pwcca import PWCCA
from stitchgrid.matchers.measures import index_of_rows
from stitchgrid.matchers.params import NoParams
from stitchgrid.moments import Side, find_axes, pair_moments, principal_axes
from stitchgrid.moments import sides as moment_sides


def cka_of(x: Tensor, y: Tensor) -> float:
    return index_of_rows("cka", x, y)["cka"]


def pwcca_of(x: Tensor, y: Tensor) -> float:
    return index_of_rows("pwcca", x, y)["pwcca"]


def procrustes_of(x: Tensor, y: Tensor) -> float:
    return index_of_rows("procrustes", x, y)["procrustes"]


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


X, Y = related(80, 6, 6)


def test_the_first_indices_are_the_formulas_of_their_papers():
    for x, y in ((X, Y), related(80, 9, 4), related(80, 8, 5, rank_x=3)):
        assert cka_of(x, y) == pytest.approx(hsic_cka(x.numpy(), y.numpy()), rel=1e-6)
        assert pwcca_of(x, y) == pytest.approx(explicit_pwcca(x.numpy(), y.numpy()), rel=1e-6)
        assert procrustes_of(x, y) == pytest.approx(explicit_procrustes(x.numpy(), y.numpy()), rel=1e-6)


def test_procrustes_is_the_squared_distance_after_the_best_rotation():
    x, y = X, Y
    rotation, _ = scipy.linalg.orthogonal_procrustes(unit(x.numpy()), unit(y.numpy()))
    wanted = np.linalg.norm(unit(x.numpy()) @ rotation - unit(y.numpy())) ** 2
    assert procrustes_of(x, y) == pytest.approx(wanted, rel=1e-6)


def test_pwcca_weighs_by_the_source_so_exchanging_the_roles_is_another_number():
    x, y = related(80, 9, 4)
    forth, back = index_of_rows("pwcca", x, y).values()
    assert tuple(index_of_rows("pwcca", y, x).values()) == pytest.approx((back, forth), rel=1e-9)
    assert back == pytest.approx(explicit_pwcca(y.numpy(), x.numpy()), rel=1e-6)
    assert abs(forth - back) > 1e-2


def test_the_gram_matrix_does_not_depend_on_the_blocks_of_features_and_images(monkeypatch):
    x = layer(40, 33, seed=8)
    whole = centred_gram(x)
    np.testing.assert_allclose(
        whole.numpy(), (x - x.mean(0)).numpy() @ (x - x.mean(0)).numpy().T, rtol=1e-10, atol=1e-10
    )
    monkeypatch.setattr(gram_module, "BLOCK_FEATURES", 5)
    monkeypatch.setattr(cka_module, "BLOCK_NUMBERS", 100)
    monkeypatch.setattr(gram_module, "BLOCK_IMAGES", 7)
    np.testing.assert_allclose(centred_gram(x).numpy(), whole.numpy(), rtol=1e-10, atol=1e-10)


def test_cka_of_few_independent_rows_is_large_because_it_is_biased():
    draw = lambda seed: torch.randn(100, 1_000, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert cka_of(draw(0), draw(1)) == pytest.approx(0.91, abs=0.01)


def test_the_mean_of_cka_over_batches_is_another_number():
    x, y = X, Y
    over_batches = np.mean([cka_of(x[part], y[part]) for part in (slice(0, 20), slice(20, 80))])
    assert abs(over_batches - cka_of(x, y)) > 1e-3


def test_correlations_beyond_the_rows_are_one_whatever_the_data():
    few, many = ((layer(rows, 6, seed=9), layer(rows, 6, seed=10)) for rows in (10, 2_000))
    assert pwcca_of(*few) < 0.5 < 0.9 < pwcca_of(*many)


@pytest.mark.parametrize("stack_bytes", [1, 2_000, 1 << 20], ids=["alone", "a few", "all"])
def test_many_pairs_together_give_what_each_gives_alone(monkeypatch, stack_bytes):
    monkeypatch.setattr(moment_sides, "STACK_BYTES", stack_bytes)
    still = torch.ones(40, 4)
    sides = [layer(40, 4, seed=1), layer(40, 4, seed=2, rank=2), layer(40, 7, seed=3), still, layer(40, 4, seed=4)]
    pairs = [pair_moments(x, y) for x in sides for y in sides]
    for index in (PWCCA(NoParams()), Procrustes(NoParams())):
        together = index.compare(pairs)
        for name, value_B in together.items():
            alone_B = torch.cat([index.compare([pair_moments(x, y)])[name] for x in sides for y in sides])
            torch.testing.assert_close(value_B, alone_B, rtol=1e-12, atol=1e-14, equal_nan=True)
            assert not value_B[:3].isnan().any()


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
