"""For which workers a sweep is cut into shards: those there are when it is first planned, wherever it goes on."""

import json

import pytest
import torch
from helpers_flow import run, values

from stitchgrid.cluster import placement
from stitchgrid.driver import stages
from stitchgrid.errors import ClusterError, StoreError
from stitchgrid.planning import CPU_SPEED, GPU_SPEED
from stitchgrid.profiling import assumed_speed, speed_trial, trial
from stitchgrid.profiling.assumed_speed import planned_speed, speed_there
from stitchgrid.store import Store

JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
eval = { split = "test", samples = 32 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
[[matchers]]
kind = "direct"
metrics = ["residual"]
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(JOB)
    return path


@pytest.fixture
def slow_cpus(monkeypatch):
    """CPUs so slow, by assumption, that they ask for a shard for every target layer."""
    monkeypatch.setattr(assumed_speed, "CPU_SPEED", 1.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure no longer than it takes to say something."""
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 0.05)
    monkeypatch.setattr(trial, "PASS_SECONDS", 0.01)


def gpus(monkeypatch, *, there):
    monkeypatch.setattr(assumed_speed, "computes_on_gpus", lambda *_: there)


def shards(store):
    table = Store.open(store).read_plan_tables("tiny", ["cells"])["cells"]
    return set(zip(table["shard"].to_pylist(), table["cell_id"].to_pylist(), strict=True))


def planned(job, store):
    said = run("plan", job, "--store", store, "--address", "none").stdout
    return next(line for line in said.splitlines() if line.startswith("shards: "))


@pytest.mark.parametrize(
    ("device", "options", "wanted"),
    [
        ("cuda", {}, GPU_SPEED),
        ("auto", {"gpus_per_worker": 2.0}, GPU_SPEED),
        ("auto", {"gpus_per_worker": 0.5, "address": "auto"}, GPU_SPEED / 2),
        ("auto", {"gpus_per_worker": 0.0}, CPU_SPEED),
        ("cpu", {"gpus_per_worker": 1.0}, CPU_SPEED),
        ("cpu", {"cpus_per_worker": 8.0}, 8 * CPU_SPEED),
        ("cpu", {"cpus_per_worker": 0.5}, CPU_SPEED),
    ],
)
def test_what_is_asked_for_says_how_fast_a_worker_will_be(device, options, wanted):
    assert speed_there(device, placement.Placement(**options)) == wanted


@pytest.mark.parametrize(
    ("asked", "options", "wanted"),
    [
        ("auto", {"gpus_per_worker": 0}, "cpu"),
        ("auto", {"gpus_per_worker": 0, "address": "head:6379"}, "cpu"),
        ("auto", {"gpus_per_worker": 0, "address": "none"}, "auto"),  # there are no workers to give one to
        ("auto", {"gpus_per_worker": 1}, "auto"),
        ("auto", {}, "auto"),
        ("cuda", {"gpus_per_worker": 0}, "cuda"),
    ],
)
def test_workers_that_are_given_no_gpu_take_none(asked, options, wanted):
    assert placement.Placement(**options).device(asked) == wanted


def test_a_launch_and_a_plan_tell_workers_that_are_given_no_gpu(job, tmp_path, monkeypatch):
    asked = []
    real = trial.run_trial
    monkeypatch.setattr(speed_trial, "run_trial", lambda question: asked.append(question.device) or real(question))
    run("plan", job, "--store", tmp_path / "grid", "--gpus-per-worker", 0)
    factories = []

    def open_executor(*_, factory, **__):
        factories.append(factory)
        raise ClusterError("seen enough")

    monkeypatch.setattr(stages, "open_executor", open_executor)
    run("launch", job, "--store", tmp_path / "grid", "--gpus-per-worker", 0, code=1)
    assert (asked, factories[0].keywords["device"]) == (["cpu"], "cpu")


def test_what_is_left_open_is_looked_up_on_this_machine_or_the_cluster(monkeypatch):
    for there, wanted in ((True, GPU_SPEED), (False, CPU_SPEED)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(
            assumed_speed, "cluster_resources", lambda _, there=there: {"CPU": 8.0, "GPU": 2.0 * (not there)}
        )
        assert (
            speed_there("auto", placement.Placement())
            == speed_there("auto", placement.Placement(address="none"))
            == wanted
        )
        assert speed_there("auto", placement.Placement(address="head:6379")) == (CPU_SPEED if there else GPU_SPEED)


@pytest.mark.parametrize("begins_on_gpu", [True, False])
def test_a_sweep_goes_on_elsewhere_in_the_shards_with_which_it_began(
    job, tmp_path, monkeypatch, slow_cpus, begins_on_gpu
):
    store, untouched = tmp_path / "grid", tmp_path / "untouched"
    count = 1 if begins_on_gpu else 3
    gpus(monkeypatch, there=begins_on_gpu)
    assert planned(job, untouched) == f"shards: {count}, to run {count}"
    run("launch", job, "--store", untouched, "--address", "none")
    run("launch", job, "--store", store, "--address", "none")
    asked = shards(store)
    assert len({shard for shard, _ in asked}) == count
    for part in (store / "parts").rglob("*.parquet"):
        part.unlink()
    gpus(monkeypatch, there=not begins_on_gpu)
    assert planned(job, store) == f"shards: {count}, to run {count}"
    run("resume", "tiny", "--store", store, "--address", "none")
    run("launch", job, "--store", store, "--address", "none")
    assert shards(store) == asked
    assert Store.open(store).latest_revision("tiny") == 1
    assert values(store) == values(untouched)


def test_sweeps_of_the_first_versions_were_cut_for_cpus_and_damage_is_told_unless_it_is_replaced(job, tmp_path):
    run("launch", job, "--store", tmp_path / "grid", "--address", "none")
    store = Store.open(tmp_path / "grid")
    [manifest] = (tmp_path / "grid").rglob("plan.json")
    told = json.loads(manifest.read_text())
    del told["info"][assumed_speed.KEY], told["digest"]
    manifest.write_text(json.dumps(told))
    assert planned_speed(store, "tiny", update=False) == CPU_SPEED
    assert planned_speed(store, "another", update=False) is None
    manifest.write_text("{")
    assert planned_speed(store, "tiny", update=True) is None
    with pytest.raises(StoreError, match="is damaged"):
        planned_speed(store, "tiny", update=False)


def test_a_cluster_that_is_not_there_is_missed():
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"):
        speed_there("auto", placement.Placement(address="127.0.0.1:1"))
