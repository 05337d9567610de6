"""From job file to atlas with a store in a bucket, as a user would; with Ray, and through a connection that breaks."""

import json
from pathlib import Path

import pytest
from helpers_flow import run, values
from helpers_objects import make_bucket, moto_server, proxy, store_uri

from stitchgrid.store import Store, object_problems

JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
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
kind = "cka"
"""
NUM_CELLS = 4 * 3 * 3 * 2


@pytest.fixture(scope="module")
def endpoint():
    with moto_server() as found:
        yield found


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "tiny.toml"
    path.write_text(JOB)
    return path


@pytest.fixture(scope="module")
def there(endpoint, job):
    """Launch the job into a bucket; return the URI of the store."""
    uri = store_uri(endpoint, make_bucket(endpoint))
    first = run("launch", job, "--store", uri, "--address", "none")
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are there" in first.stdout
    return uri


def parts(uri):
    return Store.open(uri).files.names("parts/v1")


def test_a_second_launch_computes_nothing(there, job):
    before = parts(there)
    assert "nothing to compute" in run("launch", job, "--store", there, "--address", "none").stdout
    assert parts(there) == before


def test_plan_status_query_sql_and_atlas_read_the_bucket(there, job, tmp_path):
    store = "--store", there
    assert f"done {NUM_CELLS}" in run("plan", job, *store).stdout
    [found] = json.loads(run("status", "tiny", *store, "--format", "json").stdout)
    assert found["counts"] == {"done": NUM_CELLS}
    assert "net/0" in run("query", "best_source", *store).stdout
    assert str(NUM_CELLS) in run("sql", "select count(*) from cells", *store).stdout
    run("atlas", "tiny", "--out", tmp_path / "atlas.html", *store)
    assert "net/0" in (tmp_path / "atlas.html").read_text()


def test_resume_computes_what_is_missing_and_finds_the_same(there):
    before, names = values(there), parts(there)
    Store.open(there).files.delete(f"parts/v1/{names[0]}")
    assert values(there) != before
    result = run("resume", "tiny", "--store", there, "--address", "none")
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are there" in result.stdout
    assert values(there) == pytest.approx(before, rel=1e-5, abs=1e-8)
    assert len(parts(there)) == len(names)


def test_the_commands_that_a_launch_proposes_can_be_pasted(there, job):
    proposed = run("launch", job, "--store", there, "--address", "none").stdout
    assert f"stitchgrid query best_source --store '{there}'" in proposed


@pytest.mark.slow
def test_a_launch_whose_store_is_lost_ends_and_resume_goes_on(endpoint, job, monkeypatch):
    monkeypatch.setattr(object_problems, "ABSENT_SECONDS", 1.0)
    monkeypatch.setattr(object_problems, "BUSY_SECONDS", 1.0)
    bucket = make_bucket(endpoint)
    with proxy(endpoint) as between:
        look = between.fault

        def break_at_the_first_part(method, path):
            if method == "PUT" and "/parts/v1/" in path:
                between.end()
            return look(method, path)

        between.fault = break_at_the_first_part
        where = "--store", store_uri(between.endpoint, bucket), "--address", "none"
        lost = run("launch", job, *where, code=1)
    assert "cannot be reached" in lost.stderr or "does not answer" in lost.stderr
    direct = store_uri(endpoint, bucket)
    result = run("resume", "tiny", "--store", direct, "--address", "none", "--retry-failed", "--force")
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are there" in result.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_ray_write_their_parts_to_the_bucket(endpoint, job, there):
    uri = store_uri(endpoint, make_bucket(endpoint))
    found = run("launch", job, "--store", uri, "--workers", 1)
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are there" in found.stdout
    assert len(values(uri)) == len(values(there))  # a network trained with other threads has other cell ids
    assert len(parts(uri)) == len(parts(there))
    assert not Path("s3:").exists()
