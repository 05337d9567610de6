"""Models, detectors and versions behind cells that are asked for again: what is made anew, and what is said of it."""

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from helpers_engine import make_sweep, matcher, trained_zoo, whole_shard
from helpers_flow import TINY_JOB, run, values
from helpers_store import make_row, planned_cells
from test_unlisted import store_of

from stitchgrid import worker
from stitchgrid.cluster import connection
from stitchgrid.cluster.connection import Connection
from stitchgrid.driver.recompute import recomputation
from stitchgrid.errors import ClusterError, StoreError
from stitchgrid.jobfile import load_job
from stitchgrid.matchers.registry import OOD_METRICS
from stitchgrid.planning import split_shard
from stitchgrid.records import Row
from stitchgrid.rows import lost_rows
from stitchgrid.store import MadeWith, RecomputeRequest, Store
from stitchgrid.store.limits import MOST

TRAINED_JOB = TINY_JOB.replace('weights = "random"', 'weights = { train = "short" }') + "[recipes.short]\nepochs = 1\n"
CELLS = list(planned_cells())


def job_file(tmp_path, text):
    (tmp_path / "job.toml").write_text(text)
    return tmp_path / "job.toml"


# Models ---------------------------------------------------------------------------------------------------------------


def manifest_of_network(grid):
    [path] = (grid / "artefacts/network").glob("*.manifest")
    return json.loads(path.read_bytes())


@pytest.fixture
def trained(tmp_path):
    """Return a job and the store in which it is done."""
    job = job_file(tmp_path, TRAINED_JOB)
    run("launch", job, "--store", tmp_path / "grid", "--address", "none")
    return job, tmp_path / "grid"


def test_a_model_that_is_asked_for_again_is_trained_again_and_a_matcher_leaves_it(trained, monkeypatch):
    job, grid = trained
    first, before = values(grid), manifest_of_network(grid)
    trainings = []
    plain = worker.train_network
    monkeypatch.setattr(worker, "train_network", lambda *a, **k: trainings.append(a) or plain(*a, **k))
    run("launch", job, "--store", grid, "--address", "none", "--recompute", "cka")
    assert (trainings, manifest_of_network(grid)) == ([], before)
    said = run("plan", job, "--store", grid, "--recompute", "net").stdout
    assert "networks to prove and to measure first: 1\n" in said
    run("launch", job, "--store", grid, "--address", "none", "--recompute", "net")
    assert len(trainings) == 1
    assert values(grid) == first
    after = manifest_of_network(grid)
    assert after["digest"] == before["digest"]
    assert after["generation"] > before.get("generation", 0)
    assert not (grid / "sweeps/s/0002").exists()
    assert "nothing to compute" in run("resume", "s", "--store", grid, "--address", "none").stdout


def test_one_network_of_two_names_is_made_for_the_name_that_is_asked_for_again(tmp_path):
    head, model = TRAINED_JOB.split("[[matchers]]")[0].split("[[models]]")
    both = f"{head}[[models]]{model}[[models]]{model.replace('net', 'other', 1)}"
    job = job_file(tmp_path, both + TRAINED_JOB[TRAINED_JOB.index("[[matchers]]") :])
    said = run("launch", job, "--store", tmp_path / "grid", "--address", "none", "--recompute", "net").stdout
    assert "16 of 16 cells are there" in said
    assert manifest_of_network(tmp_path / "grid")["generation"] > 0


def test_a_training_that_ends_in_other_weights_makes_the_next_revision_with_other_cells(trained, monkeypatch):
    job, grid = trained
    first, before = values(grid), manifest_of_network(grid)
    plain = worker.train_network

    def otherwise(*arguments, **named):
        found = plain(*arguments, **named)
        with torch.no_grad():
            for parameter in found.module.parameters():
                parameter.mul_(1.5)
        return found

    monkeypatch.setattr(worker, "train_network", otherwise)
    run("launch", job, "--store", grid, "--address", "none", "--recompute", "net")
    second = values(grid)
    assert len(second) == len(first)
    assert second.keys().isdisjoint(first.keys())
    assert manifest_of_network(grid)["digest"] != before["digest"]
    assert (grid / "sweeps/s/0002/plan.json").exists()
    assert not (grid / "sweeps/s/recompute.json").exists()
    assert Store.open(grid).check().damage == ()


def test_what_is_made_anew_is_of_the_models_asked_for_and_detectors_also_of_the_matchers(tmp_path):
    head, model = TRAINED_JOB.split("[[matchers]]")[0].split("[[models]]")
    models = [model, model.replace('name = "net"', 'name = "other"')]
    asking = f'[[matchers]]\nkind = "direct"\nmetrics = {json.dumps(list(OOD_METRICS["energy"]))}\n'
    rest = TRAINED_JOB[TRAINED_JOB.index("[[matchers]]") :]
    job = load_job(str(job_file(tmp_path, head + "".join(f"[[models]]{one}" for one in models) + asking + rest)))
    store = Store.open(tmp_path / "grid", create=True)
    store.requests.write(
        "s", [RecomputeRequest(globs=("cka",), generation=5), RecomputeRequest(globs=("oth*",), generation=6)]
    )
    noted = recomputation(job, (), store)
    assert not noted.is_new
    assert dict(noted.anew(job).networks) == {"other": 6}
    assert [noted.anew(job).of_detector(name) for name in ("net", "other")] == [0, 6]
    assert noted.may_change(job)
    later = recomputation(job, ("direct",), store)
    assert later.is_new
    generation = later.requests[-1].generation
    assert generation > 6
    assert [later.anew(job).of_detector(name) for name in ("net", "other")] == [generation, generation]
    store.requests.write("s", [RecomputeRequest(globs=("all",), generation=10**14)])
    assert recomputation(job, ("all",), store).requests[-1].generation == 10**14 + 1, "above all that is there"
    store.requests.write("s", [RecomputeRequest(globs=("all",), generation=MOST)])
    assert store.check().findings == ()
    with pytest.raises(StoreError, match=rf"rows of generation {MOST}, which no later computation can follow"):
        recomputation(job, ("all",), store)
    assert recomputation(job, (), store).requests[-1].generation == MOST, "what was asked for goes on"


def test_an_artefact_gives_way_to_one_of_a_later_generation_alone(tmp_path):
    store = store_of(tmp_path, "s", CELLS[:1])
    written = [(b"first", 0), (b"again", 0), (b"second", 5), (b"third", 5), (b"fourth", 4), (b"fifth", 0)]
    kept = [store.write_artefact("network", "k", data, generation=generation) for data, generation in written]
    assert kept == [True, False, True, False, False, False]
    assert store.read_artefact("network", "k") == b"second"
    assert store.artefact_generation("network", "k") == 5
    assert store.check().damage == ()
    for path in (tmp_path / "artefacts/network").iterdir():
        os.utime(path, (1, 1))
    store.collect()
    data = [path for path in (tmp_path / "artefacts/network").iterdir() if path.suffix == ".safetensors"]
    assert all(path.read_bytes() == b"second" for path in data)


def test_rows_of_lost_cells_and_of_halves_of_shards_are_of_the_generation_that_was_asked_for():
    sweep = make_sweep(trained_zoo(), [("conv", "view")], [matcher("cka")])
    shard = whole_shard(sweep)
    ids = [cell.cell_id for cell in sweep.cells(shard)]
    asked = dict.fromkeys(ids[1:], 7)
    shard = replace(shard, generations=tuple(sorted(asked.items())))
    halves = split_shard(sweep, shard)
    assert halves is not None
    for some in ([shard], halves):
        rows = [row for one in some for row in lost_rows(sweep, one, status="quarantined", reason="gone")]
        assert {row.cell_id: row.generation for row in rows} == {ids[0]: None, **asked}


# Versions -------------------------------------------------------------------------------------------------------------


def remade(grid, **changes):
    """Change rows of a store by their kind of matcher."""
    for path in (Path(grid) / "parts/v1").glob("*.parquet"):
        rows = [Row(**row) for row in pq.read_table(path).to_pylist()]
        path.unlink()
        rows = [replace(row, **changes.get(row.matcher, {})) for row in rows]
        Store.open(grid).write_part(rows[0].shard, rows)


def test_plan_tells_the_cells_of_other_versions_and_asks_for_their_matchers_alone(tmp_path):
    job = job_file(tmp_path, TINY_JOB + '[[matchers]]\nkind = "procrustes"\n')
    run("launch", job, "--store", tmp_path / "grid", "--address", "none")
    found = pq.read_table(next((tmp_path / "grid/parts/v1").glob("*.parquet")))
    here = json.loads(found["libraries"][0].as_py())
    assert here["torch"] == version("torch")
    assert "other versions" not in run("plan", job, "--store", tmp_path / "grid").stdout
    remade(tmp_path / "grid", procrustes={"libraries": None})  # of a version that noted none
    assert "other versions" not in run("plan", job, "--store", tmp_path / "grid").stdout
    libraries = json.dumps({"torch": here["torch"], "timm": "0.1"})
    remade(tmp_path / "grid", cka={"libraries": libraries})
    said = run("plan", job, "--store", tmp_path / "grid").stdout
    assert "stored cells that other versions computed: 4\n" in said
    assert "  4 by timm 0.1 (here none)\n" in said
    assert f"by torchvision none (here {here['torchvision']})\n" in said
    assert "by torch " not in said
    assert said[said.index("compute them again") :].splitlines()[0].endswith("--recompute cka")


def test_cells_say_by_what_each_of_their_values_was_computed(tmp_path):
    store = store_of(tmp_path, "s", CELLS[:1])
    one, other, third = CELLS[1:4]
    [first, *rest] = one.metrics
    odd = ("[1]", "{", '{"b":2,"a":"1"}')
    store.write_part("a", [make_row(one, first, 0.5, version="1", libraries='{"torch":"2"}')])
    store.write_part("b", [make_row(one, name, 0.5, version="2", libraries=None) for name in rest])
    store.write_part(
        "c", [make_row(other, m, 0.5, version="1", libraries=o) for m, o in zip(other.metrics, odd, strict=False)]
    )
    store.write_part("d", [make_row(third, None, None, status="failed", error="broke", version="9")])
    for _ in range(2):
        status = store.cell_status()
        mine = {MadeWith("1", (("torch", "2"),)), *([MadeWith("2", None)] if rest else [])}
        assert status.made_with(one.cell_id) == mine
        assert status.made_with(other.cell_id) <= {MadeWith("1", None), MadeWith("1", (("a", "1"), ("b", "2")))}
        assert MadeWith("1", None) in status.made_with(other.cell_id)
        assert status.made_with(third.cell_id) == status.made_with("unknown") == frozenset()
        store.compact()


# Ray ------------------------------------------------------------------------------------------------------------------


def test_the_object_store_of_ray_lies_where_there_is_room(monkeypatch, tmp_path):
    asked = []

    class StoppedError(Exception):
        pass

    def init(**how):
        asked.append(how["_plasma_directory"])
        raise StoppedError

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connection, "object_store_folder", lambda session, _: (tmp_path / session.name, "said"))
    with pytest.raises(ClusterError, match="Ray could not be started"), Connection("local"):
        pass
    assert Path(asked[0]).parent == tmp_path
