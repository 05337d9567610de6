"""Where a launch computes, when its user leaves that open, and what a worker of the same process is spared."""

import pytest
from helpers_flow import TINY_JOB, run, values

from stitchgrid.catalog import Catalog
from stitchgrid.cluster.placement import SMALL_S, Placement
from stitchgrid.driver import stages
from stitchgrid.engine import workspace
from stitchgrid.models import held
from stitchgrid.resolve import loading
from stitchgrid.resolve import networks as resolving
from stitchgrid.store import Store

TOLD = "small enough for this process; --address local has Ray compute it"


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(TINY_JOB)
    return path


def test_small_work_stays_here_and_large_work_goes_to_ray():
    assert Placement().settled(SMALL_S).address == "none"
    assert Placement().settled(1.01 * SMALL_S).address == "local"


@pytest.mark.parametrize("named", [{"workers": 2}, {"cpus_per_worker": 1.0}, {"gpus_per_worker": 0.0}])
def test_whoever_names_workers_means_ray(named):
    assert Placement(**named).settled(0.1).address == "local"


@pytest.mark.parametrize("address", ["local", "none", "auto", "10.0.0.1:6379"])
def test_an_address_that_is_given_stays(address):
    for seconds in (0.0, 1e9):
        assert Placement(address=address).settled(seconds) == Placement(address=address)


def test_a_small_launch_says_where_it_computes_and_starts_no_ray(job, tmp_path, monkeypatch):
    asked = []
    here = stages.open_executor
    monkeypatch.setattr(stages, "open_executor", lambda address, **how: asked.append(address) or here("none", **how))
    told = run("launch", job, "--store", tmp_path / "grid").output
    assert TOLD in told
    assert asked == ["none"]
    again = run("launch", job, "--store", tmp_path / "grid").output
    assert TOLD not in again  # nothing is left to compute
    assert "nothing to compute" in again


def test_what_is_not_small_goes_to_ray(job, tmp_path, monkeypatch):
    asked = []
    here = stages.open_executor
    monkeypatch.setattr(stages, "open_executor", lambda address, **how: asked.append(address) or here("none", **how))
    monkeypatch.setattr("stitchgrid.cluster.placement.SMALL_S", 0.0)
    told = run("launch", job, "--store", tmp_path / "grid").output
    assert TOLD not in told
    assert asked == ["local"]


def test_networks_are_built_once_in_one_process_and_values_are_those_of_networks_built_again(
    job, tmp_path, monkeypatch
):
    built = []
    build = resolving.build_network
    for module in (resolving, loading):
        monkeypatch.setattr(module, "build_network", lambda *given, **how: built.append(1) or build(*given, **how))
    run("launch", job, "--store", tmp_path / "held")
    assert len(built) == 1
    monkeypatch.setattr(held, "MOST_PARAMETERS", 0)
    built.clear()
    run("launch", job, "--store", tmp_path / "anew")
    assert len(built) == 2
    assert values(tmp_path / "held") == values(tmp_path / "anew")


@pytest.mark.parametrize("batch_size", [8, 12, 256])
def test_accuracy_is_found_in_the_pass_that_the_values_are_made_of(job, tmp_path, monkeypatch, batch_size):
    """Images that are read for accuracy alone, beyond those of the matcher, leave nothing, and pass once, too."""
    job.write_text(TINY_JOB.replace("samples = 32", "samples = 64") + "samples = 20\n")
    seen = []
    here = workspace.forward

    def counted(work, pixels, wanted, *rest, **how):
        seen.append((len(pixels), len(wanted)))
        return here(work, pixels, wanted, *rest, **how)

    monkeypatch.setattr(workspace, "forward", counted)
    how = ["--address", "none", "--set", f"numerics.batch_size={batch_size}", "--store"]
    run("launch", job, *how, tmp_path / "once")
    assert sum(images for images, networks in seen if networks) == 64
    seen.clear()
    monkeypatch.setattr("stitchgrid.engine.kept_passes.MOST_BYTES", 0)
    run("launch", job, *how, tmp_path / "twice")
    assert sum(images for images, networks in seen if networks) == 64 + 20
    once, twice = values(tmp_path / "once"), values(tmp_path / "twice")
    assert once.keys() == twice.keys()
    assert list(once.values()) == pytest.approx(list(twice.values()), rel=1e-6)
    assert accuracy(tmp_path / "once") == accuracy(tmp_path / "twice")


def accuracy(store):
    with Catalog(Store.open(store)) as catalog:
        return catalog.query("select accuracy, loss, num_eval from models").to_pylist()


def test_nothing_is_held_outside_of_a_launch_nor_after_it_was_let_go(job, tmp_path, monkeypatch):
    seen = []
    kept = resolving.hold
    monkeypatch.setattr(resolving, "hold", lambda network, cut: kept(network, cut) or seen.append((network, cut)))
    run("launch", job, "--store", tmp_path / "grid")
    [(network, cut)] = seen
    assert held.held_cut(network) is None
    with held.holding_cuts():
        held.hold(network, cut)
        assert held.held_cut(network) is cut
        held.let_go()
        assert held.held_cut(network) is None
        held.hold(network, cut)
        assert held.held_cut(network) is None
