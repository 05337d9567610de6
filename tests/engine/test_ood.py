"""Whether T(A) left the distribution of B: scores against scikit-learn, planted shifts, and what must come out."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from helpers_engine import (
    Zoo,
    assert_close,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    run,
    trained_zoo,
    values,
    whole_shard,
    workspace,
)
from scipy.stats import chi2, ncx2
from sklearn.covariance import ShrunkCovariance
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from stitchgrid.engine.memory import shard_bytes
from stitchgrid.engine.shard import run_shard
from stitchgrid.matchers.metrics import OOD_METRICS, WITHOUT_TAIL
from stitchgrid.matchers.ood import Gaussian, detection, fit_gaussian, is_underdetermined
from stitchgrid.matchers.registry import default_metrics
from stitchgrid.moments import RowSums
from stitchgrid.planning import cost

AUROC, FPR95, AUPR = OOD_METRICS["mahalanobis"]
DIRECT = matcher("direct", metrics=[*default_metrics("direct"), AUROC, FPR95, AUPR])


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


def gaussian_of(rows: Tensor) -> Gaussian:
    sums = RowSums([rows.shape[1]])
    sums.add(sums.centre([rows]))
    return fit_gaussian(sums.side(0), num_rows=len(rows))


def normal(num: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_scores_are_distances_to_scikit_learns_shrunk_gaussian(offset):
    fit, rows = normal(50, 7, seed=0) * torch.arange(1, 8) + offset, normal(20, 7, seed=1) * 4 + offset
    wanted = np.sqrt(ShrunkCovariance(shrinkage=0.01).fit(fit.numpy()).mahalanobis(rows.numpy()))
    np.testing.assert_allclose(-gaussian_of(fit).score(rows), wanted, atol=6e-4)  # rounded to 3 decimals


def test_fewer_rows_than_features_and_features_that_do_not_vary_leave_scores_finite():
    fit = normal(5, 9, seed=2)
    fit[:, 3] = 0.0
    scores = gaussian_of(fit).score(normal(30, 9, seed=3))
    assert torch.isfinite(scores).all()
    assert scores.max() < 0


def test_rows_that_do_not_vary_at_all_have_no_distance():
    assert gaussian_of(torch.ones(5, 3, dtype=torch.float64)).score(normal(4, 3, seed=4)).isnan().all()


@pytest.mark.parametrize("decimals", [0, 1, 6])  # few decimals: many ties
@pytest.mark.parametrize("num", [20, 41, 100])
def test_detection_is_that_of_scikit_learn(num, decimals):
    b = normal(num, 1, seed=5)[:, 0].round(decimals=decimals)
    t = (normal(num, 4, seed=6).mT + torch.tensor([0.0, -1.0, 1.0, -9.0])[:, None]).round(decimals=decimals)
    t[3, 0] = b[0]
    found = detection(b, t)
    for k, scores in enumerate(t):
        both, is_b = torch.cat([b, scores]).numpy(), np.repeat([1, 0], num)
        assert found["auroc"][k].item() == pytest.approx(roc_auc_score(is_b, both), abs=1e-12)
        assert found["aupr"][k].item() == pytest.approx(average_precision_score(is_b, both), abs=1e-12)
        reached = [value for value in b.tolist() if (b >= value).double().mean() >= 0.95]
        assert found["fpr95"][k].item() == pytest.approx((scores >= max(reached)).double().mean().item())


def test_equal_scores_are_in_distribution_and_undefined_ones_are_undefined():
    b = normal(100, 1, seed=7)[:, 0]
    found = detection(b, torch.stack([b, torch.full_like(b, torch.nan)]))
    assert [found[name][0].item() for name in ("auroc", "fpr95")] == [0.5, 0.95]
    assert all(value[1].isnan() for value in found.values())
    assert all(value.isnan().all() for value in detection(torch.full_like(b, torch.nan), b[None]).values())


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, 6.0])
def test_a_planted_shift_gives_the_auroc_of_the_noncentral_chi_square(shift):
    width, num = 10, 20_000
    gaussian = gaussian_of(normal(num, width, seed=8))
    moved = normal(num, width, seed=9)
    moved[:, 0] += shift
    found = detection(gaussian.score(normal(num, width, seed=10)), gaussian.score(moved)[None])
    shares = (np.arange(2_000) + 0.5) / 2_000
    squares = chi2.ppf(shares, width)  # of the distances of B; P(T(A) is farther) for each of them
    assert found["auroc"].item() == pytest.approx(np.mean(ncx2.sf(squares, width, shift**2)), abs=0.01)
    assert found["fpr95"].item() == pytest.approx(ncx2.cdf(chi2.ppf(0.95, width), width, shift**2), abs=0.01)


@pytest.mark.parametrize("shrunk", [0.0, 0.5])
def test_rows_that_shrank_towards_the_mean_lie_far_below_one_half(shrunk):
    gaussian, b = gaussian_of(normal(2_000, 20, seed=11)), normal(500, 20, seed=12)
    found = detection(gaussian.score(b), gaussian.score(shrunk * normal(500, 20, seed=13))[None])
    assert found["auroc"].item() < 0.02
    assert found["fpr95"].item() == 1.0


def test_a_layer_stitched_to_itself_is_in_distribution(zoo):
    sweep = make_sweep(zoo, [(name, name) for name in zoo.staged], [DIRECT])
    num = 0
    for cell_id, row in by_cell(run(zoo, sweep)).items():
        cell = every_cell(sweep)[cell_id]
        if cell.source_layer == cell.target_layer:
            assert row[AUROC].value == pytest.approx(0.5, abs=1e-4)
            assert row[FPR95].value == pytest.approx(86 / 90)  # the first share of 90 that is 0.95 or more
            assert row[AUROC].higher_is_similar is None
            num += 1
    assert num == 5 + 5 + 4 + 4


def test_a_map_trained_far_away_is_seen_and_one_image_makes_no_gaussian(zoo):
    sweep = make_sweep(
        zoo, [("conv", "token")], [replace(DIRECT, samples=1), matcher("task_loss", metrics=[AUROC], epochs=2, lr=1.0)]
    )
    cells = every_cell(sweep)
    rows = [row for row in run(zoo, sweep) if row.metric == AUROC and cells[row.cell_id].target_layer == 2]
    undefined, far = ([row for row in rows if row.matcher == kind] for kind in ("direct", "task_loss"))
    assert all(row.value is None and set(row.flags) >= {"undefined", "ood_underdetermined"} for row in undefined)
    assert min(row.value for row in far) > 0.95


@pytest.mark.parametrize(("batch_size", "halvings"), [(1, 0), (7, 0), (90, 0), (64, 2)])
def test_how_images_come_in_batches_moves_no_more_than_pairs_of_scores_nearly_equal(zoo, batch_size, halvings):
    pairs = [("conv", "conv_again"), ("token", "view")]
    alone = matcher("direct", metrics=OOD_METRICS["mahalanobis"])
    wanted = values(run(zoo, make_sweep(zoo, pairs, [alone])))
    sweep = make_sweep(zoo, pairs, [alone], batch_size=batch_size)
    came = values(run_shard(whole_shard(sweep), replace(workspace(zoo, sweep), halvings=halvings)))
    assert came.keys() == wanted.keys()
    for key, value in came.items():
        assert value == pytest.approx(wanted[key], abs=1.01 / 90 if key[1] == FPR95 else 1e-3)


def test_other_metrics_keep_their_values_and_addresses_beside_a_diagnostic(zoo):
    plain, asked = (make_sweep(zoo, [("conv", "token")], [one]) for one in (matcher("direct"), DIRECT))
    assert list(every_cell(plain)) == list(every_cell(asked))
    found = {key: value for key, value in values(run(zoo, asked)).items() if key[1] not in OOD_METRICS["mahalanobis"]}
    assert_close(found, values(run(zoo, plain)))


def test_distances_alone_run_no_tail(zoo, monkeypatch):
    monkeypatch.setattr("stitchgrid.engine.shard.check_halves", lambda *_: None)  # which runs tails of a few images
    assert WITHOUT_TAIL.issuperset(OOD_METRICS["mahalanobis"])
    sweep = make_sweep(zoo, [("conv", "token")], [matcher("direct", metrics=["residual", AUROC])])
    work = replace(workspace(zoo, sweep), network=lambda k: Untailed(zoo.cut[sweep.networks[k].name]))
    assert all(row.error is None and row.value is not None for row in run_shard(whole_shard(sweep), work))


class Untailed:
    """A network whose tails are out of reach."""

    def __init__(self, network: object):
        self.taps, self.logits = network.taps, network.logits

    def suffix(self, node: str) -> None:
        raise AssertionError(f"the tail behind {node} was asked for")


def test_too_few_images_for_a_gaussian_are_flagged_apart_from_too_few_for_the_map(zoo):
    assert [is_underdetermined(num, 10) for num in (20, 21)] == [True, False]
    for samples, wanted in ((20, {"ood_underdetermined"}), (21, set())):
        spec = matcher("direct", samples=samples, metrics=["residual", AUROC])
        sweep = make_sweep(zoo, [("conv", "token")], [spec])
        cells = every_cell(sweep)
        rows = [row for row in run(zoo, sweep) if cells[row.cell_id].target_layer == 0]  # 10 features wide
        assert {flag for row in rows for flag in row.flags if flag.startswith("ood")} == wanted


def test_a_trained_map_is_measured_by_the_gaussian_of_its_own_fit_images(zoo):
    specs = [
        matcher("task_loss", samples=num, metrics=OOD_METRICS["mahalanobis"], epochs=1, lr=0.01) for num in (30, 160)
    ]
    sweep = make_sweep(zoo, [("conv", "view")], specs, batch_size=64)
    together = values(run(zoo, sweep))
    for spec in specs:
        alone = make_sweep(zoo, [("conv", "view")], [spec], batch_size=64)
        assert_close(values(run(zoo, alone)), together)


def test_the_plan_counts_distances_and_memory_their_scores(zoo):
    plain, asked = (make_sweep(zoo, [("conv", "token")], [one]) for one in (matcher("direct"), DIRECT))
    shard = whole_shard(plain)
    sources, targets = plain.networks[0].layers, plain.networks[1].layers
    num_fit, num_eval, wide = plain.num_fit_closed, plain.num_eval, sum(layer.width for layer in sources)
    fitted = sum(prod(t.shape) + 2 * t.width**2 for t in targets)  # pooled rows of B, and their products
    scored = sum(prod(t.shape) + 2 * (wide + t.width) * t.width for t in targets)  # a map and whitening are one product
    more = 10.0 * (num_fit * fitted + num_eval * scored)
    assert cost(asked, shard.blocks, (0,)) - cost(plain, shard.blocks, (0,)) == pytest.approx(more)
    assert shard_bytes(asked, shard, torch.device("cpu")) - shard_bytes(plain, shard, torch.device("cpu")) >= (
        4 * num_eval * len(sources) * len(targets)
    )
