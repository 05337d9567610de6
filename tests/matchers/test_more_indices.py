"""Each index against a library or a formula of its own, and on input that is hard for it."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist
from scipy.stats import rankdata, spearmanr
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from stitchgrid.errors import InputError
from stitchgrid.matchers.gram import pairs_of_images
from stitchgrid.matchers.indices.rsa import mean_ranks
from stitchgrid.matchers.measures import gram_of_rows, index_of_rows
from stitchgrid.matchers.registry import kind_of
from stitchgrid.records import Layer

NEIGHBOURS = ("mutual_knn", "jaccard_knn")
OF_GRAMS = ("cka_unbiased", "cka_rbf", "rsa", *NEIGHBOURS)
OF_MOMENTS = ("svcca", "mean_cca", "linear_regression", "soft_matching")


def one(kind: str, x: Tensor, y: Tensor, **params: object) -> float:
    return index_of_rows(kind, x, y, **params)[kind]


def noise(rows: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(rows: int, width_x: int, width_y: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return two layers with three directions in common, noise, and means and scales of their own."""
    common = noise(rows, 3, seed=seed)
    x = common @ noise(3, width_x, seed=seed + 1) + noise(rows, width_x, seed=seed + 2)
    y = common @ noise(3, width_y, seed=seed + 3) + noise(rows, width_y, seed=seed + 4)
    return x + 0.3 * noise(1, width_x, seed=seed + 5), y + 0.3 * noise(1, width_y, seed=seed + 6)


X, Y = related(120, 7, 5)


def hsic(k: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Song et al. 2012, equation 5, with explicit products."""
    n, ones = len(k), np.ones(len(k))
    total = (
        np.trace(k @ q)
        + (ones @ k @ ones) * (ones @ q @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * ones @ k @ q @ ones
    )
    return float(total / (n * (n - 3)))


def hollow(x: NDArray[np.float64]) -> NDArray[np.float64]:
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    return gram


@pytest.mark.parametrize("rows", [4, 5, 40])
def test_cka_unbiased_is_the_formula_of_song_et_al_on_features_as_they_are(rows):
    x, y = related(rows, 6, 8)
    k, q = hollow(x.numpy()), hollow(y.numpy())
    assert one("cka_unbiased", x, y) == pytest.approx(hsic(k, q) / math.sqrt(hsic(k, k) * hsic(q, q)), rel=1e-8)


def test_cka_unbiased_of_independent_layers_is_about_zero_with_either_sign_where_cka_is_near_one():
    draws = [(noise(100, 1_000, seed=k), noise(100, 1_000, seed=k + 50)) for k in range(20)]
    found = np.array([one("cka_unbiased", x, y) for x, y in draws])
    assert abs(found.mean()) < 0.01
    assert (found < 0).any()
    assert (found > 0).any()
    assert np.abs(found).max() < 0.05
    assert one("cka", *draws[0]) == pytest.approx(0.91, abs=0.01)


def test_cka_unbiased_of_one_image_that_differs_is_undefined():
    x = torch.zeros(20, 3)
    x[4] = torch.tensor([1.0, 2.0, 0.5])
    assert math.isnan(one("cka_unbiased", x, noise(20, 3, seed=0).float()))
    assert one("cka", x, x) == pytest.approx(1)


@pytest.mark.parametrize("bandwidth", [0.2, 0.5, 2.0])
def test_cka_rbf_is_cka_of_kernels_whose_width_is_the_median_of_all_pairs(bandwidth):
    kernels = []
    for rows in (X.numpy(), Y.numpy()):
        squares = ((rows[:, None] - rows[None]) ** 2).sum(2)
        median = np.median(squares[np.triu_indices(len(rows), 1)])
        kernel = np.exp(-squares / (2 * bandwidth**2 * median))
        kernels.append(kernel - kernel.mean(0) - kernel.mean(1, keepdims=True) + kernel.mean())
    wanted = (kernels[0] * kernels[1]).sum() / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    assert one("cka_rbf", X, Y, bandwidth=bandwidth) == pytest.approx(wanted, rel=1e-9)


def test_cka_rbf_has_no_width_where_most_images_are_equal():
    x = noise(20, 4, seed=1).float()
    x[:17] = x[0]
    assert math.isnan(one("cka_rbf", x, noise(20, 4, seed=2).float()))
    x[:17] = x[0] + 1e3
    assert math.isnan(one("cka_rbf", x, x))


def test_mean_cca_is_that_of_scikit_learn_and_of_qr_decompositions():
    bases = [np.linalg.qr(a.numpy() - a.numpy().mean(0))[0] for a in (X, Y)]
    wanted = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()
    assert one("mean_cca", X, Y) == pytest.approx(wanted, rel=1e-8)
    scores = CCA(n_components=5, max_iter=20_000, tol=1e-12).fit_transform(X.numpy(), Y.numpy())
    by_sklearn = np.mean([np.corrcoef(*(side[:, k] for side in scores))[0, 1] for k in range(5)])
    assert one("mean_cca", X, Y) == pytest.approx(by_sklearn, rel=1e-5)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
def test_svcca_is_mean_cca_of_the_components_that_scikit_learn_keeps(variance):
    kept = []
    for a in (X * torch.logspace(0, -2, 7), Y * torch.logspace(0, -1, 5)):
        shares = PCA().fit(a.numpy()).explained_variance_ratio_.cumsum()
        kept.append((a, PCA(int((shares < variance - 1e-12).sum()) + 1).fit_transform(a.numpy())))
    (x, top_x), (y, top_y) = kept
    found = one("svcca", x, y, variance=variance)
    assert found == pytest.approx(one("mean_cca", torch.from_numpy(top_x), torch.from_numpy(top_y)), rel=1e-8)
    if variance == 1:
        assert found == pytest.approx(one("mean_cca", x, y), rel=1e-8)


def test_linear_regression_is_that_of_scikit_learn_and_goes_one_way():
    for x, y in ((X, Y), (Y, X)):
        model = LinearRegression().fit(x.numpy(), y.numpy())
        wanted = r2_score(y.numpy(), model.predict(x.numpy()), multioutput="variance_weighted")
        assert one("linear_regression", x, y) == pytest.approx(wanted, rel=1e-8)
    assert abs(one("linear_regression", X, Y) - one("linear_regression", Y, X)) > 1e-2


def test_linear_regression_from_a_source_that_does_not_vary_explains_nothing():
    still = torch.full((30, 3), 0.1)
    assert one("linear_regression", still, noise(30, 2, seed=0)) == 0
    assert math.isnan(one("linear_regression", noise(30, 2, seed=0), still))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_rsa_is_that_of_scipy(offset):
    x, y = (a + offset for a in related(60, 20, 30))
    wanted = spearmanr(*(pdist(a.numpy(), "correlation") for a in (x, y))).statistic
    assert one("rsa", x, y) == pytest.approx(wanted, abs=1e-5)
    x, y = x.float(), y.float()
    wanted = spearmanr(*(pdist(a.double().numpy(), "correlation") for a in (x, y))).statistic
    assert one("rsa", x, y) == pytest.approx(wanted, abs=2e-5)


def test_distances_that_tie_have_the_mean_of_their_ranks():
    """Of two features images correlate by 1 or -1; rounding must not order them."""
    x = torch.randint(0, 9, (40, 2), generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.5])
    y = noise(40, 6, seed=1).float()
    is_other = pdist((x[:, :1] > x[:, 1:]).numpy(), lambda a, b: float(a[0] != b[0]))
    wanted = spearmanr(is_other, pdist(y.double().numpy(), "correlation")).statistic
    for numbers in (x.float(), x.double(), 1e-20 * x.double(), (x / 7).half()):
        assert one("rsa", numbers, y) == pytest.approx(wanted, abs=1e-5)


def test_mean_ranks_are_those_of_scipy():
    numbers = torch.randint(0, 6, (50,), generator=torch.Generator().manual_seed(0)).double()
    np.testing.assert_array_equal(mean_ranks(numbers).numpy(), rankdata(numbers.numpy()))
    assert mean_ranks(torch.tensor([1.0, torch.nan])).isnan().all()


def test_rsa_is_undefined_where_an_image_does_not_vary_or_all_distances_are_equal():
    x, y = noise(20, 5, seed=0), noise(20, 4, seed=1)
    x[3] = 0.1
    assert math.isnan(one("rsa", x, y))
    assert math.isnan(one("rsa", x.float(), y.float()))
    assert math.isnan(one("rsa", torch.eye(6), noise(6, 4, seed=0).float()))


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("offset", [0.0, 0.5, 1e4])
def test_neighbourhoods_are_those_of_scikit_learn(k, offset):
    x, y = (a + offset for a in related(80, 20, 12))
    near = []
    for a in (x, y):
        search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(a.numpy())
        near.append([set(row.tolist()) for row in search.kneighbors(return_distance=False)])
    both = list(zip(*near, strict=True))
    assert one("mutual_knn", x, y, k=k) == pytest.approx(np.mean([len(a & b) / k for a, b in both]), abs=1e-12)
    assert one("jaccard_knn", x, y, k=k) == pytest.approx(
        np.mean([len(a & b) / len(a | b) for a, b in both]), abs=1e-12
    )


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_an_image_is_no_neighbour_of_itself_where_others_equal_it(kind):
    x, y = noise(40, 6, seed=0).float(), noise(40, 5, seed=1).float()
    x, y = torch.cat([x, x]), torch.cat([y, y])  # the copy is the nearest in both
    assert one(kind, x, y, k=1) == 1
    assert one(kind, x, y[y[:, 0].argsort()], k=1) < 1


def test_equally_near_images_are_taken_in_their_order():
    x = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 6)
    near = kind_of("mutual_knn")(kind_of("mutual_knn").about.params(k=2)).prepare(gram_of_rows(x)).nearest_NK
    assert near[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert near[6:9].tolist() == [[7, 8], [6, 8], [6, 7]]


def test_images_of_zeros_are_as_far_from_all_others_as_scikit_learn_has_them():
    x, y = noise(30, 6, seed=0), noise(30, 6, seed=1)
    x[[3, 4]] = 0.0
    search = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(x.numpy())
    wanted = [set(row.tolist()) for row in search.kneighbors(return_distance=False)]
    near = kind_of("mutual_knn")(kind_of("mutual_knn").about.params(k=5)).prepare(gram_of_rows(x)).nearest_NK
    alive = [k for k in range(30) if k not in (3, 4)]  # the cosines of an image of zeros tie
    assert [set(near[k].tolist()) for k in alive] == [wanted[k] for k in alive]
    assert 0 <= one("mutual_knn", x, y, k=5) <= 1


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_neighbours_are_undefined_where_no_image_is_nearer_than_another(kind):
    y = noise(30, 4, seed=0)
    for still in (torch.zeros(30, 3), torch.full((30, 3), 0.1), torch.arange(1, 31)[:, None] * torch.ones(3)):
        assert math.isnan(one(kind, still, y.float()))
        assert math.isnan(one(kind, y.float(), still))


def test_soft_matching_of_equal_widths_is_an_assignment_by_signed_correlations():
    x, y = related(90, 8, 8)
    y[:, 2], x[:, 5] = -y[:, 2], 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        correlations = np.nan_to_num(np.corrcoef(x.T.numpy(), y.T.numpy())[:8, 8:])
    correlations[5] = 0
    wanted = correlations[linear_sum_assignment(correlations, maximize=True)].mean()
    assert one("soft_matching", x, y) == pytest.approx(wanted, rel=1e-9)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert one("soft_matching", y, 5 * y[:, order] + 1) == pytest.approx(1, abs=1e-9)
    assert one("soft_matching", y[:, :1], -y[:, :1]) == pytest.approx(-1, abs=1e-9)


def test_soft_matching_shares_out_the_units_of_the_wider_layer():
    x = noise(50, 2, seed=0)
    assert one("soft_matching", x, torch.cat([x, x], 1)) == pytest.approx(1, abs=1e-9)
    correlations = np.corrcoef(X.T.numpy(), Y.T.numpy())[:7, 7:]
    wide = np.kron(correlations, np.ones((5, 7)))  # 35 copies of each make an assignment of it
    assert one("soft_matching", X, Y) == pytest.approx(
        wide[linear_sum_assignment(wide, maximize=True)].mean(), abs=1e-9
    )


def test_soft_matching_needs_pot_for_unequal_widths_alone(monkeypatch):
    vector = lambda width: Layer(name="v", node="v", depth=0, kind="vector", axes="ND", shape=(width,), flops=0)  # noqa: E731
    kind = kind_of("soft_matching")
    assert kind.not_installed(vector(4), vector(5)) is None
    monkeypatch.setitem(sys.modules, "ot", None)
    assert one("soft_matching", X[:, :5], Y) <= 1
    assert kind.not_installed(vector(4), vector(4)) is None
    assert "pip install 'stitchgrid[soft-matching]'" in kind.not_installed(vector(4), vector(5))
    with pytest.raises(InputError, match=r"unequal width needs POT.*pip install 'stitchgrid\[soft-matching\]'"):
        one("soft_matching", X, Y)


def test_soft_matching_takes_layers_of_up_to_1024_features():
    vector = lambda width: Layer(name="v", node="v", depth=0, kind="vector", axes="ND", shape=(width,), flops=0)  # noqa: E731
    about = kind_of("soft_matching").about
    assert about.why_not(vector(1_024), vector(5)) is None
    assert "takes layers of up to 1,024 features" in about.why_not(vector(5), vector(1_025))


@pytest.mark.parametrize("kind", [*OF_GRAMS, *OF_MOMENTS])
def test_values_survive_what_is_done_to_the_numbers(kind):
    """Each against its own value in float64 of the numbers as they are rounded."""
    x, y = related(80, 9, 6)
    tolerance = 0.0 if kind in NEIGHBOURS else 2e-5
    for change in (
        lambda a: a.half(),
        lambda a: a.float() + 1e4,
        lambda a: a.float() + 1e6,
        lambda a: (a * 1e-30).float(),
        lambda a: (a * 1e30).float(),
        lambda a: (a * 1e-40).float(),
    ):
        changed = [change(a) for a in (x, y)]
        wanted = one(kind, *(a.double() for a in changed))
        assert one(kind, *changed) == pytest.approx(wanted, abs=tolerance + 1e-12)


@pytest.mark.parametrize("kind", OF_GRAMS)
def test_what_is_prepared_takes_what_it_is_said_to(kind):
    num = 200
    index = kind_of(kind)(kind_of(kind).about.params())
    gram = gram_of_rows(noise(num, 6, seed=0))
    prepared = index.prepare(gram)
    if isinstance(prepared, Tensor):
        parts = [prepared]
    else:
        parts = prepared if isinstance(prepared, tuple) else [getattr(prepared, name) for name in prepared.__slots__]
    size = sum(part.numel() * part.element_size() for part in parts)
    assert index.prepared_bytes(num) == pytest.approx(size, rel=0.01)
    assert index.reads_distances == ("distances_NN" in vars(gram))


def test_the_fewest_images_of_neighbourhoods_follow_their_number():
    kind = kind_of("mutual_knn")
    assert [kind(kind.about.params(k=k)).fewest_images for k in (1, 10)] == [3, 12]
    assert kind.about.fewest_images == 12


def test_pairs_of_images_are_each_pair_once():
    matrix = torch.arange(16.0).view(4, 4)
    assert pairs_of_images(matrix).tolist() == [1, 2, 3, 6, 7, 11]


def test_kinds_are_known_without_torch():
    code = "import sys, stitchgrid.matchers.registry; print(*({'torch', 'scipy', 'ot'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []
