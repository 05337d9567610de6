import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.matchers.drawing import initial_map
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.protocol import Fit, Step
from stitchgrid.matchers.span import LEAK
from stitchgrid.matchers.stitchers.affine import AffineMap, r_squared, residual, squared_error
from stitchgrid.matchers.stitchers.direct import fit_direct
from stitchgrid.matchers.stitchers.task_loss import TaskLoss
from stitchgrid.moments import PairMoments, Side, pair_moments
from stitchgrid.records import Head


def rows(count: int, width: int, *, seed: int, rank: int | None = None) -> Tensor:
    """Return rows with a mean of their own, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(count, rank or width) @ draw(rank or width, width) + 2 * draw(width)


def noisy_pair(count: int = 60, width: int = 5, *, rank: int | None = None) -> tuple[Tensor, Tensor]:
    a = rows(count, width, seed=1, rank=rank)
    return a, a @ rows(width, 4, seed=2) + rows(count, 4, seed=3)


def textbook_fit(a: Tensor, b: Tensor) -> AffineMap:
    """Return the least-squares map by numpy on [A 1]."""
    design = np.column_stack([a.numpy(), np.ones(len(a))])
    solution = torch.from_numpy(np.linalg.lstsq(design, b.numpy(), rcond=1e-9)[0])
    return AffineMap(weight_DE=solution[:-1], bias_E=solution[-1])


def textbook_error(stitch: AffineMap, a: Tensor, b: Tensor) -> float:
    return float((a @ stitch.weight_DE + stitch.bias_E - b).square().sum())


def fitted(a: Tensor, b: Tensor) -> Fit:
    return fit_direct(pair_moments(a, b))


def test_direct_at_full_rank_is_lstsq_with_a_column_of_ones():
    a, b = noisy_pair()
    came, wanted = fitted(a, b).map, textbook_fit(a, b)
    torch.testing.assert_close(came.weight_DE, wanted.weight_DE, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(came.bias_E, wanted.bias_E, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("count", "width", "rank"), [(60, 8, 3), (6, 10, None)])
def test_direct_on_deficient_rows_gives_the_values_of_lstsq_and_the_smallest_weights(count, width, rank):
    a, b = noisy_pair(count, width, rank=rank)
    came, wanted = fitted(a, b).map, textbook_fit(a, b)
    torch.testing.assert_close(came(a), wanted(a), rtol=1e-7, atol=1e-7)
    centred = a - a.mean(0)
    smallest = torch.linalg.pinv(centred, rtol=1e-9) @ (b - b.mean(0))
    torch.testing.assert_close(came.weight_DE, smallest, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rank", [None, 3])
def test_no_affine_map_has_a_lower_residual_on_the_fit_rows(rank):
    a, b = noisy_pair(rank=rank)
    best = fitted(a, b).map
    lowest = textbook_error(best, a, b)
    generator = torch.Generator().manual_seed(4)
    for size in (1.0, 1e-2, 1e-4):
        for _ in range(20):
            nudge = lambda like: like + size * torch.randn(like.shape, generator=generator, dtype=like.dtype)  # noqa: B023, E731
            moved = AffineMap(weight_DE=nudge(best.weight_DE), bias_E=nudge(best.bias_E))
            assert textbook_error(moved, a, b) > lowest


def test_dropped_directions_are_those_whose_eigenvalue_is_below_rcond_of_the_largest():
    scales = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)
    a = torch.linalg.qr(rows(40, 3, seed=5) - rows(40, 3, seed=5).mean(0)).Q
    a = (a - a.mean(0)) * scales
    b = a / scales
    kept = fit_direct(pair_moments(a, b), rcond=1e-6).map.weight_DE.diagonal().abs() > 0.5
    assert kept.tolist() == [True, True, False]  # eigenvalues are 1, 1e-4, 1e-8 of the largest
    assert (fitted(a, b).map.weight_DE.diagonal().abs() > 0.5).all()


def any_map(width: int, seed: int) -> AffineMap:
    return AffineMap(weight_DE=rows(width, 4, seed=seed), bias_E=rows(1, 4, seed=seed + 1)[0])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_residual_and_r2_of_any_map_are_their_definitions_on_explicit_rows(offset):
    a, b = noisy_pair()
    a, b = a + offset, b - offset
    for stitch in (any_map(5, 6), fitted(a, b).map, fitted(*noisy_pair(count=7)).map):
        moments, error = pair_moments(a, b), textbook_error(stitch, a, b)
        assert squared_error(stitch, moments) == pytest.approx(error, rel=1e-6)
        assert residual(stitch, moments) == pytest.approx(error / float(b.square().sum()), rel=1e-6)
        spread = float((b - b.mean(0)).square().sum())
        assert r_squared(stitch, moments) == pytest.approx(1 - error / spread, rel=1e-6)


def test_residual_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    a, b = noisy_pair()
    b = b * torch.linspace(0.1, 5, len(b), dtype=torch.float64)[:, None]
    stitch = any_map(5, 8)
    over_batches = np.mean([residual(stitch, pair_moments(a[part], b[part])) for part in (slice(0, 20), slice(20, 60))])
    assert abs(over_batches - residual(stitch, pair_moments(a, b))) > 1e-2


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_layer_stitched_to_itself_leaves_no_residual(rank, seed):
    a = rows(80, 6, seed=seed, rank=rank)
    moments = pair_moments(a, a)
    value = residual(fit_direct(moments).map, moments)
    assert 0 <= value < 1e-12


def moments_with_error(error: float) -> tuple[AffineMap, PairMoments]:
    """Return the identity of one feature, and moments in which it misses by `error` of the target's square."""
    one = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    moments = PairMoments(
        num_rows=10,
        x=Side(mean_D=zero, scatter_DD=one * (1 + error)),
        y=Side(mean_D=zero, scatter_DD=one),
        xy_DE=one,
    )
    return AffineMap(weight_DE=one, bias_E=zero), moments


@pytest.mark.parametrize(("error", "stored"), [(-5e-13, 0.0), (-1e-9, -1e-9), (5e-13, 5e-13), (0.0, 0.0)])
def test_only_rounding_below_zero_is_stored_as_zero(error, stored):
    assert residual(*moments_with_error(error)) == pytest.approx(stored, abs=1e-15)


def test_residual_of_an_all_zero_target_and_r2_of_a_constant_one_are_undefined():
    a, zero, constant = rows(20, 5, seed=9), torch.zeros(20, 4), torch.full((20, 4), 0.1)
    assert residual(any_map(5, 10), pair_moments(a, zero)).isnan()
    assert r_squared(any_map(5, 10), pair_moments(a, constant)).isnan()
    assert residual(fitted(a, constant).map, pair_moments(a, constant)) == 0


def test_a_constant_source_is_mapped_to_the_mean_of_the_target():
    a, b = torch.full((20, 3), 0.1), rows(20, 4, seed=11)
    stitch = fitted(a, b).map
    assert not stitch.weight_DE.any()
    torch.testing.assert_close(stitch.bias_E, b.mean(0))


INVERTIBLE = torch.eye(5).double() + rows(5, 5, seed=12) / 4


@pytest.mark.parametrize("held_out", [False, True])
def test_the_residual_does_not_change_when_the_source_is_mapped_invertibly(held_out):
    a, b = noisy_pair()
    fit, judge = (slice(0, 40), slice(40, 60)) if held_out else (slice(0, 60), slice(0, 60))
    value = lambda a: float(residual(fitted(a[fit], b[fit]).map, pair_moments(a[judge], b[judge])))  # noqa: E731
    assert value(a @ INVERTIBLE + 3) == pytest.approx(value(a), rel=1e-7)
    singular = INVERTIBLE.clone()
    singular[:, 0] = singular[:, 1]
    assert abs(value(a @ singular) - value(a)) > 1e-3


def is_flagged(fit_rows: Tensor, evaluation_rows: Tensor) -> bool:
    return bool(fitted(fit_rows, fit_rows).span.unseen_share(pair_moments(evaluation_rows, evaluation_rows)) > LEAK)


def upsampled(count: int, channels: int, *, seed: int) -> Tensor:
    """Return the position rows of 2x2 maps of as many images, resized to 32x32."""
    maps = torch.randn(count, channels, 2, 2, generator=torch.Generator().manual_seed(seed))
    large = functional.interpolate(maps, size=(32, 32), mode="bilinear", align_corners=False)
    return large.permute(0, 2, 3, 1).reshape(-1, channels)


def test_ten_upsampled_images_are_thousands_of_rows_and_still_too_few():
    few = upsampled(10, 64, seed=1)
    assert len(few) == 10_240
    assert fitted(few, few).span.axes_DK.shape[1] in (39, 40)
    assert is_flagged(few, upsampled(50, 64, seed=2))
    assert not is_flagged(upsampled(40, 64, seed=1), upsampled(50, 64, seed=2))


def dead(a: Tensor, *channels: int) -> Tensor:
    a = a.clone()
    a[:, list(channels)] = 0
    return a


def test_channels_that_are_dead_everywhere_need_no_rows():
    a, other = rows(200, 6, seed=13), rows(300, 6, seed=14)
    assert not is_flagged(dead(a, 1, 4), dead(other, 1, 4))
    assert not is_flagged(dead(a[:6], 0, 1, 4, 5), dead(other, 0, 1, 4, 5))  # as many rows as channels, rank 2


def test_a_channel_that_wakes_up_after_the_fit_is_flagged():
    a, other = rows(200, 6, seed=13), rows(300, 6, seed=14)
    assert is_flagged(dead(a, 1), other)
    other[1:, 1] = 0
    other[0, 1] = 0.1
    assert is_flagged(dead(a, 1), other)


@pytest.mark.parametrize(("count", "flagged"), [(30, True), (64, True), (65, True), (66, False), (100, False)])
def test_rows_that_any_map_would_fit_are_too_few_even_for_themselves(count, flagged):
    a = rows(count, 64, seed=15)
    assert is_flagged(a, a) == flagged


def test_a_constant_channel_is_no_direction_to_be_missed():
    a, other = rows(200, 6, seed=13), rows(300, 6, seed=14)
    a[:, 2] = other[:, 2] = 0.7
    assert not is_flagged(a, other)
    other[:, 2] = 0.9
    assert is_flagged(a, other)


def test_directions_that_rcond_drops_do_not_make_a_fit_underdetermined():
    a = rows(200, 4, seed=16) * torch.tensor([1.0, 1.0, 1e-3, 1e-3])
    fit = fit_direct(pair_moments(a, a), rcond=1e-4)
    assert residual(fit.map, pair_moments(a, a)) > 1e-8
    assert fit.span.unseen_share(pair_moments(a, a)) <= LEAK


@pytest.mark.parametrize(("num_in", "num_out"), [(7, 3), (3, 7), (1, 1), (64, 10)])
def test_the_first_map_is_what_pytorch_draws_for_a_linear_layer_and_a_1x1_convolution(num_in, num_out):
    came = initial_map(num_in, num_out, generator=torch.Generator().manual_seed(17))
    for make in (lambda: nn.Linear(num_in, num_out), lambda: nn.Conv2d(num_in, num_out, kernel_size=1)):
        with torch.random.fork_rng():
            torch.manual_seed(17)
            module = make()
        assert module.bias is not None
        assert torch.equal(came.weight_DE, module.weight.detach().reshape(num_out, num_in).mT)
        assert torch.equal(came.bias_E, module.bias.detach())


def test_the_first_map_depends_on_its_own_generator_alone():
    torch.manual_seed(0)
    first = initial_map(4, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    again = initial_map(4, 3, generator=torch.Generator().manual_seed(1))
    other = initial_map(4, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first.weight_DE, again.weight_DE)
    assert torch.equal(first.bias_E, again.bias_E)
    assert not torch.equal(first.weight_DE, other.weight_DE)


def test_stacking_gives_every_map_the_gradient_it_has_alone():
    generator = torch.Generator().manual_seed(18)
    tail = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double().requires_grad_(False)
    labels = torch.randint(4, (9,), generator=generator)
    inputs = [torch.randn(9, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    weights = [torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    losses = [functional.cross_entropy(tail(a @ w), labels) for a, w in zip(inputs, weights, strict=True)]
    alone = [torch.autograd.grad(loss, w)[0] for loss, w in zip(losses, weights, strict=True)]

    logits = tail(torch.cat([a @ w for a, w in zip(inputs, weights, strict=True)])).unflatten(0, (3, 9))
    total = TaskLoss(TrainingParams()).loss(Step(head=Head(), labels_N=labels, scores_SNK=logits))
    assert total.item() == pytest.approx(sum(loss.item() for loss in losses), rel=1e-6)
    for together, wanted in zip(torch.autograd.grad(total, weights), alone, strict=True):
        torch.testing.assert_close(together, wanted, rtol=1e-5, atol=1e-7)


def test_an_affine_map_keeps_the_precision_of_its_rows_and_can_be_taken_out_of_its_graph():
    stitch = AffineMap(weight_DE=torch.ones(2, 3, requires_grad=True), bias_E=torch.ones(3, requires_grad=True))
    assert stitch(torch.ones(4, 2, dtype=torch.float64)).dtype == torch.float64
    assert stitch(torch.ones(5, 4, 2)).shape == (5, 4, 3)
    exact = stitch.double()
    assert exact.weight_DE.dtype == exact.bias_E.dtype == torch.float64
    assert not exact.weight_DE.requires_grad
