"""Intervals and shuffled images from the job file to SQL: asked for, planned, stored beside values, asked for later."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from helpers_flow import run, values

from stitchgrid.catalog import Catalog
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.resolve import problems
from stitchgrid.store import Store
from stitchgrid.store.data_files import parquet_bytes_in_groups
from stitchgrid.store.layout import SNAPSHOT_DATA
from stitchgrid.store.schemas import EVIDENCE, PART, RESULTS, VERSION_KEY
from stitchgrid.store.snapshots import Snapshots

MODEL = {
    "name": "net",
    "architecture": "stitchgrid:resnet20",
    "args": {"depth": 8, "width": 4},
    "weights": {"train": "short"},
}
JOB = {
    "name": "sure",
    "data": {"dataset": "digits", "fit": {"split": "train", "samples": 96}, "eval": {"split": "test", "samples": 80}},
    "models": [MODEL],
    "recipes": {"short": {"epochs": 1}},
    "matchers": [
        {"kind": "direct"},
        {"kind": "cka"},
        {"kind": "pwcca"},
        {"kind": "task_loss", "epochs": 1, "batch_size": 32},
    ],
    "controls": {"untrained": True, "shuffled": 5},
    "intervals": {"groups": 4},
}
TEXT = """
name = "sure"
[data]
dataset = "digits"
fit = { split = "train", samples = 96 }
eval = { split = "test", samples = 80 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = { train = "short" }
[recipes.short]
epochs = 1
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka"
[[matchers]]
kind = "task_loss"
epochs = 1
batch_size = 32
"""
ALL = """[controls]
shuffled = 5
[intervals]
groups = 4
"""


def job(**changes: object):
    return parse_job(copy.deepcopy({**JOB, **changes}), base=Path("/jobs"), title="sure")


def test_a_job_says_what_evidence_it_wants():
    asked = job()
    assert (asked.controls.shuffled, asked.intervals.groups) == (5, 4)
    again = parse_job(asked.to_dict(), title="again")
    assert (again.controls, again.intervals) == (asked.controls, asked.intervals)
    assert "intervals" not in job(intervals={}).to_dict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"intervals": {"groups": 1}}, "intervals.groups: should be greater than or equal to 2, got 1"),
        ({"intervals": {"groups": 5_000}}, "intervals.groups: should be less than or equal to 1000, got 5000"),
        ({"intervals": {"group": 5}}, r"intervals.group: unknown key; did you mean 'groups'"),
        ({"controls": {"shuffled": -1}}, "controls.shuffled: should be greater than or equal to 0, got -1"),
        ({"controls": {"shuffled": "many"}}, "controls.shuffled: should be a valid integer, got 'many'"),
        (
            {"matchers": [{"kind": "task_loss"}]},
            "controls.shuffled: no map is trained anew on shuffled images; add a matcher that is not trained",
        ),
    ],
)
def test_evidence_that_cannot_be_had_is_refused(changes, told):
    with pytest.raises(JobFileError, match=told):
        job(**changes)


def launch(tmp_path: Path, text: str, store: str = "grid", *, code: int = 0):
    path = tmp_path / "job.toml"
    path.write_text(text)
    return run("launch", path, "--store", tmp_path / store, "--address", "none", code=code)


def test_too_few_images_for_the_groups_are_refused_before_anything_runs(tmp_path: Path):
    told = launch(tmp_path, TEXT + "[intervals]\ngroups = 50\n", code=2)
    assert (
        "intervals.groups: 80 evaluation images (direct, cka, task_loss) cannot be divided into 50 groups of 2 or "
        "more, each of which can be left out; ask for fewer groups, or for more images"
    ) in " ".join(told.output.split())
    assert not (tmp_path / "grid" / "parts").exists()


def test_more_cells_than_a_sweep_can_hold_are_refused_before_anything_runs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(problems, "MOST_ROWS", 3)
    told = launch(tmp_path, TEXT, code=2)
    wanted = r"it has \d+ cells, and one sweep holds 3 at most; take fewer layers, or divide the pairs"
    assert re.search(wanted, " ".join(told.output.split()))
    assert not (tmp_path / "grid" / "parts").exists()


def test_plan_and_launch_say_what_evidence_is_made_and_what_it_adds(tmp_path: Path):
    path = tmp_path / "job.toml"
    path.write_text(TEXT + ALL.replace("[controls]", "[controls]\nuntrained = true"))
    told = " ".join(run("plan", path, "--store", tmp_path / "grid").output.split())
    assert "untrained twins of all trained networks, as sources: +1" in told
    assert "5 draws of shuffled images (not for task_loss: trained maps are not trained anew): +" in told
    assert "intervals from 4 groups of evaluation images, with maps held fixed: +" in told
    plain = tmp_path / "plain.toml"
    plain.write_text(TEXT)
    assert "operations" not in run("plan", plain, "--store", tmp_path / "grid").output


def test_evidence_stands_beside_values_and_can_be_asked_for_later(tmp_path: Path):
    launch(tmp_path, TEXT)
    before = values(tmp_path / "grid")
    columns = 'select matcher, metric, low, high, replicates, "null" from results order by all'
    with Catalog(Store.open(str(tmp_path / "grid"))) as catalog:
        bare = catalog.query(columns).to_pylist()
    assert all(row["low"] is row["replicates"] is row["null"] is None for row in bare)
    told = launch(tmp_path, TEXT + ALL)
    assert "5 draws of shuffled images" in told.output
    launch(tmp_path, TEXT + ALL, "at_once")
    for store in ("grid", "at_once"):
        assert {k: pytest.approx(v, rel=1e-9, nan_ok=True) for k, v in before.items()} == values(tmp_path / store)
        with Catalog(Store.open(str(tmp_path / store))) as catalog:
            rows = catalog.query(columns).to_pylist()
            assert len(rows) == len(bare)
            metrics = {row[0] for row in catalog.query("select distinct metric from measurements").to_pydict().values()}
            assert not any("@" in str(metric) for metric in metrics)
        for row in rows:
            assert row["low"] <= row["high"]
            assert len(row["replicates"]) == 4
            has_null = row["matcher"] == "cka" or (row["matcher"] == "direct" and row["metric"] in ("residual", "r2"))
            assert (len(row["null"]) == 5) if has_null else row["null"] is None
    run("check", "--store", tmp_path / "grid")
    run("compact", "--store", tmp_path / "grid")
    with Catalog(Store.open(str(tmp_path / "grid"))) as catalog:
        assert catalog.query(columns).to_pylist() == rows or len(catalog.query(columns).to_pylist()) == len(rows)
    assert "nothing to compute" in launch(tmp_path, TEXT + ALL).output
    launch(tmp_path, TEXT + ALL.replace("groups = 4", "groups = 8"))
    with Catalog(Store.open(str(tmp_path / "grid"))) as catalog:
        more = catalog.query(columns).to_pylist()
    assert {len(row["replicates"]) for row in more} == {8}


def without_evidence(snapshots: Snapshots, name: str, schema: pa.Schema, number: int) -> str:
    """Write a file of a snapshot again as it was before there was evidence; return its name."""
    old = snapshots.table(name, schema).drop_columns([column for column, _ in EVIDENCE])
    old = old.replace_schema_metadata({VERSION_KEY: b"1"} if schema is PART else None)
    return snapshots._write(name.rpartition("/")[0], number, parquet_bytes_in_groups(old), old)


def test_a_compacted_store_of_a_time_before_evidence_is_read_and_gets_some(tmp_path: Path):
    launch(tmp_path, TEXT)
    run("compact", "--store", tmp_path / "grid")
    before = values(tmp_path / "grid")
    snapshots = Snapshots(Store.open(str(tmp_path / "grid")).files)
    snapshot, _ = snapshots.newest()
    number = snapshot.number + 1
    tiers = [
        replace(
            tier,
            file=without_evidence(snapshots, tier.file, PART, number),
            results={
                sweep: replace(one, file=without_evidence(snapshots, one.file, RESULTS, number))
                for sweep, one in tier.results.items()
            },
        )
        for tier in snapshot.tiers
    ]
    assert snapshots.publish(replace(snapshot, number=number, tiers=tuple(tiers)))
    for _ in range(2):
        assert "all sound" in run("check", "--store", tmp_path / "grid").output
        assert values(tmp_path / "grid") == before
        with Catalog(Store.open(str(tmp_path / "grid"))) as catalog:
            (found,) = catalog.query("select count(*) as n, count(low) as known from results").to_pylist()
            assert (found["n"], found["known"]) == (len(before), 0)
        told = run("compact", "--store", tmp_path / "grid").output
    assert "nothing to merge" in told
    launch(tmp_path, TEXT + ALL)
    for _ in range(2):
        with Catalog(Store.open(str(tmp_path / "grid"))) as catalog:
            (found,) = catalog.query("select count(*) as n, count(low) as known from results").to_pylist()
            assert found["n"] == found["known"] == len(before)
        run("compact", "--store", tmp_path / "grid")
    assert values(tmp_path / "grid") == before


def test_a_file_of_this_version_that_lacks_evidence_is_damaged(tmp_path: Path):
    launch(tmp_path, TEXT)
    run("compact", "--store", tmp_path / "grid")
    snapshots = Snapshots(Store.open(str(tmp_path / "grid")).files)
    snapshot, _ = snapshots.newest()
    (tier,) = snapshot.tiers
    table = snapshots.table(tier.file, PART)
    cut = table.drop_columns(["null"]).replace_schema_metadata({VERSION_KEY: b"2"})
    broken = replace(tier, file=snapshots._write(SNAPSHOT_DATA, snapshot.number + 1, parquet_bytes_in_groups(cut), cut))
    snapshots.publish(replace(snapshot, number=snapshot.number + 1, tiers=(broken,)))
    assert "lacks the columns ['null']" in run("check", "--store", tmp_path / "grid", code=1).output
