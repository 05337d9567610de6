"""What a plan would cost: pieces of the work timed where a worker would run, and what is concluded from them."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers_flow import run
from test_plan import CKA, DIRECT, TASK, Store, network, sweep

from stitchgrid.cluster import RemoteCall
from stitchgrid.cluster.sizing import ClusterSize
from stitchgrid.driver import Placement, expected_time
from stitchgrid.driver.estimate import Pricing, estimate, makespan, networks_to_train, pairs_to_try
from stitchgrid.driver.expected_time import expected_seconds
from stitchgrid.driver.preview import EmptyStore
from stitchgrid.engine.host import Host, Others
from stitchgrid.errors import ClusterError, InputError
from stitchgrid.jobfile import load_job
from stitchgrid.matchers.protocol import svd_flops
from stitchgrid.matchers.stitchers.direct import Direct
from stitchgrid.models.fingerprint import fingerprint_of_noise
from stitchgrid.planning import cost, make_plan
from stitchgrid.profiling import speed_trial, trial
from stitchgrid.profiling.sample import FIRST_IMAGES, shrink, spread
from stitchgrid.profiling.speed_trial import local_size, measure_speed
from stitchgrid.profiling.trial import Pace, Trial, TrialPiece, TrialQuestion, pace_of, run_trial
from stitchgrid.records import Block, MatcherSpec, ProbeNetwork, Recipe, TrainNetwork
from stitchgrid.resolve import open_job_images, resolve
from stitchgrid.statistics.values import values_flops

PWCCA = MatcherSpec(kind="pwcca", revision=1, params="{}", metrics=("pwcca",))
PLACE = Host(host="h", device="cpu", name="n", memory_bytes=1, threads=1, precision="fp32", num_cpus=2, others_cpus=0.0)
JOB = """
name = "costs"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
eval = { split = "test", samples = 48 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = { train = "short" }
seeds = [0, 1]
[[models]]
name = "vit"
architecture = "stitchgrid:vit_tiny"
args = { image_size = 8, patch_size = 4, num_layers = 2, num_heads = 2, hidden_dim = 8, mlp_dim = 16 }
weights = "random"
preprocess = { resize = 8, mean = [0.5, 0.5, 0.5], std = [0.2, 0.2, 0.2] }
[recipes.short]
epochs = 1
[diagnostics]
ood = ["mahalanobis"]
[[matchers]]
kind = "direct"
[[matchers]]
kind = "task_loss"
epochs = 30
[[matchers]]
kind = "cka"
rank = ["full", 2]
[[matchers]]
kind = "pwcca"
[[matchers]]
kind = "procrustes"
"""


def a_trial(paces, *, svd=1e30, passes=1e9, training=None):
    return Trial(
        place=PLACE,
        paces=paces,
        training_flops_per_second=training or {},
        pass_flops_per_second=passes,
        svd_flops_per_second=svd,
    )


def pace(speed=1e9, cell_seconds=0.0):
    return Pace(flops_per_second=speed, cell_seconds=cell_seconds)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "job.toml"
    path.write_text(JOB)
    return path


@pytest.fixture(scope="module")
def resolved(job):
    loaded = load_job(str(job), ())
    return resolve(loaded, open_job_images(loaded), EmptyStore()).sweep


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 0.05)
    monkeypatch.setattr(trial, "PASS_SECONDS", 0.01)


# From pieces to a pace


@pytest.mark.parametrize(("speed", "per_cell"), [(1e9, 0.0), (3e11, 0.002), (5e7, 1.0)])
def test_a_pace_tells_what_images_cost_from_what_cells_cost(speed, per_cell):
    pieces = [
        TrialPiece(num_images=n, flops=n * 1e8, seconds=n * 1e8 / speed + 20 * per_cell) for n in (8, 16, 32, 64, 500)
    ]
    found = pace_of(pieces, num_cells=20)
    assert found.flops_per_second == pytest.approx(speed)
    assert found.cell_seconds == pytest.approx(per_cell, abs=1e-9)


def test_a_single_piece_tells_of_images_alone():
    assert pace_of([TrialPiece(num_images=8, flops=6.0, seconds=3.0)], num_cells=5) == pace(2.0)


def test_a_small_piece_that_was_held_up_does_not_make_the_large_one_quicker_than_it_was():
    pieces = [TrialPiece(num_images=8, flops=8.0, seconds=9.0), TrialPiece(num_images=64, flops=64.0, seconds=8.0)]
    assert pace_of(pieces, num_cells=5) == pace(8.0)


def test_rounding_makes_no_cell_take_less_than_no_time():
    for k in range(1, 200):
        piece = TrialPiece(num_images=8, flops=1e6 / k, seconds=0.1 * k)
        assert pace_of([piece], num_cells=5).cell_seconds >= 0.0


# Pieces


def test_layers_are_left_out_until_a_first_piece_is_small_enough_and_no_further():
    asked = sweep(num_networks=2)
    whole = shrink(asked, (0, 1), max_flops=1e30)
    assert [len(one.layers) for one in whole.sweep.networks] == [3, 3]
    assert whole.flops(10**6) == pytest.approx(cost(whole.sweep, [whole.block], (0, 1, 2)))
    limit = 0.5 * whole.flops(FIRST_IMAGES)
    some = shrink(asked, (0, 1), max_flops=limit)
    assert some.flops(FIRST_IMAGES) <= limit
    least = shrink(asked, (0, 0), max_flops=0.0)
    assert least.num_cells == 2 * 1 * 3
    assert least.block.target == least.block.source == 0


def test_layers_that_are_tried_are_spread_over_all():
    assert [spread(range(9), num) for num in (1, 3, 9, 12)] == [[4], [1, 4, 7], list(range(9)), list(range(9))]


def test_a_trial_needs_neither_weights_nor_images_and_leaves_the_threads_as_they_were(resolved, quick):
    lacks = replace(resolved.networks[2], spec=replace(resolved.networks[2].spec, weights="/gone/weights.pt"))
    asked = replace(resolved, networks=(*resolved.networks[:2], lacks), data=replace(resolved.data, root="/gone"))
    before = torch.get_num_threads()
    found = run_trial(
        TrialQuestion(sweep=asked, pairs=((0, 1), (0, 2), (2, 2)), training=(1,), device="auto", threads=before + 1)
    )
    assert torch.get_num_threads() == before
    assert (found.place.threads, found.place.device, found.place.precision) == (before + 1, "cpu", "fp32")
    assert set(found.paces) == {(0, 1), (0, 2), (2, 2)}
    assert all(one.flops_per_second > 0 <= one.cell_seconds for one in found.paces.values())
    assert found.training_flops_per_second[1] > 0
    assert found.pass_flops_per_second > 0 < found.svd_flops_per_second


def test_networks_are_tried_with_random_weights_whatever_they_computed_when_they_were_proven(resolved, quick):
    first, cpu = resolved.networks[0], torch.device("cpu")
    nodes = [layer.node for layer in first.layers]
    other = replace(first, spec=replace(first.spec, seed=first.spec.seed + 1))
    proven = replace(first, fingerprint=fingerprint_of_noise(trial.random_network(other, cpu), nodes, device=cpu))
    asked = replace(resolved, networks=(proven, *resolved.networks[1:]))
    found = run_trial(TrialQuestion(sweep=asked, pairs=((0, 0),), device="cpu", threads=1))
    assert (set(found.paces), found.problems) == ({(0, 0)}, ())


def test_a_slow_machine_is_asked_for_no_more_than_it_bears(resolved, quick, monkeypatch):
    monkeypatch.setattr(trial, "LATE", 0)
    monkeypatch.setattr(trial, "LONGEST_SECONDS", 0.0)
    pairs, computed = ((0, 0), (2, 2)), []
    measure = trial.run_shard
    monkeypatch.setattr(trial, "run_shard", lambda shard, work: computed.append(shard) or measure(shard, work))
    assert run_trial(TrialQuestion(sweep=resolved, pairs=pairs, device="cpu", threads=1)).paces == {}
    assert computed == []
    monkeypatch.setattr(trial, "LONGEST_SECONDS", 60.0)
    assert set(run_trial(TrialQuestion(sweep=resolved, pairs=pairs, device="cpu", threads=1)).paces) == set(pairs)
    assert len(computed) == 2


def test_networks_run_in_the_jobs_precision(resolved, quick, monkeypatch):
    seen = set()
    measure = trial.run_shard

    def run_shard(shard, work):
        seen.add((work.sweep.precision, work.sweep.batch_size))
        return measure(shard, work)

    monkeypatch.setattr(trial, "run_shard", run_shard)
    asked = replace(resolved, precision="bf16", batch_size=16)
    found = run_trial(TrialQuestion(sweep=asked, pairs=((0, 0),), device="cpu", threads=1))
    assert seen == {("bf16", 16)}
    assert found.place.precision == "bf16"


def test_pairs_of_which_nothing_can_be_computed_are_told_and_go_at_the_speed_of_others(resolved, quick, monkeypatch):
    fit = Direct.fit
    monkeypatch.setattr(Direct, "fit", lambda self, m, folds: 1 / 0 if m.x.num_features == 8 else fit(self, m, folds))
    asked = replace(resolved, matchers=resolved.matchers[:1], matcher_data=resolved.matcher_data[:1])
    found = run_trial(TrialQuestion(sweep=asked, pairs=((0, 0), (2, 2)), device="cpu", threads=1))
    assert set(found.paces) == {(0, 0)}
    assert re.fullmatch(r"vit into vit: ZeroDivisionError: division by zero", found.problems[0])
    [shard] = make_plan(replace(asked, pairs=((2, 2),)), Store(), shard_flops=1e15).shards
    seconds = Pricing(asked, replace(found, svd_flops_per_second=1e30)).seconds(shard)
    pace = found.paces[0, 0]
    assert seconds == pytest.approx(shard.flops / pace.flops_per_second + shard.num_cells * pace.cell_seconds)
    assert Pricing(asked, a_trial({}, passes=2e9)).seconds(shard) == pytest.approx(shard.flops / 2e9)


def test_networks_that_cannot_be_run_are_told_and_left_out(resolved, quick, monkeypatch):
    make = trial.random_network

    def random_network(record, device):
        if record.name == "vit":
            raise RuntimeError("at most 16 images")
        return make(record, device)

    def training_speed(*_):
        raise ValueError("a batch of one")

    monkeypatch.setattr(trial, "random_network", random_network)
    monkeypatch.setattr(trial, "_training_speed", training_speed)
    pairs = ((0, 0), (0, 2), (2, 2))
    found = run_trial(TrialQuestion(sweep=resolved, pairs=pairs, training=(1,), device="cpu", threads=1))
    assert set(found.paces) == {(0, 0)}
    assert found.training_flops_per_second == {}
    trained = resolved.networks[1].name
    assert found.problems == ("vit: at most 16 images", f"the training of {trained}: a batch of one")
    with pytest.raises(InputError, match="no network could be run to measure its speed; vit: at most 16 images"):
        run_trial(TrialQuestion(sweep=resolved, pairs=pairs[2:], device="cpu", threads=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said_to_be_missing(resolved):
    with pytest.raises(InputError, match="asks for a GPU and torch finds none"):
        run_trial(TrialQuestion(sweep=resolved, pairs=((0, 0),), device="cuda", threads=1))


# From paces to a price


def test_one_pair_is_tried_for_every_two_architectures_that_meet(resolved):
    shards = make_plan(resolved, Store()).shards
    assert sorted(pairs_to_try(resolved, shards)) == [(0, 0), (0, 2), (2, 0), (2, 2)]
    most = pairs_to_try(resolved, shards)[0]
    work = {}
    for shard in shards:
        for block in shard.blocks:
            key = block.source == 2, block.target == 2
            work[key] = work.get(key, 0) + cost(resolved, [block], shard.matchers)
    assert work[most[0] == 2, most[1] == 2] == max(work.values())


def test_one_training_is_tried_for_every_architecture_and_recipe(resolved):
    assert networks_to_train(resolved) == (0,)
    specs = [replace(one.spec, recipe=Recipe(epochs=k)) for k, one in enumerate(resolved.networks, start=1)]
    asked = [replace(one, spec=spec, weights_digest="") for one, spec in zip(resolved.networks, specs, strict=True)]
    assert networks_to_train(replace(resolved, networks=tuple(asked))) == (0, 1, 2)


@pytest.mark.parametrize("shard_flops", [1.0, 2e10, 1e15])
def test_the_price_of_cells_does_not_depend_on_how_shards_are_cut(shard_flops):
    asked = sweep(num_networks=3)
    plan = make_plan(asked, Store(), shard_flops=shard_flops)
    pricing = Pricing(asked, a_trial({(0, 0): pace(1e30, 0.5)}))
    assert sum(map(pricing.seconds, plan.shards)) == pytest.approx(0.5 * plan.num_cells)


def test_shards_cost_what_their_operations_take_at_the_pace_of_their_networks():
    asked = sweep(num_networks=1)
    other = replace(network("other"), input_shape=(3, 16, 16))
    asked = replace(asked, networks=(asked.networks[0], other), pairs=((0, 0), (1, 1), (0, 1)))
    plan = make_plan(asked, Store(), shard_flops=1.0)
    pricing = Pricing(asked, a_trial({(0, 0): pace(1e9), (1, 1): pace(3e9)}))
    for shard in plan.shards:
        [block] = shard.blocks
        speed = {(0, 0): 1e9, (1, 1): 3e9, (0, 1): 1.5e9}[block.source, block.target]  # between the two: mean of times
        assert pricing.seconds(shard) == pytest.approx(shard.flops / speed)


def test_wanted_cells_of_a_shard_cost_their_share():
    asked = sweep(num_networks=1)
    [shard] = make_plan(asked, Store(), shard_flops=1e15).shards
    part = replace(shard, num_cells=shard.num_cells // 3, flops=shard.flops / 3)
    pricing = Pricing(asked, a_trial({(0, 0): pace(1e9, 0.5)}))
    assert pricing.seconds(part) == pytest.approx(pricing.seconds(shard) / 3)


def test_decompositions_of_wide_layers_are_priced_whatever_the_pieces_took():
    asked = sweep(num_networks=1, matchers=(PWCCA,))
    wide = tuple(replace(layer, shape=(400, 4, 4)) for layer in asked.networks[0].layers)
    asked = replace(asked, networks=(replace(asked.networks[0], layers=wide),))
    [shard] = make_plan(asked, Store(), shard_flops=1e15).shards
    found = Pricing(asked, a_trial({(0, 0): pace(1e30)}, svd=1e9)).seconds(shard)
    assert found >= 9 * svd_flops(400, 400) / 1e9
    block = Block(source=0, target=0, source_layers=(0, 1, 2), target_layers=(0,))
    assert values_flops(replace(asked, matchers=(TASK,)), block, (0,)) == 0
    assert 0 < values_flops(replace(asked, matchers=(CKA,)), block, (0,)) < 1e9
    assert values_flops(replace(asked, matchers=(DIRECT,)), block, (0,)) > 0


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_workers_end_no_later_than_a_third_above_the_best(num_workers):
    seconds = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    bound = max(sum(seconds) / num_workers, *seconds)
    assert bound <= makespan(seconds, num_workers) <= 4 / 3 * bound
    assert makespan([], num_workers) == 0


def test_training_comes_before_and_shared_cpus_make_everything_slower():
    plan = make_plan(sweep(num_networks=1), Store(), shard_flops=1e15)
    spec, data = plan.sweep.networks[0].spec, plan.sweep.data
    before = [
        TrainNetwork(unit_id="u", spec=spec, data=data, flops=4e9),
        ProbeNetwork(unit_id="p", network=0, flops=2e9),
    ]
    how = {"image_bytes": 0, "num_workers": 1, "before": before}
    found = a_trial({(0, 0): pace(1e10)}, training={0: 5e8})
    alone = estimate(plan, found, speed_share=1.0, **how)
    assert alone.seconds == pytest.approx(plan.flops / 1e10 + 8 + 2)
    shared = estimate(plan, found, speed_share=0.5, **how)
    assert shared.seconds == pytest.approx(2 * alone.seconds)
    assert shared.flops_per_second == pytest.approx(alone.flops_per_second / 2)


# Where it is measured


def pretend(question):
    """Stand in for a trial: its place is as it was asked for."""
    threads = question.threads or len(os.sched_getaffinity(0))
    return replace(a_trial({(0, 0): pace()}), place=replace(PLACE, threads=threads, device=question.device))


def ask(resolved, where, said, device="auto"):
    return measure_speed(resolved, [(0, 0)], [0], where, device=device, max_units=3, say=said.append)


@pytest.mark.parametrize(
    ("where", "threads", "num_workers"),
    [
        (Placement(workers=2), 1, 2),
        (Placement(workers=2, cpus_per_worker=2), 2, 2),
        (Placement(address="none"), len(os.sched_getaffinity(0)), 1),
        (Placement(address="none", cpus_per_worker=1), 1, 1),
    ],
)
def test_for_workers_of_this_machine_this_process_stands_in(resolved, monkeypatch, where, threads, num_workers):
    had_ray = "ray" in sys.modules
    monkeypatch.setattr(speed_trial, "run_trial", pretend)
    found = ask(resolved, where, said := [])
    assert (found.trial.place.threads, found.size.num_workers) == (threads, num_workers)
    assert said == []
    assert had_ray or "ray" not in sys.modules
    wanted = num_workers * threads
    assert found.speed_share == pytest.approx(min(1, len(os.sched_getaffinity(0)) / wanted))


def test_numbers_of_workers_that_cannot_be_are_refused_as_a_launch_would():
    with pytest.raises(InputError, match="--cpus-per-worker above 1 must be a whole number"):
        local_size(Placement(cpus_per_worker=1.5), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_refused_or_replaced(resolved, monkeypatch):
    monkeypatch.setattr(speed_trial, "run_trial", pretend)
    with pytest.raises(ClusterError, match="--gpus-per-worker 1 needs more GPUs than the 0 that Ray finds"):
        local_size(Placement(gpus_per_worker=1), 1)
    found = ask(resolved, Placement(), said := [], device="cuda")
    assert found.trial.place.device == "cpu"
    assert "torch finds none on this machine; the speed of its CPU is taken instead" in said[0]


def test_where_a_cluster_gives_no_answer_this_process_does_and_says_so(resolved, monkeypatch):
    monkeypatch.setattr(speed_trial, "run_trial", pretend)
    size = ClusterSize(num_workers=7, cpus=1, gpus=0)
    problem = "on node7: InputError: the file /home/me/nets.py does not exist"
    asked = {}

    def run_remotely(address, function, **how):
        asked.update(how, address=address)
        return RemoteCall(size=size, problem=problem)

    monkeypatch.setattr(speed_trial, "call_remotely", run_remotely)
    found = ask(resolved, Placement(address="auto", cpus_per_worker=2), said := [])
    assert (asked["address"], asked["cpus_per_worker"], asked["max_units"]) == ("auto", 2, 3)
    assert (found.size, found.trial.place.threads) == (size, 2)
    assert said == [f"No worker's speed could be measured: {problem}. This machine's is taken instead."]


def test_own_code_is_sent_along(resolved, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text("def net(): ...")
    first = replace(resolved.networks[0].spec, base=str(tmp_path), architecture="nets.py:net")
    asked = replace(resolved, networks=(replace(resolved.networks[0], spec=first), *resolved.networks[1:]))
    sent = []

    def run_remotely(_, function, *, package, **how):
        sent.extend(path.read_text() for path in package.glob("*/nets.py"))
        return RemoteCall(size=ClusterSize(num_workers=2, cpus=0, gpus=0.5), answer=pretend(*function.args))

    monkeypatch.setattr(speed_trial, "call_remotely", run_remotely)
    found = ask(asked, Placement(address="head:6379", gpus_per_worker=0.5), [])
    assert sent == ["def net(): ..."]
    assert found.speed_share == 0.5  # two workers share a GPU


def test_what_a_long_launch_may_take_is_measured_before_it_begins(resolved, quick, monkeypatch):
    plan = make_plan(resolved, EmptyStore())
    how = {"device": "cpu", "max_units": 3}
    assert expected_seconds(plan, Placement(address="none"), **how) is None
    monkeypatch.setattr(expected_time, "LONG_S", 0.0)
    assert expected_seconds(plan, Placement(address="none"), **how) > 0
    assert expected_seconds(plan, Placement(address="auto"), **how) is None, "workers have the cluster to themselves"


# The command


def test_a_plan_says_what_was_measured_where_and_a_dry_run_the_same(job, tmp_path, quick):
    where = job, "--store", tmp_path / "grid", "--workers", 2, "--set", "numerics.precision=bf16"
    for command in (("plan",), ("launch", "--dry-run")):
        said = run(*command, *where).stdout
        assert re.search(r"GFLOP/s a worker about \d+:\d\d:\d\d on 2 workers, plus start-up", said), said
        assert re.search(r"measured on \S+: cpu \(.+\), 1 thread, bf16", said), said
        assert "compiling them comes on top" not in said
    assert "compiling them comes on top" in run("plan", *where, "--set", "numerics.compile=true").stdout
    assert not (tmp_path / "grid").exists()


def test_nothing_is_measured_where_nothing_is_to_be_done(job, tmp_path, monkeypatch):
    where = job, "--store", tmp_path / "grid", "--set", "matchers=[{kind='cka'}]", "--set", "diagnostics.ood=[]"
    run("launch", *where, "--address", "none")
    monkeypatch.setattr(sys.modules["stitchgrid.driver.preview"], "measure_speed", None)
    assert "\ncost: " not in run("plan", *where).stdout
    assert "\ncost: " not in run("plan", *where, "--simulate", "num_workers=3").stdout


def test_alike_networks_of_one_entry_of_the_job_are_named_together(job, tmp_path, quick):
    more = "models.net.seeds=[0, 1, 2, 3]", "models.net.layers='layer1.0'", "controls.untrained=true"
    edits = [word for one in (*more, "matchers=[{kind='cka'}]", "diagnostics.ood=[]") for word in ("--set", one)]
    lines = run("plan", job, "--store", tmp_path / "grid", *edits).stdout.splitlines()
    models = [line for line in lines if " cuts (" in line]
    assert [line.split(": ")[0].strip() for line in models] == [
        "net/0 .. net/3 (4 networks)",
        "vit",
        "net/0@untrained .. net/3@untrained (4 networks)",
    ]
    assert "networks to train first: net/0 .. net/3 (4 networks)" in lines
    assert "networks to initialise first: net/0@untrained .. net/3@untrained (4 networks)" in lines


def test_a_machine_that_others_use_is_said_to_be_busy():
    assert not PLACE.is_busy
    assert not replace(PLACE, others_cpus=0.9).is_busy
    assert replace(PLACE, others_cpus=1.1).is_busy
    assert replace(PLACE, others_cpus=0.9, threads=2).is_busy
    assert not replace(PLACE, others_cpus=2.0, device="cuda").is_busy


def test_the_cpu_time_of_other_processes_is_told_from_ones_own():
    others = Others()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 1: pass"], check=True)
    assert others.average() > 0.1
