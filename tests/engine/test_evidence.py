"""Values without each group of images and with images shuffled, against the engine and the reference on such images."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import nan, sqrt

import numpy as np
import pytest
import torch
from helpers_engine import (
    OF_RANKS,
    FakeImages,
    FakeSplit,
    Zoo,
    by_cell,
    close,
    every_cell,
    make_sweep,
    matcher,
    network_record,
    one_thread,  # noqa: F401  # a fixture
    ratio,
    run,
    trained_zoo,
    values,
    workspace,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from torch import Tensor

from stitchgrid.datasets.device_images import Pictures
from stitchgrid.engine import shuffles
from stitchgrid.engine.groups import Groups
from stitchgrid.engine.outputs import ClassOutputs, Outputs, VectorOutputs
from stitchgrid.engine.shuffles import BLOCK_IMAGES, block_ends, shuffled_orders
from stitchgrid.matchers.evidence import evidence_name, jackknife_interval, metric_of, wilson_interval
from stitchgrid.matchers.registry import KINDS, MATCHERS, has_null, metrics_of, stored_metrics_of
from stitchgrid.moments import Merger, pair_moments
from stitchgrid.records import Head, MatcherSpec, Row, Sweep, canonical
from stitchgrid.reference import Reference

GROUPS, DRAWS = 5, 3
NUM_EVAL = 150  # two blocks, the second of them longer
PAIRS = [("conv", "conv_again"), ("conv", "token"), ("token", "view")]
LAYERS = {"conv": (0, 3), "conv_again": (1, 2), "token": (0, 1), "view": (1, 2)}  # maps, vectors, tokens of each size
LONG = FakeImages(fit=FakeSplit(160, seed=1), eval=FakeSplit(NUM_EVAL, seed=2))
FEW_EPOCHS = {"epochs": 1, "batch_size": 64}


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


def every_kind() -> list[MatcherSpec]:
    """Return a matcher of each kind, with all metrics of classes that images decide, and sources of low rank."""
    found = []
    for kind in MATCHERS.values():
        asked = [m.name for m in kind.metrics if m.made_of not in ("mahalanobis", "energy") and m.asks != "outputs"]
        found.append(matcher(kind.kind, metrics=asked, **(FEW_EPOCHS if kind.is_trained else {})))
    reduced = [matcher(kind) for kind in ("direct", "cka", "procrustes")]
    found += [replace(spec, params=canonical({**spec.values, "rank": 3})) for spec in reduced]
    return [*found, matcher("task_loss", adapter="bottleneck", **FEW_EPOCHS)]


def evidence_of(rows: list[Row], kind: str) -> dict[tuple[str, str], Row]:
    """Return cell and metric -> the row that holds its evidence."""
    return {
        (row.cell_id, metric_of(row.metric)): row
        for row in rows
        if row.metric is not None and row.metric != metric_of(row.metric) and f"@{kind}=" in row.metric
    }


def without(split: FakeSplit, group: int) -> FakeSplit:
    """Return a split without the images of a group."""
    found = FakeSplit(1, seed=0)
    kept = torch.arange(split.num) % GROUPS != group
    found.num, found.labels, found.pixels = int(kept.sum()), split.labels[kept], split.pixels[kept]
    return found


@pytest.fixture(scope="module")
def plain(zoo: Zoo) -> tuple[Sweep, list[Row]]:
    sweep = make_sweep(zoo, PAIRS, every_kind(), num_fit_closed=140, images=LONG)
    few = tuple(network_record(zoo, network.name, LAYERS[network.name]) for network in sweep.networks)
    sweep = replace(sweep, networks=few)
    return sweep, run(zoo, sweep, images=LONG)


@pytest.fixture(scope="module")
def told(zoo: Zoo, plain: tuple[Sweep, list[Row]]) -> tuple[Sweep, list[Row]]:
    sweep = replace(plain[0], groups=GROUPS, shuffles=DRAWS)
    return sweep, run(zoo, sweep, images=LONG)


def test_every_row_that_is_asked_for_is_there_and_values_are_what_they_are_without_evidence(
    plain: tuple[Sweep, list[Row]], told: tuple[Sweep, list[Row]]
) -> None:
    sweep, rows = told
    for cell_id, found in by_cell(rows).items():
        assert tuple(found) == stored_metrics_of(sweep, every_cell(sweep)[cell_id])
    wanted, came = values(plain[1]), values(rows)
    assert {key for key in came if "@" not in str(key[1])} == wanted.keys()
    different = {k: (came[k], v) for k, v in wanted.items() if not close(came[k], v, tolerance=1e-8)}
    assert not different


def test_replicates_are_the_values_of_a_run_without_the_group(zoo: Zoo, told: tuple[Sweep, list[Row]]) -> None:
    sweep, rows = told
    found = evidence_of(rows, "groups")
    kinds = {row.matcher for row in found.values() if row.replicates is not None}
    assert kinds == set(MATCHERS)
    different, undefined = {}, set()
    for group in range(GROUPS):
        images = FakeImages(fit=LONG.fit, eval=without(LONG.eval, group))
        fewer = replace(sweep, num_eval=images.eval.num, groups=None, shuffles=0)
        wanted = values(run(zoo, fewer, images=images))
        for key, row in found.items():
            if row.replicates is None:
                undefined.add(key)
                assert wanted[key] is None or row.value is None, (row.matcher, key)
                continue
            assert len(row.replicates) == GROUPS
            came, value = (ratio(key[1], one) for one in (row.replicates[group], wanted[key]))
            if not close(came, value, tolerance=OF_RANKS.get(key[1], 1e-5)):
                different[row.matcher, key[1], row.source_layer, row.target_layer, group] = (came, value)
    assert not different
    assert len(undefined) < len(found) / 4


def test_intervals_are_those_of_the_jackknife_and_of_shares_wilsons(told: tuple[Sweep, list[Row]]) -> None:
    metrics = set()
    for (_, metric), row in evidence_of(told[1], "groups").items():
        if row.replicates is None:
            assert row.low is row.high is None
            continue
        metrics.add(metric)
        assert row.value is not None
        if metric in ("accuracy", "agreement"):
            share = binomtest(round(row.value * NUM_EVAL), NUM_EVAL).proportion_ci(method="wilson")
            wanted = share.low, share.high
        else:
            theta = np.array(row.replicates)
            error = sqrt((GROUPS - 1) / GROUPS * ((theta - theta.mean()) ** 2).sum())
            width = t.ppf(0.975, GROUPS - 1) * error
            wanted = row.value - width, row.value + width
        assert (row.low, row.high) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert {"residual", "accuracy", "agreement", "loss", "cka", "pwcca", "procrustes", "variance_ratio"} <= metrics


class Shuffled(Reference):
    """The reference, whose source sees other images than its target does."""

    draw = 0
    source: tuple[int, int]
    pair: object = None

    def _pass(self, key: tuple[int, int], split: Pictures, num: int) -> tuple[Tensor, Tensor]:
        activations, logits = super()._pass(key, split, num)
        if key != self.source:
            return activations, logits
        order = shuffled_orders(num, DRAWS)[self.draw]
        return activations[order], logits[order]

    def values_of(self, cell) -> Mapping[str, float]:  # type: ignore[no-untyped-def]
        if self.pair != (cell.source_key, cell.target_key):  # activations are kept of one layer pair
            self.pair, self.source = (cell.source_key, cell.target_key), cell.source_key
            self._passes.clear()
        return self._values(cell)


def test_nulls_are_the_values_of_a_source_that_sees_shuffled_images(zoo: Zoo, told: tuple[Sweep, list[Row]]) -> None:
    sweep, rows = told
    cells, found = every_cell(sweep), evidence_of(rows, "shuffles")
    assert {MATCHERS[row.matcher].is_trained for row in found.values()} == {False}
    different, kinds = {}, set()
    work = workspace(zoo, sweep, LONG)
    oracle = Shuffled(sweep, LONG, work.network, device=work.device)
    strengths = {row.cell_id: row.value for row in rows if row.metric == "strength"}
    asked = [cells[cell_id] for cell_id in {cell_id for cell_id, _ in found}]
    for cell in sorted(asked, key=lambda cell: (cell.source_key, cell.target_key, cell.cell_id)):
        cell_id = cell.cell_id
        spec = sweep.matchers[cell.matcher]
        if cell.source_key == cell.target_key:
            continue
        if spec.kind == "ridge":  # its strength is that of images as they are
            fixed = matcher("ridge", strength=strengths[cell_id], metrics=spec.metrics)
            oracle.sweep = replace(sweep, matchers=tuple(fixed if one is spec else one for one in sweep.matchers))
        else:
            oracle.sweep = sweep
        for oracle.draw in range(DRAWS):
            wanted = oracle.values_of(cell)
            for metric in metrics_of(sweep, cell):
                if not has_null(spec, metric):
                    assert (cell_id, metric) not in found
                    continue
                null = found[cell_id, metric].null
                if null is None:
                    assert not close(wanted[metric], wanted[metric])
                    continue
                kinds.add(spec.kind)
                came, value = ratio(metric, null[oracle.draw]), ratio(metric, wanted[metric])
                if not close(came, value, tolerance=OF_RANKS.get(metric, 1e-5), floor=1e-2):
                    different[spec.kind, metric, cell.source_key, cell.target_key, oracle.draw] = (came, value)
    assert not different
    assert kinds == {kind.about.kind for kind in KINDS if not kind.about.is_trained}


@pytest.fixture(scope="module")
def at_once(zoo: Zoo) -> tuple[Sweep, list[Row]]:
    """Return a sweep with evidence, and its rows with as many images at a time as memory bears."""
    kinds = [matcher(kind) for kind in ("direct", "pwcca", "cka")]
    sweep = replace(make_sweep(zoo, PAIRS[:2], kinds, images=LONG, layers=LAYERS), groups=4, shuffles=2)
    return sweep, run(zoo, sweep, images=LONG)


@pytest.mark.parametrize(("batch_size", "halvings"), [(150, 0), (50, 0), (32, 3), (7, 0)])
def test_evidence_does_not_depend_on_how_many_images_are_looked_at_a_time(
    zoo: Zoo, at_once: tuple[Sweep, list[Row]], batch_size: int, halvings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, wanted = at_once
    monkeypatch.setattr(shuffles, "chunk_bytes", lambda _: 20_000)
    other = replace(sweep, batch_size=max(1, batch_size >> halvings))
    came = {(row.cell_id, row.metric): row for row in run(zoo, other, images=LONG)}
    for row in wanted:
        for name in ("replicates", "null"):
            one, two = getattr(row, name), getattr(came[row.cell_id, row.metric], name)
            assert (one is None) == (two is None)
            assert one is None or one == pytest.approx(two, rel=1e-5, abs=1e-7)


@given(num=st.integers(1, 400))
def test_a_shuffle_keeps_images_in_their_block(num: int) -> None:
    orders = shuffled_orders(num, 2)
    ends = [0, *block_ends(num)]
    for start, end in pairwise(ends):
        assert end - start >= min(num, BLOCK_IMAGES)
        assert end - start < 2 * BLOCK_IMAGES
        for order in orders:
            assert sorted(order[start:end].tolist()) == list(range(start, end))
    assert torch.equal(shuffled_orders(num, 1)[0], orders[0])


def test_another_number_of_images_is_shuffled_in_another_way() -> None:
    assert not torch.equal(shuffled_orders(200, 1)[0, :64], shuffled_orders(201, 1)[0, :64])
    assert len({tuple(order.tolist()) for order in shuffled_orders(200, 50)}) == 50


@given(num=st.integers(6, 40), part=st.integers(0, 5), width=st.integers(1, 5), offset=st.sampled_from([0.0, 1.0, 1e6]))
def test_moments_without_some_rows_are_those_of_the_others(num: int, part: int, width: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(num * 100 + part)
    x, y = (torch.randn(num, width, generator=generator, dtype=torch.float64) + offset for _ in range(2))
    x[:, 0] = torch.tensor(0.1)  # does not vary: a float32 number, as activations are
    kept = torch.arange(num) >= part
    merger = Merger()
    rest = merger.without(pair_moments(x, y), pair_moments(x[~kept], y[~kept])) if part else pair_moments(x, y)
    wanted = pair_moments(x[kept], y[kept])
    assert rest.num_rows == wanted.num_rows
    for came, value in ((rest.xx_DD, wanted.xx_DD), (rest.yy_EE, wanted.yy_EE), (rest.xy_DE, wanted.xy_DE)):
        assert torch.allclose(came, value, rtol=1e-9, atol=1e-9 * max(1.0, offset**0.5))
    assert rest.xx_DD[0].abs().max() == 0
    assert torch.allclose(rest.mean_x_D, wanted.mean_x_D, rtol=1e-12)
    merged = merger([pair_moments(x[kept], y[kept]), pair_moments(x[~kept], y[~kept])]) if part else rest
    assert merged.xx_DD[0].abs().max() == 0


@given(num=st.integers(1, 30), groups=st.integers(1, 7), start=st.integers(0, 50))
def test_sums_by_group_are_those_of_its_images(num: int, groups: int, start: int) -> None:
    values_2N = torch.randn(2, num, generator=torch.Generator().manual_seed(num), dtype=torch.float64)
    came = Groups(groups).sums(values_2N, start)
    wanted = torch.stack([values_2N[:, (torch.arange(num) + start) % groups == g].sum(1) for g in range(groups)])
    assert torch.allclose(came, wanted)


@given(num=st.integers(1, 30), groups=st.integers(2, 7), group=st.integers(0, 6))
def test_the_others_are_all_images_of_other_groups(num: int, groups: int, group: int) -> None:
    group %= groups
    wanted = [position for position in range(num) if position % groups != group]
    assert Groups(groups).others(group, num).tolist() == wanted


def test_intervals_of_nothing_are_undefined() -> None:
    assert jackknife_interval(nan, [1.0, 2.0]) is None
    assert jackknife_interval(1.0, [1.0, nan]) is None
    assert jackknife_interval(1.0, [1.0]) is None
    assert wilson_interval(0.5, 0) is None
    assert wilson_interval(nan, 10) is None
    assert wilson_interval(1.0, 10) == pytest.approx(tuple(binomtest(10, 10).proportion_ci(method="wilson")))


def test_evidence_is_named_after_its_metric() -> None:
    name = evidence_name("residual_at:layer@1", "groups", 20)
    assert name == "residual_at:layer@1@groups=20"
    assert metric_of(name) == metric_of("residual_at:layer@1") == "residual_at:layer@1"


@pytest.mark.parametrize(
    "head", [Head(), Head(kind="binary"), Head(kind="multilabel"), Head(kind="regression"), Head(is_probability=True)]
)
def test_what_outputs_say_without_a_group_is_what_they_say_of_the_other_images(head: Head) -> None:
    generator, num_groups, num_networks = torch.Generator().manual_seed(0), 3, 4
    num_scores = 1 if head.kind == "binary" else 5
    labels_N = torch.randint(2 if head.kind == "binary" else 5, (20,), generator=generator)
    own_NK = torch.rand(20, num_scores, generator=generator)
    labels_N[:12] = own_NK[:12].argmax(1) if num_scores > 1 else labels_N[:12]  # often right
    scores_SNK = own_NK + 0.5 * torch.rand(num_networks, 20, num_scores, generator=generator)
    scores_SNK = scores_SNK / scores_SNK.sum(2, keepdim=True) if head.is_probability else scores_SNK - 0.6

    def summed(kept_N: Tensor, groups: int) -> Outputs:
        device = torch.device("cpu")
        outputs: Outputs = VectorOutputs(num_networks, groups=Groups(groups), device=device)
        if head.has_classes:
            outputs = ClassOutputs(head, num_networks, is_labelled=True, groups=Groups(groups), device=device)
        for some_N in torch.split(kept_N, 7):
            outputs.begin(own_NK[some_N], labels_N[some_N])
            for part in (slice(0, 1), slice(1, num_networks)):
                outputs.take(part, scores_SNK[part, some_N])
        return outputs

    every_N = torch.arange(20)
    grouped = summed(every_N, num_groups)
    for name, values_S in summed(every_N, 1).metrics().items():
        assert torch.allclose(grouped.metrics()[name], values_S, rtol=1e-12)
    for group in range(num_groups):
        wanted = summed(every_N[every_N % num_groups != group], 1).metrics()
        for name, values_GS in grouped.replicates().items():
            assert torch.allclose(values_GS[group], wanted[name], rtol=1e-9), name
            assert wanted[name].isfinite().all()
