"""Cells that are asked for again: their new values are what every reader shows, once, wherever a launch is stopped."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers_flow import TINY_JOB, run, values
from helpers_stopping import StoppedError, StoppingFiles, stopped_everywhere
from helpers_store import QUICK, make_row
from hypothesis import given, settings
from test_compact import CELLS, part_lists, planned_store
from test_unlisted import copied, results, store_of

from stitchgrid import __version__
from stitchgrid.catalog import Catalog
from stitchgrid.display import Display
from stitchgrid.driver import Launch, Placement
from stitchgrid.errors import StitchgridError
from stitchgrid.jobfile import load_job
from stitchgrid.planning import AGAIN
from stitchgrid.records import Row
from stitchgrid.store import Store
from stitchgrid.store import store as store_module
from stitchgrid.store.check import Checker
from stitchgrid.store.compact import compact
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.garbage_collection import collect
from stitchgrid.store.repair import set_aside

LATER = 1_900_000_000_000  # a generation


# Rows -----------------------------------------------------------------------------------------------------------------


def counting(rows):
    """Return the rows that count, found one by one."""
    last = {}
    for row in rows:
        last[row.cell_id] = max(last.get(row.cell_id, 0), row.generation or 0)
    of_last = [row for row in rows if (row.generation or 0) == last[row.cell_id]]
    done = {}
    for row in sorted(of_last, key=lambda row: (row.created_at, repr(row.value)), reverse=True):
        if row.status == "done":
            done[row.cell_id, row.metric] = row
    return done, [row for row in of_last if row.status != "done"]


@settings(max_examples=12, **QUICK)
@given(first=part_lists, second=part_lists)
def test_the_highest_generation_of_a_cell_counts_and_nothing_else(tmp_path_factory, first, second):
    store = planned_store(tmp_path_factory.mktemp("grid"))
    for number, parts in enumerate((first, second)):
        for shard, part in enumerate(parts):
            store.write_part(f"shard-{number}-{shard}", part)
        if number == 0:
            store.compact()
    done, errors = counting([row for part in first + second for row in part])
    for _ in range(2):
        with Catalog(Store.open(store.uri)) as catalog:
            shown = catalog.query("select cell_id, metric, created_at from measurements order by all").to_pylist()
        assert [tuple(row.values()) for row in shown] == sorted((*key, row.created_at) for key, row in done.items())
        status = store.cell_status()
        for cell in CELLS[:10]:
            stored = {metric for cell_id, metric in done if cell_id == cell.cell_id}
            assert status.metrics_done(cell.cell_id) == stored
            failed = [(row.created_at, row.status, row.error) for row in errors if row.cell_id == cell.cell_id]
            last = max((row.created_at for key, row in done.items() if key[0] == cell.cell_id), default="")
            stands = bool(failed) and max(failed)[0] >= last
            assert (status.failed(cell.cell_id) is not None) == stands
        store.compact()
    kept = store.read_parts().table.num_rows
    assert kept == len(done) + len({repr(row) for row in errors})
    assert store.collect().freed == () or store.check().findings == ()


def test_gc_frees_rows_that_do_not_count_and_no_others(tmp_path):
    store = store_of(tmp_path, "s", CELLS[:6])
    store.write_part("again", [make_row(cell, m, 0.75, generation=5) for cell in CELLS[:2] for m in cell.metrics])
    num = sum(len(cell.metrics) for cell in CELLS[:2])
    expected = results(tmp_path)
    assert f"would free {num} rows: " in run("gc", "--dry-run", "--store", tmp_path).stdout
    assert f"freed {num} rows: " in run("gc", "--store", tmp_path).stdout
    assert results(tmp_path) == expected
    assert {row["value"] for row in expected[0] if row["cell_id"] in {c.cell_id for c in CELLS[:2]}} == {0.75}
    assert store.read_parts().table.num_rows == sum(len(cell.metrics) for cell in CELLS[:6])
    assert run("gc", "--store", tmp_path).stdout == "nothing to free\n"


@pytest.mark.parametrize("states", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("later", [0, 1])
def test_of_two_stores_the_later_computation_counts(tmp_path, states, later):
    stores = [store_of(tmp_path / name, name, CELLS[:3], compacted=False) for name in "ab"]
    for k, store in enumerate(stores):
        rows = [
            make_row(cell, m, 0.25 + k / 2, generation=7 + (k == later)) for cell in CELLS[:3] for m in cell.metrics
        ]
        store.write_part("again", rows)
        if states[k]:
            store.compact()
    both = copied(tmp_path, stores[0].uri, stores[1].uri)
    stores[0].merge([stores[1]])
    for folder in (both, stores[0].uri):
        for _ in range(2):
            assert {row["value"] for row in results(folder)[0]} == {0.25 + later / 2}
            Store.open(folder).compact()
        assert Store.open(folder).check().findings == ()


def test_an_unlisted_file_of_a_later_computation_is_missed_and_taken_back(tmp_path):
    store = store_of(tmp_path, "s", CELLS[:3])
    manifests = list((tmp_path / "snapshots/v1").glob("*.json"))
    kept = [path.read_bytes() for path in manifests]
    store.write_part("again", [make_row(cell, m, 0.75, generation=7) for cell in CELLS[:3] for m in cell.metrics])
    store.compact()
    for path in (tmp_path / "snapshots/v1").glob("*.json"):
        path.unlink()
    for path, data in zip(manifests, kept, strict=True):
        path.write_bytes(data)
    assert {row["value"] for row in results(tmp_path)[0]} == {0.5}
    [found] = [one for one in store.check().findings if one.is_sound]
    assert "of its rows are nowhere else" in found.problem
    run("check", "--repair", "--store", tmp_path)
    assert {row["value"] for row in results(tmp_path)[0]} == {0.75}


# Launches -------------------------------------------------------------------------------------------------------------


def job_file(tmp_path, text=TINY_JOB):
    (tmp_path / "job.toml").write_text(text)
    return tmp_path / "job.toml"


def as_wrong(store, *, version="0.0.1", libraries='{"torch":"1.0"}'):
    """Make every value of a store one that an earlier version got wrong."""
    for path in (Path(store) / "parts/v1").glob("*.parquet"):
        rows = [Row(**row) for row in pq.read_table(path).to_pylist()]
        path.unlink()
        wrong = [replace(row, value=row.value + 1, version=version, libraries=libraries) for row in rows]
        Store.open(store).write_part(rows[0].shard, wrong)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Return a store whose values are right, a copy in which they are wrong, and the job."""
    folder = tmp_path_factory.mktemp("computed")
    job = job_file(folder)
    run("launch", job, "--store", folder / "right", "--address", "none")
    shutil.copytree(folder / "right", folder / "wrong")
    as_wrong(folder / "wrong")
    return folder / "right", folder / "wrong", job


@pytest.mark.parametrize("command", [("plan",), ("launch", "--dry-run")])
def test_the_command_that_computes_again_can_be_pasted_and_edits_the_job_in_the_same_way(computed, tmp_path, command):
    _, wrong, job = computed
    renamed = shutil.copy(job, tmp_path / "a job.toml")
    said = run(*command, renamed, "--store", wrong, "--set", "numerics.batch_size=8").stdout
    [line] = [line for line in said.splitlines() if "to compute them again: " in line]
    words = ["stitchgrid", "launch", str(renamed), "--set", "numerics.batch_size=8", "--store", str(wrong)]
    assert shlex.split(line.partition(": ")[2]) == [*words, "--recompute", "all"]


def test_a_correction_is_computed_and_shown_and_the_old_rows_go_with_gc(computed, tmp_path):
    right, wrong, job = computed
    grid = tmp_path / "grid"
    shutil.copytree(wrong, grid)
    said = run("plan", job, "--store", grid).stdout
    assert f"stored cells that other versions computed: 4\n  4 by stitchgrid 0.0.1 (here {__version__})\n" in said
    assert "  4 by torch 1.0 (here " in said
    assert f"  to compute them again: stitchgrid launch {job} --store {grid} --recompute all" in said
    assert "cells: 4, to compute 0, done 4" in said
    for command in (("plan", job), ("launch", job, "--dry-run")):
        said = run(*command, "--store", grid, "--recompute", "cka").stdout
        assert f"cells: 4, to compute 4, done 0\n  4 {AGAIN}\n" in said
        assert "other versions" not in said
    assert values(grid) == values(wrong)
    found = run("launch", job, "--store", grid, "--address", "none", "--recompute", "c?a")
    assert "4 of 4 cells are there; computed 4 cells" in found.stdout
    assert values(grid) == values(right) != values(wrong)
    assert "other versions" not in run("plan", job, "--store", grid).stdout
    assert "nothing to compute" in run("resume", "s", "--store", grid, "--address", "none").stdout
    assert not (grid / "sweeps/s/recompute.json").exists()
    assert "freed 4 rows: " in run("gc", "--store", grid).stdout
    assert values(grid) == values(right)
    assert Store.open(grid).read_parts().table.num_rows == 4


def test_of_two_askings_the_later_counts(computed, tmp_path):
    right, _, _ = computed
    shutil.copytree(right, tmp_path / "grid")
    seen = []
    for glob in ("net", "all"):
        run("resume", "s", "--store", tmp_path / "grid", "--address", "none", "--recompute", glob)
        table = Store.open(tmp_path / "grid").read_parts(("cell_id", "status", "metric", "generation")).table
        seen.append(max(filter(None, table["generation"].to_pylist())))
    assert seen[0] < seen[1]
    assert values(tmp_path / "grid") == values(right)
    [key] = [path.name for path in (tmp_path / "grid/artefacts/evaluation").glob("*.manifest")]
    assert json.loads((tmp_path / "grid/artefacts/evaluation" / key).read_text())["generation"] == seen[1]


def test_a_glob_that_matches_nothing_is_refused_with_what_is_near(computed, tmp_path):
    _, wrong, job = computed
    found = run(
        "launch", job, "--store", wrong, "--address", "none", "--recompute", "cka", "--recompute", "nte", code=2
    )
    assert (
        "--recompute 'nte' is no matcher and no model of job 's'; did you mean 'net'? known: all, cka, net"
        in found.stderr
    )
    assert values(wrong) != {}
    assert not (wrong / "sweeps/s/recompute.json").exists()
    assert "known: all" in run("plan", job, "--store", tmp_path / "none", "--recompute", "x*", code=2).stderr


def test_a_cell_that_fails_when_it_is_computed_again_has_failed(computed, tmp_path, monkeypatch):
    right, _, job = computed
    shutil.copytree(right, tmp_path / "grid")

    def broken(*_):
        raise ValueError("broken")

    monkeypatch.setattr("stitchgrid.engine.shard._compute", broken)
    run("launch", job, "--store", tmp_path / "grid", "--address", "none", "--recompute", "cka", code=1)
    assert values(tmp_path / "grid") == {}
    monkeypatch.undo()
    run("launch", job, "--store", tmp_path / "grid", "--address", "none", code=1)
    run("launch", job, "--store", tmp_path / "grid", "--address", "none", "--retry-failed")
    assert values(tmp_path / "grid") == values(right)


def test_a_damaged_note_is_named_and_set_aside(computed, tmp_path):
    right, _, _ = computed
    shutil.copytree(right, tmp_path / "grid")
    (tmp_path / "grid/sweeps/s/recompute.json").write_text('{"requests":[{"globs":[],"generation":-1}]}')
    found = run("resume", "s", "--store", tmp_path / "grid", "--address", "none", code=1)
    assert "sweeps/s/recompute.json in the store" in found.stderr
    assert "check --repair'" in found.stderr
    run("check", "--repair", "--store", tmp_path / "grid")
    run("resume", "s", "--store", tmp_path / "grid", "--address", "none")


def launch_on(files, job, **how):
    """Launch a job in this process on these files."""
    Launch(load_job(str(job)), Store(files), Placement(address="none"), Display()).run(force=True, **how)


def stopped_recompute(computed, tmp_path, monkeypatch, job, at, *, before):
    """Stop a launch at a change of the store; return whether it was stopped. What is there then is looked at."""
    right, wrong, _ = computed
    folder = tmp_path / f"grid-{at}-{before}"
    shutil.copytree(wrong, folder)
    files = StoppingFiles(folder, at, before=before)
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "open_files", lambda *_, **__: files)  # the worker's, too
        try:
            launch_on(files, job, recompute=["all"])
            is_stopped = False
        except (StoppedError, StitchgridError):
            is_stopped = True
    store, shown = Store.open(folder), values(folder)
    assert store.check().damage == ()
    assert shown.keys() == values(right).keys()
    assert all(value in (values(right)[key], values(wrong)[key]) for key, value in shown.items())
    is_noted = (folder / "sweeps/s/recompute.json").exists()
    launch_on(LocalFiles(folder), job)
    if is_noted or shown != values(wrong):
        assert values(folder) == values(right)
    else:
        launch_on(LocalFiles(folder), job, recompute=["all"])
        assert values(folder) == values(right)
    assert not (folder / "sweeps/s/recompute.json").exists()
    store.collect()
    assert values(folder) == values(right)
    assert store.read_parts().table.num_rows == 4
    assert store.check().damage == ()
    shutil.rmtree(folder)
    return is_stopped


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_launch_that_computes_again_may_stop_anywhere(computed, tmp_path, monkeypatch, before):
    at = 1
    while stopped_recompute(computed, tmp_path, monkeypatch, computed[2], at, before=before):
        at += 1
    assert at > 8


@pytest.mark.parametrize("at", [2, 5])
def test_a_launch_that_was_stopped_goes_on_with_what_was_asked_for_again(computed, tmp_path, monkeypatch, at):
    assert stopped_recompute(computed, tmp_path, monkeypatch, computed[2], at, before=False)


# Stopped anywhere -----------------------------------------------------------------------------------------------------


def test_a_compaction_of_rows_that_do_not_count_may_stop_anywhere(tmp_path):
    store = store_of(tmp_path / "grid", "s", CELLS[:4])
    again = [make_row(cell, m, 0.75, generation=5) for cell in CELLS[:2] for m in cell.metrics]
    again.append(make_row(CELLS[3], None, None, status="failed", error="again", generation=6))
    store.write_part("again", again)
    expected = results(tmp_path / "grid")
    assert {row["status"] for row in expected[1]} == {"done", "failed"}

    def look(folder):
        store = Store.open(folder)
        assert results(folder) == expected
        assert store.check().damage == ()
        store.compact()
        store.collect()
        assert results(folder) == expected
        assert store.cell_status().failed(CELLS[3].cell_id) == "again"
        assert store.read_parts().table.num_rows == sum(len(cell.metrics) for cell in CELLS[:3]) + 1

    stopped_everywhere(tmp_path, tmp_path / "grid", compact, look)
    stopped_everywhere(tmp_path, tmp_path / "grid", collect, look)


def test_a_repair_may_stop_anywhere(tmp_path):
    store = store_of(tmp_path / "grid", "s", CELLS[:4])
    store.write_part("again", [make_row(CELLS[1], m, 0.75, generation=5) for m in CELLS[1].metrics])
    store.compact()
    store.write_part("more", [make_row(CELLS[4], m, 0.25) for m in CELLS[4].metrics])
    expected = store.read_parts().table.num_rows, results(tmp_path / "grid")
    damaged = store.write_part("bad", [make_row(CELLS[5], m, 0.25) for m in CELLS[5].metrics])
    for path in (tmp_path / "grid/parts/v1" / damaged, tmp_path / "grid/sweeps/s/recompute.json"):
        path.write_bytes(b"damaged")
    for path in (tmp_path / "grid/snapshots/v1").glob("*.json"):
        path.unlink()  # no snapshot lists the data files
    [extract, *_] = (tmp_path / "grid/snapshots/v1/extracts").iterdir()
    extract.write_bytes(b"damaged")

    def repair(files):
        set_aside(files, Checker(files).run())

    def look(folder):
        store = Store.open(folder)
        assert set(map(repr, results_of(folder)[0])) <= set(map(repr, expected[1][0]))
        repair(store.files)
        assert results(folder) == expected[1]
        assert store.read_parts().table.num_rows == expected[0]
        assert store.check().damage == ()
        aside = [path.read_bytes() for path in (folder / "set-aside").rglob("*") if path.is_file()]
        assert aside.count(b"damaged") >= 2

    stopped_everywhere(tmp_path, tmp_path / "grid", repair, look)


def results_of(folder):
    """Return what is shown of a store in which something is damaged."""
    with Catalog(Store.open(folder)) as catalog:
        return (catalog.query("select sweep, cell_id, metric, value from results order by all").to_pylist(),)
