"""`stitchgrid bench`: what is measured of which part, on which layer pairs. No test looks at a time."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from helpers_engine import make_sweep, matcher, one_thread, trained_zoo, workspace  # noqa: F401  # one is a fixture

from stitchgrid.bench import Bench, PartFigures, bench_json, bench_text, measure
from stitchgrid.bench.measure import ValueDifference
from stitchgrid.bench.parts import Part, irreducible_flops, parts_of, product_flops, sample_pairs
from stitchgrid.cli import cli
from stitchgrid.records import Sweep
from stitchgrid.statistics.base import BACKWARD

JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { split = "train", samples = 48 }
eval = { split = "test", samples = 40 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
[recipes.short]
epochs = 1
[[matchers]]
kind = "direct"
[[matchers]]
kind = "task_loss"
epochs = 1
samples = 32
[[matchers]]
kind = "cka"
[[matchers]]
kind = "pwcca"
[[matchers]]
kind = "procrustes"
"""
TRAINED = 'models.net.weights={train="short"}'
SHARES = {"accuracy", "agreement", "penalty", "relative_accuracy"}


@pytest.fixture(autouse=True)
def plain_networks_are_timed_for_one_pass(monkeypatch):
    monkeypatch.setattr(measure, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "PRODUCT_WIDTH", 64)
    monkeypatch.setattr(measure, "REPEAT_SECONDS", 0.0)


@pytest.mark.parametrize(("steps", "typical"), [([0.25, 0.125, 0.5], 0.25), ([0.4375, 0.3125], 0.3125), ([3.0], 3.0)])
def test_the_median_of_repetitions_counts(monkeypatch, steps, typical):
    clock = SimpleNamespace(now=0.0, steps=steps.copy())
    monkeypatch.setattr(measure, "perf_counter", lambda: clock.now)

    def compute():
        clock.now += clock.steps.pop(0)

    assert measure._typical_seconds(compute, SimpleNamespace(device=torch.device("cpu")), of=1.0) == typical
    assert not clock.steps


def bench(folder, *options, code=0, job=JOB):
    (folder / "tiny.toml").write_text(job)
    where = [str(folder / "tiny.toml"), "--store", str(folder / "grid")]
    result = CliRunner().invoke(cli, ["bench", *where, "--threads", "1", *options])
    assert result.exit_code == code, result.output
    return result


def figures(folder, *options):
    return json.loads(bench(folder, "--json", *options).stdout)


def test_every_part_has_its_figures_and_engine_and_reference_agree(tmp_path):
    found = figures(tmp_path, "--pairs", "4")
    assert found["job"] == "tiny"
    assert found["machine"].keys() == {"processor", "device", "cores", "threads", "torch", "precision", "batch_size"}
    assert found["machine"]["threads"] == 1
    assert found["settings"]
    assert found["plain_flops_per_second"]["net"] > 0
    structural, direct, task_loss = found["parts"]
    assert [part["name"] for part in found["parts"]] == ["structural", "direct", "task_loss seed 0"]
    assert structural["num_cells"] == 4 * 9
    assert direct["num_cells"] == task_loss["num_cells"] == 9
    assert structural["differences"].keys() == {"residual", "r2", "cka", "pwcca", "pwcca_reverse", "procrustes"}
    assert direct["differences"].keys() == task_loss["differences"].keys() > SHARES
    for part in found["parts"]:
        assert (part["num_pairs"], part["num_reference_pairs"], part["errors"]) == (9, 4, 0)
        assert part["peak_bytes"] > 1 << 20
        assert part["ratio"] == part["reference_seconds"] / part["engine_seconds"]
        assert part["overhead"] == part["engine_seconds"] / part["irreducible_seconds"]
        assert part["over_arithmetic"] == part["engine_seconds"] / (
            part["irreducible_seconds"] + part["product_seconds"]
        )
        assert part["images_per_second"] > 0
        assert part["flops_per_second"] > 0
        for metric, worst in part["differences"].items():
            assert worst["difference"] <= (1e-5 if part is not task_loss else 1e-4), (part["name"], metric)
            assert worst["source"].startswith("net layer")
    assert not (tmp_path / "grid").exists()


def test_the_table_says_what_was_measured_and_where_values_differ_most(tmp_path):
    result = bench(tmp_path, "--pairs", "2", "--set", "data.eval.samples=30")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:6] == ["part", "cells", "engine", "reference", "ratio", "overhead"]
    assert "direct: reference measured on 2 of 9 layer pairs" in lines
    assert any(line.startswith("machine: processor ") and "threads 1" in line for line in lines)
    assert any(line.strip().startswith("procrustes: largest difference") and " -> net layer" in line for line in lines)
    assert "task_loss seed 0: engine, 9 cells" in result.stderr


def test_trained_networks_come_from_the_store_and_nothing_is_added_to_it(tmp_path):
    unknown = bench(tmp_path, "--set", TRAINED, code=2)
    assert "net: not trained yet in store" in unknown.stderr
    assert "launch the job first" in unknown.stderr
    where = [str(tmp_path / "tiny.toml"), "--store", str(tmp_path / "grid"), "--set", TRAINED]
    few = ["--set", "matchers=[{kind = 'cka'}]"]
    assert CliRunner().invoke(cli, ["launch", *where, *few, "--address", "none"]).exit_code == 0
    before = sorted((tmp_path / "grid").rglob("*"))
    found = figures(tmp_path, "--set", TRAINED, *few, "--pairs", "all")
    assert [(part["name"], part["num_reference_pairs"]) for part in found["parts"]] == [("structural", 9)]
    assert found["parts"][0]["differences"]["cka"]["difference"] <= 1e-5
    assert sorted((tmp_path / "grid").rglob("*")) == before


@pytest.mark.parametrize("pairs", ["0", "-1", "many"])
def test_a_number_of_pairs_that_is_none_is_refused(tmp_path, pairs):
    assert "wanted a number of layer pairs or 'all'" in bench(tmp_path, f"--pairs={pairs}", code=2).stderr


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    closed, trained = matcher("direct"), matcher("task_loss", epochs=3, samples=50)
    return make_sweep(trained_zoo(), [("conv", "token"), ("token", "token")], [matcher("cka"), closed, trained])


def test_parts_hold_every_metric_of_every_cell_and_stitched_networks_run_in_their_own(sweep):
    parts = {part.name: part for part in parts_of(sweep)}
    asked = {name: [(spec.kind, spec.metrics) for spec in part.sweep.matchers] for name, part in parts.items()}
    _, closed, trained = sweep.matchers
    assert asked == {
        "structural": [("cka", ("cka",)), ("direct", ("residual", "r2"))],
        "direct": [("direct", closed.metrics)],
        "task_loss seed 0": [("task_loss", trained.metrics)],
    }
    assert {name: len(part.cells) for name, part in parts.items()} == {
        "structural": 2 * (5 * 4 + 4 * 4),
        "direct": 5 * 4 + 4 * 4,
        "task_loss seed 0": 5 * 4 + 4 * 4,
    }
    whole = {cell.cell_id for part in parts_of(sweep) for cell in part.cells}
    assert len(whole) == 3 * (5 * 4 + 4 * 4)


def test_what_asks_for_no_stitched_network_has_no_part_of_its_own(sweep):
    residual = replace(matcher("direct"), metrics=("residual",))
    agreement = replace(matcher("direct"), metrics=("agreement",))
    names = lambda *specs: [  # noqa: E731
        part.name for part in parts_of(replace(sweep, matchers=specs, matcher_data=("data",) * len(specs)))
    ]
    assert names(residual) == ["structural"]
    assert names(agreement) == ["direct"]
    assert names(residual, matcher("direct"), agreement) == ["structural", "direct #1", "direct #2"]


def part_of(sweep: Sweep, name: str) -> Part:
    return next(part for part in parts_of(sweep) if part.name == name)


def test_the_sample_meets_target_layers_evenly_and_is_drawn_by_the_seed(sweep):
    pairs = part_of(sweep, "direct").layer_pairs()
    assert len(pairs) == 36
    for num in (1, 2, 4, 6, 11, 36):
        chosen = sample_pairs(pairs, num, seed=0)
        keys = [(cells[0].source_key, cells[0].target_key) for cells in chosen]
        assert len(set(keys)) == num
        met = [sum(target == (1, layer) for _, target in keys) for layer in range(4)]
        assert max(met) - min(met) <= 1
        assert chosen == sample_pairs(pairs, num, seed=0)
    assert len(sample_pairs(pairs, 99, seed=0)) == 36
    assert sample_pairs(pairs, 6, seed=0) != sample_pairs(pairs, 6, seed=1)


def test_irreducible_work_is_counted_by_hand(sweep):
    conv, token = sweep.networks
    sweep = replace(sweep, networks=(replace(conv, flops=300.0), replace(token, flops=200.0)), num_fit_closed=60)
    conv, token = sweep.networks
    ends = [network.layers[-1].flops for network in sweep.networks]
    assert irreducible_flops(part_of(sweep, "structural")) == {0: (60 + 90) * ends[0], 1: (60 + 90) * ends[1]}
    tails = (5 + 4) * sum(token.flops - layer.flops for layer in token.layers)  # sources of both pairs
    direct = irreducible_flops(part_of(sweep, "direct"))
    assert direct == pytest.approx({0: 150 * ends[0], 1: 150 * ends[1] + 90 * tails})
    trained = irreducible_flops(part_of(sweep, "task_loss seed 0"))
    steps = 3 * 50 * (1 + BACKWARD)
    assert trained == pytest.approx({0: (50 + 90) * ends[0], 1: (50 + 90) * ends[1] + (90 + steps) * tails})


def test_products_are_counted_by_hand():
    """Two maps of 4x4 positions, and one of 2x2: widths 3, 5 and 7; a pair of each kind of space."""
    widths, sides = (3, 5, 7), (4, 4, 2)
    rows = [side * side for side in sides]
    zoo = trained_zoo()
    sweep = make_sweep(zoo, [("conv", "conv")], [matcher("direct"), matcher("procrustes"), matcher("cka")])
    template = sweep.networks[0].layers[0]
    layers = tuple(
        replace(template, kind="map", axes="NCHW", shape=(width, side, side), grid=(side, side), num_prefix=0)
        for width, side in zip(widths, sides, strict=True)
    )
    sweep = replace(sweep, networks=(replace(sweep.networks[0], layers=layers),))
    part = part_of(sweep, "structural")
    num_fit, num_eval = sweep.num_fit_closed, sweep.num_eval
    own = [width * (width + 1) / 2 for width in widths]
    at_home = sum(map(math.prod, zip(rows, own, strict=True))) + rows[0] * widths[0] * widths[1]
    laid = 0.0
    for x, y in [(0, 2), (1, 2), (2, 0), (2, 1)]:
        laid += min(rows[x], rows[y]) * widths[x] * widths[y]
    laid += rows[2] * (own[0] + own[1] + own[2])  # sources as they are laid; the small one on one grid alone
    pooled = sum(own) + widths[2] * (widths[0] + widths[1])
    found = product_flops(part)
    assert found[torch.float64] == 2 * ((num_fit + num_eval) * (at_home + laid) + num_eval * pooled)
    assert found[torch.float32] == num_eval * (num_eval + 1) * sum(map(math.prod, zip(rows, widths, strict=True)))


def test_what_is_quick_is_computed_again_and_the_median_counts(monkeypatch, sweep):
    now, durations = [0.0], iter([9.0, 3.0, 5.0])

    class Worker:
        def rows(self, _shard, _work):
            now[0] += next(durations)
            return []

    monkeypatch.setattr(measure, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measure, "REPEAT_SECONDS", 20.0)
    part = replace(part_of(sweep, "structural"), shards=(None,))
    work = workspace(trained_zoo(), sweep)
    assert measure._engine(part, work, Worker())[1] == 5.0
    assert now == [17.0]  # another one of 3 seconds would not end before 20


def test_a_value_that_one_side_lacks_is_null_in_json_and_failures_are_counted():
    worst = ValueDifference(difference=float("inf"), engine=None, reference=0.5, source="a x", target="b y")
    part = PartFigures(
        name="direct",
        num_cells=2,
        num_pairs=2,
        num_reference_pairs=1,
        engine_seconds=2.0,
        reference_seconds=6.0,
        irreducible_seconds=1.0,
        product_seconds=0.25,
        images_per_second=1.0,
        flops_per_second=1.0,
        peak_bytes=1,
        errors=1,
        differences={"accuracy": worst},
    )
    found = Bench(
        job="x", machine={}, settings=[], plain_flops_per_second={}, product_flops_per_second={}, parts=[part]
    )
    shown = json.loads(bench_json(found))["parts"][0]
    assert (shown["ratio"], shown["overhead"], shown["over_arithmetic"]) == (3.0, 2.0, 1.6)
    assert shown["differences"]["accuracy"]["difference"] is None
    assert "direct: 1 cells failed" in bench_text(found)


def test_r2_is_compared_by_its_ratio_and_shares_absolutely():
    assert measure._apart("r2", 1e-6, 2e-6) == pytest.approx(1e-6, rel=1e-4)
    assert measure._apart("accuracy", 0.25, 0.26) == pytest.approx(0.01)
    assert measure._apart("residual", 2.0, 4.0) == 0.5
    assert measure._apart("residual", 0.0, 1e-6) == pytest.approx(1e-3)
    assert measure._apart("negative_mass", None, float("nan")) == 0
    assert measure._apart("negative_mass", None, 0.1) == float("inf")
