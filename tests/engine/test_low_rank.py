"""Sources of low rank, against projections by an explicit SVD, in every kind and in both procedures."""

from dataclasses import replace

import pytest
import torch
from helpers_engine import (
    FEW,
    IMAGES,
    FakeImages,
    FakeSplit,
    Zoo,
    by_cell,
    close,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    preprocessed,
    ranked,
    reference,
    run,
    trained_zoo,
    unlike_reference,
    whole_shard,
    workspace,
)
from helpers_indices import explicit_procrustes, explicit_pwcca, hsic_cka
from torch import Tensor

from stitchgrid.engine.memory import shard_bytes
from stitchgrid.engine.shard import run_shard
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.matchers.low_rank import reduction_to
from stitchgrid.matchers.registry import MATCHERS, images_used
from stitchgrid.moments import pair_moments
from stitchgrid.planning import cost
from stitchgrid.records import MatcherSpec

CLOSED = ["direct", "cka", "pwcca", "procrustes"]
INDICES = [name for name, about in MATCHERS.items() if about.family == "index"]
RANKS = [1, 3, 5]
NUM_FIT = 60


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.mark.parametrize(
    "pair", [("conv", "conv"), ("conv", "token"), ("token", "view"), ("view", "token")], ids="->".join
)
def test_the_engine_gives_the_reference_values_at_every_rank(zoo, pair):
    kinds = [
        *map(matcher, ("direct", *INDICES)),
        matcher("task_loss", epochs=2, batch_size=16, augment="crop4_flip", samples=80),
    ]
    sweep = make_sweep(
        zoo, [pair], [ranked(kind, rank) for kind in kinds for rank in (*RANKS, 100)], batch_size=64, layers=FEW
    )
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    assert not [row.error for row in rows if row.error]
    assert not unlike_reference(sweep, rows, found)


def activations(zoo: Zoo, name: str, stage: int, split: FakeSplit) -> Tensor:
    """Return what a stage makes of all images of a split, stage by stage, as (N, positions, features) in float64."""
    x = preprocessed(split.pixels)
    for part in zoo.staged[name].stages[: stage + 1]:
        x = part(x)
    return (x.flatten(2).mT if x.ndim == 4 else x).double()


def by_svd(fit_NPD: Tensor, rows_NPD: Tensor, rank: int) -> Tensor:
    """Return rows projected on the top right singular vectors of the centred fit rows."""
    fit_RD = fit_NPD.flatten(0, 1)
    mean_D = fit_RD.mean(0)
    axes_KD = torch.linalg.svd(fit_RD - mean_D, full_matrices=False)[2][:rank]
    return (rows_NPD - mean_D) @ axes_KD.mT @ axes_KD + mean_D


@pytest.mark.parametrize("rank", RANKS)
def test_the_values_are_those_of_rows_projected_by_an_svd(zoo, rank):
    """Maps of one size, so that no layout is in the way; the reference is not asked."""
    sweep = make_sweep(zoo, [("conv", "conv_again")], [ranked(matcher(kind), rank) for kind in CLOSED])
    rows = by_cell(run(zoo, sweep))
    fit = {name: activations(zoo, name, 1, IMAGES.fit)[:NUM_FIT] for name in ("conv", "conv_again")}
    seen = {name: activations(zoo, name, 1, IMAGES.eval) for name in ("conv", "conv_again")}
    a_fit = by_svd(fit["conv"], fit["conv"], rank).flatten(0, 1)
    a, b = by_svd(fit["conv"], seen["conv"], rank), seen["conv_again"]
    x, y = a.flatten(0, 1), b.flatten(0, 1)
    affine = torch.linalg.lstsq(
        torch.cat([a_fit, torch.ones(len(a_fit), 1)], 1), fit["conv_again"].flatten(0, 1), driver="gelsd", rcond=1e-9
    ).solution
    error = torch.cat([x, torch.ones(len(x), 1)], 1) @ affine - y
    wanted = {
        "residual": float(error.square().sum() / y.square().sum()),
        "cka": hsic_cka(a.flatten(1).numpy(), b.flatten(1).numpy()),
        "pwcca": explicit_pwcca(x.numpy(), y.numpy()),
        "procrustes": explicit_procrustes(x.numpy(), y.numpy()),
    }
    came = {}
    for k in range(len(CLOSED)):
        came |= rows[sweep.cell(0, 1, 1, 1, k).cell_id]
    assert {metric: close(came[metric].value, value) for metric, value in wanted.items()} == dict.fromkeys(wanted, True)


def test_a_rank_of_the_layers_width_or_more_leaves_it_as_it_is_and_says_so(zoo):
    kinds = [*map(matcher, CLOSED), matcher("task_loss", epochs=2, batch_size=16, samples=80)]
    sweep = make_sweep(zoo, [("conv", "view")], [ranked(kind, rank) for kind in kinds for rank in (None, 8)])
    found = by_cell(run(zoo, sweep))
    for position in range(0, len(sweep.matchers), 2):
        for source in range(5):  # 6, 8, 8, 8 and 4 features
            plain, eight = (found[sweep.cell(0, source, 1, 1, position + k).cell_id] for k in (0, 1))
            assert all(close(eight[metric].value, row.value) for metric, row in plain.items())
            assert all("full_rank" in row.flags for row in eight.values())
            assert not any("full_rank" in row.flags for row in plain.values())


def test_cca_of_a_source_of_low_rank_has_as_many_correlations_and_no_more(zoo):
    """Float32 rows projected have directions that are rounding; whitening would blow them up."""
    sweep = make_sweep(zoo, [("conv", "conv")], [ranked(matcher("pwcca"), rank) for rank in RANKS])
    rows = by_cell(run(zoo, sweep))
    for position in range(len(RANKS)):
        for layer in (1, 2):  # against itself: every canonical correlation is 1, so that the distance is 0
            pwcca = rows[sweep.cell(0, layer, 0, layer, position).cell_id]
            assert abs(pwcca["pwcca"].value) < 1e-9
            assert abs(pwcca["pwcca_reverse"].value) < 1e-9
    few = replace(IMAGES, eval=FakeSplit(10, seed=5))  # pooled: 10 rows
    sweep = make_sweep(zoo, [("conv", "view")], [ranked(matcher("pwcca"), rank) for rank in (1, 5)], images=few)
    rows = by_cell(run(zoo, sweep, images=few))
    pooled = [rows[sweep.cell(0, 0, 1, 1, k).cell_id]["pwcca"] for k in (0, 1)]  # 6 features against 7
    assert [row.num_rows for row in pooled] == [10, 10]
    assert ["saturated" in row.flags for row in pooled] == [False, True]  # 9 < 1 + 7 is wrong, 9 < 5 + 7 is right


def test_reduced_moments_have_the_directions_kept_and_no_more_at_any_tolerance():
    generator = torch.Generator().manual_seed(4)
    x_RD, y_RE = (torch.randn(200, width, generator=generator).double() + 1e3 for width in (6, 4))
    moments = pair_moments(x_RD, y_RE)
    reduction = reduction_to(3, moments.x)
    came, wanted = reduction.of_moments(moments), pair_moments(reduction(x_RD), y_RE)
    torch.testing.assert_close(came.mean_x_D, wanted.mean_x_D)
    torch.testing.assert_close(came.xx_DD, wanted.xx_DD)
    torch.testing.assert_close(came.xy_DE, wanted.xy_DE)
    assert came.x.axes_above(1e-30)[1].shape == (6, 3)
    assert came.x.num_features == 3


def test_what_is_projected_away_does_not_make_a_fit_underdetermined(zoo):
    sweep = make_sweep(zoo, [("conv", "conv")], [ranked(matcher("direct"), 3)])
    rows = by_cell(run(zoo, sweep))
    assert "underdetermined" not in rows[sweep.cell(0, 1, 0, 1, 0).cell_id]["residual"].flags


def test_direct_loses_more_the_lower_the_rank(zoo):
    sweep = make_sweep(zoo, [("conv", "conv")], [ranked(matcher("direct"), rank) for rank in (1, 2, 4, 6, None)])
    rows = by_cell(run(zoo, sweep))
    errors = [rows[sweep.cell(0, 1, 0, 1, k).cell_id]["residual"].value for k in range(5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9 < 1e-3 < errors[-2]


def test_the_images_that_decide_what_is_kept_are_those_of_the_map_or_the_closed_forms():
    numbers = {"num_fit": 160, "num_fit_closed": 60, "num_eval": 90}
    assert images_used(ranked(matcher("direct", samples=40), 3), **numbers) == (40, 90)
    assert images_used(ranked(matcher("task_loss"), 3), **numbers) == (160, 90)
    assert images_used(ranked(matcher("pwcca", samples=30), 3), **numbers) == (60, 30)
    assert images_used(matcher("pwcca"), **numbers) == (0, 90)


def test_rows_say_how_many_fit_images_decided(zoo):
    sweep = make_sweep(zoo, [("conv", "view")], [ranked(matcher("cka"), 3), matcher("cka")])
    assert {(row.num_fit, "rank" in row.params) for row in run(zoo, sweep)} == {(60, True), (None, False)}


def test_maps_of_all_ranks_start_from_the_same_place_and_have_addresses_of_their_own(zoo):
    kind = matcher("task_loss")
    sweep = make_sweep(zoo, [("conv", "view")], [kind, ranked(kind, 3), ranked(kind, 5), matcher("task_loss", seed=1)])
    cells = [sweep.cell(0, 1, 1, 1, k) for k in range(4)]
    assert len({cell.cell_id for cell in cells}) == 4
    starts = [sweep.full_rank_id(cell) for cell in cells]
    assert starts == [cells[0].cell_id] * 3 + [cells[3].cell_id]


def test_eigenvalues_that_tie_and_rows_of_fewer_directions_are_noted():
    x_RD = torch.zeros(40, 4, dtype=torch.float64)
    x_RD[:, :2] = torch.linalg.qr(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double())[0]
    x_RD -= x_RD.mean(0)
    x_RD[:, :2] = torch.linalg.qr(x_RD[:, :2])[0] * 3
    side = pair_moments(x_RD, x_RD).x
    assert [reduction_to(rank, side).is_tied for rank in (1, 2, 3)] == [True, False, False]
    assert [reduction_to(rank, side).is_short for rank in (1, 2, 3)] == [False, False, True]
    torch.testing.assert_close(reduction_to(3, side)(x_RD), x_RD)


def test_a_layer_that_does_not_vary_on_fit_images_is_reduced_to_its_mean(zoo):
    grey = FakeSplit(60, seed=1)
    grey.pixels[:] = 128
    images = FakeImages(fit=grey, eval=IMAGES.eval)
    specs = [ranked(matcher(kind), 3) for kind in ("direct", "cka", "pwcca", "procrustes")]
    sweep = make_sweep(zoo, [("token", "conv")], specs, images=images)
    rows = [row for row in run(zoo, sweep, images=images) if row.source_layer == "stages_2"]
    assert not [row.error for row in rows if row.error]
    assert {row.value for row in rows if row.metric in ("cka", "pwcca", "procrustes")} <= {None}


def test_what_is_not_finite_costs_the_cells_of_its_source_alone(zoo):
    """The last layer's own moments are what fails, in the indices and in the maps that are trained."""
    kinds = [matcher("cka"), matcher("pwcca"), matcher("task_loss", epochs=1, batch_size=16, samples=32)]
    sweep = make_sweep(zoo, [("conv", "view")], [ranked(kind, 3) for kind in kinds])
    work = workspace(zoo, sweep)
    network = zoo.cut["conv"]

    class Spoilt:
        def __getattr__(self, name):
            return getattr(network, name)

        def taps(self, nodes):
            run_plain = network.taps(nodes)
            return lambda x: tuple(a * torch.nan if "4" in n else a for n, a in zip(nodes, run_plain(x), strict=True))

    spoilt = replace(work, network=lambda position: Spoilt() if position == 0 else work.network(position))
    rows = run_shard(whole_shard(sweep), spoilt)
    wrong = {row.source_layer for row in rows if row.error}
    assert len(wrong) == 1
    assert {row.source_layer for row in rows if row.error is None}.isdisjoint(wrong)
    assert "need finite activations" in next(row.error for row in rows if row.error)


def test_cost_and_memory_count_what_low_rank_takes(zoo):
    def of(*specs: MatcherSpec) -> tuple[float, int]:
        sweep = make_sweep(zoo, [("conv", "view")], specs)
        shard = whole_shard(sweep)
        return cost(sweep, shard.blocks, shard.matchers), shard_bytes(sweep, shard, torch.device("cpu"))

    plain, low, both = of(matcher("cka")), of(matcher("cka"), ranked(matcher("cka"), 3)), of(ranked(matcher("cka"), 3))
    assert plain[0] < low[0]
    assert plain[1] < low[1]
    assert both[0] < low[0]
    assert of(matcher("pwcca"))[0] < of(ranked(matcher("pwcca"), 3))[0]  # a pass over the fit images


JOB = {
    "name": "low",
    "data": {"dataset": "digits"},
    "models": [{"name": "net", "architecture": "stitchgrid:resnet20", "weights": "random"}],
}


def test_a_list_of_ranks_makes_one_matcher_each_and_full_is_the_plain_one():
    job = parse_job(JOB | {"matchers": [{"kind": "task_loss", "rank": ["full", 4], "seeds": [0, 1]}]}, title="")
    plain = parse_job(JOB | {"matchers": [{"kind": "task_loss", "seeds": [0, 1]}]}, title="")
    specs = job.matcher_specs()
    assert [(spec.rank, spec.seed) for spec in specs] == [(None, 0), (None, 1), (4, 0), (4, 1)]
    assert specs[:2] == plain.matcher_specs()
    assert "rank" not in plain.to_dict()["matchers"][0]
    assert parse_job(job.to_dict(), title="") == job


@pytest.mark.parametrize(
    ("matchers", "message"),
    [
        ([{"kind": "cka", "rank": 0}], r'matchers\[0\].rank: a whole number from 1 on, "full" .* got 0'),
        ([{"kind": "cka", "rank": ["ful"]}], r"matchers\[0\].rank: a whole number .* got 'ful'"),
        ([{"kind": "cka", "rank": True}], r"matchers\[0\].rank: a whole number .* got True"),
        ([{"kind": "cka", "rank": []}], r"matchers\[0\].rank: a list of at least one whole number"),
        ([{"kind": "cka", "rank": [2, 2]}], r"matchers\[0\].rank: 2 given more than once"),
        ([{"kind": "ckb", "rank": 3}], r"matchers\[0\].kind: 'ckb' is unknown"),
        ([{"kind": "cka", "ranks": 3}], r"matchers\[0\].ranks: unknown key; did you mean 'rank'"),
        ([{"kind": "direct", "rank": 3, "cls": "drop"}], r"matchers\[0\].rank: .* leave cls = \"drop\" out"),
        (
            [{"kind": "cka", "rank": [3, 4]}, {"kind": "cka", "rank": 4}],
            r"matchers\[1\]: the same as matchers\[0\]: cka of rank 4 and equal parameters",
        ),
        ([{"kind": "cka"}, {"kind": "cka", "rank": "full"}], r"matchers\[1\]: the same as matchers\[0\]: cka and"),
    ],
)
def test_a_wrong_rank_is_refused(matchers, message):
    with pytest.raises(JobFileError, match=message):
        parse_job(JOB | {"matchers": matchers}, title="")


def test_every_cell_of_a_series_is_there(zoo):
    sweep = make_sweep(zoo, [("conv", "conv")], [ranked(matcher("cka"), rank) for rank in (None, *RANKS)])
    assert by_cell(run(zoo, sweep)).keys() == every_cell(sweep).keys()
