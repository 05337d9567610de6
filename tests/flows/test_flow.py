"""From job file to atlas, in process, as a user would."""

import json
import pickle
import re
import shutil

import pytest
import torch
from helpers_flow import run, values

from stitchgrid.catalog import Catalog
from stitchgrid.store import Store

JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { split = "train", samples = 96 }
eval = { split = "test", samples = 64 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = { train = "short" }
seeds = [0, 1]
[recipes.short]
epochs = 1
[[matchers]]
kind = "direct"
[[matchers]]
kind = "task_loss"
epochs = 1
samples = 64
[[matchers]]
kind = "cka"
[[matchers]]
kind = "pwcca"
[[matchers]]
kind = "procrustes"
"""
NUM_CELLS = 4 * 3 * 3 * 5


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    (folder / "tiny.toml").write_text(JOB)
    where = folder / "tiny.toml", "--store", folder / "grid"
    first = run("launch", *where, "--address", "none")
    return folder, where, first


def close(a, b, tolerance=1e-5):
    return a == b or (a is not None and b is not None and abs(a - b) <= tolerance * max(abs(a), 1e-3))


def test_a_launch_computes_every_cell_and_says_what_it_found(here):
    _, _, first = here
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are there" in first.stdout
    assert "best source for a layer is not the layer itself" in first.stdout


def test_a_second_launch_computes_nothing(here):
    folder, where, _ = here
    before = sorted((folder / "grid" / "parts").rglob("*.parquet"))
    assert "nothing to compute" in run("launch", *where, "--address", "none").stdout
    assert sorted((folder / "grid" / "parts").rglob("*.parquet")) == before


def test_compiling_the_networks_is_part_of_no_cell_s_identity_and_changes_no_value(here, tmp_path, monkeypatch):
    folder, (job, *_), _ = here
    shutil.copytree(folder / "grid", tmp_path / "grid")  # later launches of the same sweep would compile, too
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda part, **_: compiled.append(part) or part)
    faster = (job, "--store", tmp_path / "grid", "--address", "none", "--set", "numerics.compile=true")
    assert "nothing to compute" in run("launch", *faster).stdout
    assert not compiled
    before = values(tmp_path / "grid")
    sorted((tmp_path / "grid" / "parts").rglob("*.parquet"))[0].unlink()
    run("launch", *faster)
    after = values(tmp_path / "grid")
    assert compiled
    assert after.keys() == before.keys()
    assert all(close(after[key], before[key]) for key in before)


def test_resume_recomputes_only_what_is_missing_and_gets_the_same_values(here):
    folder, _where, _ = here
    before = values(folder / "grid")
    parts = sorted((folder / "grid" / "parts").rglob("*.parquet"))
    parts[0].unlink()
    run("resume", "tiny", "--store", folder / "grid", "--address", "none")
    after = values(folder / "grid")
    assert after.keys() == before.keys()
    assert all(close(after[key], before[key]) for key in before)
    assert len(sorted((folder / "grid" / "parts").rglob("*.parquet"))) == len(parts)


def test_a_launch_says_which_files_it_does_not_trust_and_computes_what_they_held(here, tmp_path):
    folder, _, _ = here
    shutil.copytree(folder / "grid", tmp_path / "grid")
    where = folder / "tiny.toml", "--store", tmp_path / "grid"
    sound = values(tmp_path / "grid")
    bad = Store.open(tmp_path / "grid").part_paths()[0]
    bad.write_bytes(b"")
    again = run("launch", *where, "--address", "none")
    assert f"Warning: left out of the store: {bad.relative_to(tmp_path / 'grid')}: " in again.stderr
    assert "computed again; 'stitchgrid check' says more" in again.stderr
    assert values(tmp_path / "grid").keys() == sound.keys()


def test_every_layer_stitched_to_itself_by_least_squares_is_itself(here):
    folder, _, _ = here
    with Catalog(Store.open(folder / "grid")) as catalog:
        rows = catalog.query(
            "select metric, value, flags from results where matcher = 'direct' and source_model = target_model "
            "and source_layer = target_layer and metric in ('residual', 'agreement')"
        ).to_pylist()
    sound = [row for row in rows if "underdetermined" not in (row["flags"] or [])]
    assert sound
    assert all(row["value"] < 1e-6 if row["metric"] == "residual" else row["value"] == 1 for row in sound)


def test_an_overlapping_sweep_computes_only_its_own_cells(here):
    _folder, where, _ = here
    result = run("launch", *where, "--address", "none", "--set", "name=other", "--set", "matchers.task_loss.epochs=2")
    assert f"computed {NUM_CELLS // 5} cells" in result.stdout


def test_other_cells_under_an_old_name_are_refused_with_the_difference(here):
    _, where, _ = here
    changed = "--set", "matchers.task_loss.epochs=3"
    result = run("launch", *where, "--address", "none", *changed, code=2)
    assert "use --update" in result.stderr
    assert f"{NUM_CELLS // 5} cells new" in result.stderr
    told = run("plan", *where, *changed).stdout
    assert f"to compute {NUM_CELLS // 5}" in told
    assert "a launch needs --update: the store has a sweep 'tiny' with other cells" in told
    assert f"  {NUM_CELLS // 5} cells new" in told
    assert "--update" not in run("plan", *where).stdout


def test_status_query_sql_and_atlas_read_the_store(here):
    folder, where, _ = here
    store = where[1:]
    found = json.loads(run("status", "tiny", *store, "--format", "json").stdout)
    assert found[0]["counts"] == {"done": NUM_CELLS}
    assert "best_source" in run("query", *store).stdout
    assert "net/0" in run("query", "best_source", *store).stdout
    assert "180" in run("sql", "select count(*) from cells where sweep = 'tiny'", *store).stdout
    run("atlas", "tiny", "--out", folder / "atlas.html", *store)
    assert "net/0" in (folder / "atlas.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("models.net.architecture=stitchgrid:resnet21", "did you mean 'stitchgrid:resnet20'|resnet20"),
        ("matchers.cka.kind=ckaa", "did you mean 'cka'"),
        ("models.net.layers=['layer9']", "layer9"),
        ("models.net.args.num_classes=4", "10 classes"),
        ("data.dataset=digitz", "did you mean 'digits'"),
        ("matchers.direct.metrics=['acuracy']", "accuracy"),
        ("models.net.weights=missing.pt", "missing.pt"),
    ],
)
def test_bad_input_is_named_before_anything_runs(here, change, message):
    _, where, _ = here
    result = run("launch", *where, "--address", "none", "--set", "name=bad", "--set", change, code=2)
    assert re.search(message, result.stderr)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_any_unit(here):
    _, where, _ = here
    change = "--set", "name=gpu", "--set", "matchers.task_loss.epochs=5", "--set", "numerics.device=cuda"
    result = run("launch", *where, "--address", "none", *change, code=2)
    assert "the job asks for a GPU and torch finds none" in result.stderr
    assert 'set [numerics] device to "auto" or "cpu"' in result.stderr


UNTRACEABLE = """
import torch
class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(192, 10)
    def forward(self, x):
        return self.fc((x + 1 if x.sum() > 0 else x).flatten(1))
"""


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("stitchgrid:resnet20", "truncated.pt", "damaged, truncated or no checkpoint"),
        ("stitchgrid:resnet20", "pickle.pt", "a pickle but not a plain checkpoint"),
        ("stitchgrid:resnet20", "gone.pt", "there is no checkpoint"),
        ("branching.py:Branching", "random", "cannot be traced by torch.fx"),
    ],
)
def test_a_network_that_cannot_be_used_is_named_with_the_reason(tmp_path, architecture, weights, message):
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "branching.py").write_text(UNTRACEABLE)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"weights": print}))
    (tmp_path / "truncated.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    model = f'models.net={{name="net",architecture="{architecture}",weights="{weights}"}}'
    where = tmp_path / "job.toml", "--store", tmp_path / "grid", "--address", "none"
    assert message in run("launch", *where, "--set", model, code=2).stderr


def test_a_layer_inside_a_residual_block_is_refused_with_the_nearest_cut(here):
    _, where, _ = here
    change = "--set", "name=bad", "--set", "models.net.layers=['layer1.0.conv1']"
    assert "is not a cut" in run("launch", *where, "--address", "none", *change, code=2).stderr


def test_one_network_under_two_names_is_computed_once_and_listed_under_both(tmp_path):
    model = '[[models]]\nname = "{}"\narchitecture = "stitchgrid:resnet20"\nweights = "random"\n'
    model += "args = {{ depth = 8, width = 4 }}\n"
    head, _, tail = JOB.partition("[[models]]")
    matchers = "[[matchers]]" + tail.partition("[[matchers]]")[2]
    (tmp_path / "twins.toml").write_text(head + model.format("a") + model.format("b") + matchers)
    run("launch", tmp_path / "twins.toml", "--store", tmp_path / "grid", "--address", "none")
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        (found,) = catalog.query("select count(*) as num, count(distinct cell_id) as own from cells").to_pylist()
    assert found == {"num": NUM_CELLS, "own": NUM_CELLS // 4}


def test_a_cluster_that_is_not_there_is_named(here, tmp_path):
    _, where, _ = here
    nobody = "--address", "127.0.0.1:1"
    found = run("launch", where[0], "--store", tmp_path / "grid", *nobody, code=1)
    assert "No Ray cluster listens at 127.0.0.1:1" in found.stderr


def test_a_store_that_cannot_be_made_is_named(here, tmp_path):
    _, where, _ = here
    (tmp_path / "file").touch()
    assert "cannot make a store at" in run("launch", where[0], "--store", tmp_path / "file" / "grid", code=1).stderr


def test_a_store_that_is_not_there_is_named(tmp_path):
    assert "no store at" in run("status", "--store", tmp_path / "none", code=1).stderr


@pytest.mark.ray
def test_ray_and_in_process_agree_on_closed_forms(here):
    folder, where, _ = here
    job = where[0], "--set", "models.net.weights=random", "--set", "name=random"
    run("launch", *job, "--store", folder / "ray", "--workers", 2)
    run("launch", *job, "--store", folder / "alone", "--address", "none")
    there, alone = values(folder / "ray"), values(folder / "alone")
    assert there.keys() == alone.keys()
    with Catalog(Store.open(folder / "alone")) as catalog:
        trained = {row["cell_id"] for row in catalog.query("from cells where matcher = 'task_loss'").to_pylist()}
    assert all(close(there[key], alone[key]) for key in alone if key[0] not in trained)
