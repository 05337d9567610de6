"""Values keep their precision wherever activations lie: held to formulas written anew in float64, and to the reference.

Shape suffixes: R rows, N images, P positions, D features of the source, E of the target.
"""

from collections.abc import Callable
from functools import cache
from itertools import groupby

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers_engine import (
    NUM_CLASSES,
    ConvStage,
    MeanStage,
    Staged,
    Zoo,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401
    reference,
    run,
    trained,
    unlike,
    unlike_reference,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from stitchgrid.engine.groups import Groups
from stitchgrid.engine.row_errors import SpreadSum
from stitchgrid.matchers.alignment import pooled
from stitchgrid.matchers.gram import Gram, centred_gram
from stitchgrid.matchers.indices.cka import CKA
from stitchgrid.matchers.measures import index_of_rows
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.registry import default_metrics
from stitchgrid.matchers.stitchers.affine import r_squared, residual
from stitchgrid.matchers.stitchers.direct import fit_direct
from stitchgrid.moments import pair_moments
from stitchgrid.records import Layer

Floats = NDArray[np.float64]


def drawn(num_rows: int, num_features: int, *, seed: int) -> Tensor:
    """Return correlated float32 rows: half of what they say is common to all seeds."""
    common = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    mixed = common @ torch.randn(4, num_features, generator=generator)
    return mixed + torch.randn(num_rows, num_features, generator=generator)


def constant(x_RD: Tensor) -> Tensor:
    x_RD[:, 1] = 3.7
    return x_RD


def dead(x_RD: Tensor) -> Tensor:
    x_RD[:, [0, 2]] = 0.0
    return x_RD


def doubled(x_RD: Tensor) -> Tensor:
    x_RD[:, 3] = x_RD[:, 4]
    return x_RD


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as drawn": lambda x: x,
    "offset of 1e3": lambda x: x + 1e3,
    "offset of 1e6": lambda x: x + 1e6,
    "offsets of either sign": lambda x: x + 1e6 * (-1.0) ** torch.arange(x.shape[1]),
    "scale of 1e20": lambda x: x * 1e20,
    "scale of 3e37": lambda x: x * 3e37,
    "scale of 1e-20": lambda x: x * 1e-20,
    "denormal, scale of 1e-40": lambda x: x * 1e-40,
    "offset of 1e26, scale of 1e20": lambda x: (x + 1e6) * 1e20,
    "a constant feature": constant,
    "dead features": dead,
    "a feature twice": doubled,
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float64": lambda x: x.double(),
}


def cka_anew(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def basis(x: Floats) -> Floats:
    x = x - x.mean(0)
    left, values, _ = scipy.linalg.svd(x / np.abs(x).max(), full_matrices=False)
    return np.asarray(left[:, values**2 > 1e-12 * values[0] ** 2])


def pwcca_anew(x: Floats, y: Floats) -> tuple[float, float]:
    left, right = basis(x), basis(y)
    u, rho, vt = scipy.linalg.svd(left.T @ right, full_matrices=False)

    def distance(variates: Floats, features: Floats) -> float:
        centred = features - features.mean(0)
        weights = np.abs(variates.T @ (centred / np.abs(centred).max())).sum(1)
        return float(1 - (weights * rho.clip(0, 1)).sum() / weights.sum())

    return distance(left @ u, x), distance(right @ vt.T, y)


def procrustes_anew(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    nuclear = scipy.linalg.svdvals(x.T @ y).sum()
    return float(2 - 2 * nuclear / (np.linalg.norm(x) * np.linalg.norm(y)))


def least_squares_anew(x: Floats, y: Floats) -> tuple[float, float]:
    """Return residual and r2 of the projection of y on the centred source's span."""
    span, centred = basis(x), y - y.mean(0)
    error = centred - span @ (span.T @ centred)
    size = np.abs(y).max()
    squared = ((error / size) ** 2).sum()
    return float(squared / ((y / size) ** 2).sum()), float(1 - squared / ((centred / size) ** 2).sum())


def exact(x_RD: Tensor) -> Floats:
    return np.asarray(x_RD.double())


PAIRS = [pair for change in CHANGES for pair in ((change, "as drawn"), ("as drawn", change), (change, change))]
PAIRS += [
    ("scale of 1e20", "denormal, scale of 1e-40"),
    ("offset of 1e6", "scale of 3e37"),
    ("float16", "offset of 1e6"),
]


@pytest.mark.parametrize("num_rows", [60, 7])  # of 9 and 6 features: more rows than features, and fewer
@pytest.mark.parametrize(("of_source", "of_target"), dict.fromkeys(PAIRS))
def test_indices_and_least_squares_are_their_formulas_in_float64(of_source, of_target, num_rows):
    x_RD = CHANGES[of_source](drawn(num_rows, 9, seed=1))
    y_RE = CHANGES[of_target](drawn(num_rows, 6, seed=2))
    x, y, moments = exact(x_RD), exact(y_RE), pair_moments(x_RD, y_RE)
    stitch = fit_direct(moments).map
    came = {
        **index_of_rows("cka", x_RD, y_RE),
        **index_of_rows("pwcca", x_RD, y_RE),
        **index_of_rows("procrustes", x_RD, y_RE),
        "residual": residual(stitch, moments).item(),
        "r2": r_squared(stitch, moments).item(),
    }
    forth, back = pwcca_anew(x, y)
    error, share = least_squares_anew(x, y)
    wanted = {
        "cka": cka_anew(x, y),
        "pwcca": forth,
        "pwcca_reverse": back,
        "procrustes": procrustes_anew(x, y),
        "residual": error,
        "r2": share,
    }
    assert came == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_no_index_leaves_its_bounds_for_equal_layers(change):
    x_RD = CHANGES[change](drawn(40, 9, seed=1))
    moments = pair_moments(x_RD, x_RD)
    assert 1 - 1e-6 < index_of_rows("cka", x_RD, x_RD)["cka"] <= 1
    assert 0 <= index_of_rows("procrustes", x_RD, x_RD)["procrustes"] < 1e-6
    assert all(0 <= value < 1e-6 for value in index_of_rows("pwcca", x_RD, x_RD).values())
    assert 0 <= residual(fit_direct(moments).map, moments).item() < 1e-6


def test_cka_of_many_equal_layers_is_never_above_1():
    grams = [centred_gram(drawn(num_rows, 5, seed=seed)) for seed in range(100) for num_rows in (5, 30)]
    index = CKA(NoParams())
    prepared = [index.prepare(Gram(centred_NN=gram_NN)) for gram_NN in grams]
    values = index.compare([(one, (one[0].clone(), one[1].clone())) for one in prepared])["cka"]
    assert (values <= 1).all()
    assert (values > 1 - 1e-9).all()


def test_what_is_not_finite_is_still_not_finite():
    x_RD = drawn(20, 5, seed=1)
    for wrong in (torch.inf, torch.nan):
        x_RD[3, 2] = wrong
        assert not centred_gram(x_RD).trace().isfinite()


def test_a_gram_matrix_of_ordinary_rows_has_the_bits_it_had():
    """The products of version 0.1.0, block by block."""
    x_RD = drawn(30, 9, seed=1)
    centred = x_RD - (x_RD.sum(0, dtype=torch.float64) / 30).float()
    gram_NN = torch.zeros(30, 30, dtype=torch.float64)
    gram_NN += centred @ centred.mT
    gram_NN = gram_NN.tril() + gram_NN.tril(-1).mT
    mean_N = gram_NN.mean(0)
    assert torch.equal(centred_gram(x_RD), gram_NN - mean_N[:, None] - mean_N + mean_N.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_pooled_in_float64(dtype):
    layer = Layer(name="x", node="x", depth=0.5, kind="map", axes="NCHW", shape=(5, 6, 7), flops=1.0)
    a = torch.randn(9, 5, 6, 7, generator=torch.Generator().manual_seed(0)) + 1e3
    a = a.to(dtype).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled(a, layer), a.double().mean((2, 3)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-40])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_total_variance_knows_neither_offset_nor_scale(offset, scale):
    rows_ND = (drawn(50, 6, seed=3) + offset) * scale
    spread = SpreadSum(Groups(3))
    for number, some in enumerate(rows_ND.split(20)):
        spread.add(some.unsqueeze(1), 20 * number)
    assert spread.trace().item() == pytest.approx(exact(rows_ND).var(0).sum(), rel=1e-7)
    wanted = [exact(rows_ND[torch.arange(50) % 3 != group]).var(0).sum() for group in range(3)]
    assert spread.traces().tolist() == pytest.approx(wanted, rel=1e-7)


class Moved(nn.Module):
    """Maps far from zero, or of another size."""

    def __init__(self, offset: float, scale: float):
        super().__init__()
        self.offset, self.scale = offset, scale

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.offset) * self.scale


class Back(nn.Module):
    """Takes maps back to where they were, and goes on."""

    def __init__(self, moved: Moved, stage: nn.Module):
        super().__init__()
        self.offset, self.scale, self.stage = moved.offset, moved.scale, stage

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x / self.scale - self.offset)


PLACES = {"offset": (1e6, 1.0), "large": (0.0, 1e20), "small": (0.0, 1e-40)}
OF_SCORES = {"accuracy", "loss", "relative_accuracy", "penalty", "agreement"}


@cache
def moved_zoo(place: str) -> Zoo:
    first, second, _, *others = trained("conv").stages
    moved = Moved(*PLACES[place])
    return Zoo.of(moved=Staged([first, moved, Back(moved, second), *others]).requires_grad_(False))


CLOSED = [
    *map(matcher, ("cka", "pwcca", "procrustes")),
    matcher("direct", metrics=(*default_metrics("direct"), *OOD_METRICS["mahalanobis"])),
    matcher("direct", resize="area"),
]


ROUNDED = ("loss", "negative_mass", *OOD_METRICS["mahalanobis"])  # T(A) into maps of 1e-40, which have few digits


@pytest.mark.parametrize("place", PLACES)
def test_the_engine_has_the_values_of_the_reference_far_from_zero_and_at_any_scale(place):
    zoo = moved_zoo(place)
    sweep = make_sweep(zoo, [("moved", "moved")], CLOSED)
    moved = [cell for cell in every_cell(sweep).values() if 1 in (cell.source_layer, cell.target_layer)]
    rows, textbook = run(zoo, sweep, wanted=[cell.cell_id for cell in moved]), reference(zoo, sweep)
    assert {row.error for row in rows} == {None}
    wanted: dict[str, dict[str, float]] = {}
    for _, of_pair in groupby(moved, key=lambda cell: (cell.target_key, cell.source_key)):
        wanted |= textbook.values(list(of_pair))
    wider = dict.fromkeys(ROUNDED, 3e-3) if place == "small" else {}
    assert not unlike(sweep, rows, lambda cell: wanted[cell.cell_id], wider=wider)


@pytest.mark.parametrize("place", PLACES)
def test_a_moved_layer_into_itself_is_the_upper_control(place):
    zoo = moved_zoo(place)
    sweep = make_sweep(zoo, [("moved", "moved")], [matcher("direct"), matcher("cka")])
    found = by_cell(run(zoo, sweep))
    cells = [sweep.cell(0, layer, 0, layer, k) for layer in range(5) for k in (0, 1)]
    for cell in cells:
        metrics = found[cell.cell_id]
        if cell.matcher == 1:
            assert 1 - 1e-6 < metrics["cka"].value <= 1
        else:
            assert metrics["residual"].value < 1e-6
            assert metrics["agreement"].value == 1
            assert metrics["variance_ratio"].value == pytest.approx(1, abs=1e-5)


def test_a_network_that_gives_no_finite_scores_has_no_accuracy():
    class Overflowing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 1e30 * (1 + x.detach().abs().amax() * 1e30))

    torch.manual_seed(0)
    net = Staged([ConvStage(3, 6), MeanStage(), Overflowing(6, NUM_CLASSES)]).eval().requires_grad_(False)
    zoo = Zoo.of(over=net)
    sweep = make_sweep(zoo, [("over", "over")], [matcher("direct")])
    metrics = by_cell(run(zoo, sweep))[sweep.cell(0, 0, 0, 0, 0).cell_id]
    undefined = {metric for metric, row in metrics.items() if row.value is None}
    assert undefined >= OF_SCORES
    assert all("undefined" in metrics[metric].flags for metric in undefined)


def test_training_that_float32_cannot_bear_is_an_error_or_flagged():
    zoo = moved_zoo("large")
    sweep = make_sweep(zoo, [("moved", "moved")], [matcher("task_loss", epochs=1, batch_size=32, lr=1e-2, samples=64)])
    moved = [c.cell_id for c in every_cell(sweep).values() if (c.source_layer == 1) != (c.target_layer == 1)]
    found = by_cell(run(zoo, sweep, wanted=moved))
    assert all("diverged" in row.flags for metrics in found.values() for row in metrics.values())
    assert any(None in metrics for metrics in found.values())  # an error, which says so
    assert any("loss" in metrics for metrics in found.values())


def test_tokens_that_are_dropped_are_zeros_for_sources_far_from_zero_too():
    zoo = Zoo.of(moved=moved_zoo("offset").staged["moved"], token=trained("token"))
    sweep = make_sweep(zoo, [("moved", "token")], [matcher("direct", cls="drop"), matcher("direct", cls="pool")])
    moved = [cell for cell in every_cell(sweep).values() if cell.source_layer == 1]
    rows, textbook = run(zoo, sweep, wanted=[cell.cell_id for cell in moved]), reference(zoo, sweep)
    assert not unlike_reference(sweep, rows, textbook)
