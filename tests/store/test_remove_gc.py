"""Sweeps that are forgotten, and what nobody needs: freed, and nothing that somebody does, wherever it is stopped."""

import json
import os
import subprocess
from dataclasses import replace

import pytest
from helpers_flow import run
from helpers_objects import make_bucket, moto_server, store_uri
from helpers_stopping import content_of, stopped_everywhere
from helpers_store import QUICK, make_row, plan_tables, planned_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unlisted import as_numbered, results, store_of

from stitchgrid.errors import StoreError
from stitchgrid.store import LeaseError, Store, garbage_collection
from stitchgrid.store.folder import DEEPEST
from stitchgrid.store.garbage_collection import collect
from stitchgrid.store.sweep_removal import remove

CELLS = list(planned_cells())
KEYS = {"network": ["net-s"], "evaluation": ["eval-s"]}


def sweep_of(store, sweep, cells, *, artefacts=None):
    """Plan a sweep of some cells and store their values."""
    tables = plan_tables()
    ids = {cell.cell_id for cell in cells}
    mine = [row for row in tables["cells"].to_pylist() if row["cell_id"] in ids]
    tables["cells"] = tables["cells"].from_pylist(mine, schema=tables["cells"].schema)
    revision = store.write_job(sweep, {"name": sweep})
    noted = {"network": [f"net-{sweep}"], "evaluation": [f"eval-{sweep}"]} if artefacts is None else artefacts
    store.write_plan(sweep, revision, **tables, info={"artefacts": noted} if noted != "unknown" else {})
    for key in (noted or {}).get("network", ()) if noted != "unknown" else ():
        store.write_artefact("network", key, b"weights" * 100)
    for key in (noted or {}).get("evaluation", ()) if noted != "unknown" else ():
        store.write_artefact("evaluation", key, b'{"accuracy": 0.5}')
    store.write_part(f"shard-{sweep}", [make_row(cell, metric, 0.5) for cell in cells for metric in cell.metrics])
    store.journal(sweep, "launch-1", [{"unit": "u", "worker": "w"}])
    store.write_log(sweep, "unit", f"log of {sweep}")


def two_sweeps(folder, *, compacted=True, shared=2):
    store = Store.open(folder, create=True)
    sweep_of(store, "s", CELLS[:6])
    sweep_of(store, "t", CELLS[6 - shared : 10])
    if compacted:
        store.compact()
    return store


def rows_there(store):
    return {
        (row["cell_id"], row["metric"]) for row in store.read_parts(("cell_id", "status", "metric")).table.to_pylist()
    }


def rows_of_sweep(cells):
    return {(cell.cell_id, metric) for cell in cells for metric in cell.metrics}


# Remove ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [True, False])
def test_a_removed_sweep_is_forgotten_and_others_are_not(tmp_path, compacted):
    store = two_sweeps(tmp_path, compacted=compacted)
    others = [row for row in results(tmp_path)[0] if row["sweep"] == "t"]
    before = rows_there(store)
    assert "removed s: " in run("remove", "s", "--store", tmp_path).stdout
    assert store.sweep_names() == ["t"]
    assert results(tmp_path)[0] == others
    assert not (tmp_path / "sweeps/s").exists()
    assert rows_there(store) == before
    assert store.check().findings == ()
    store.compact()
    assert results(tmp_path)[0] == others


def test_a_name_that_is_used_again_shows_nothing_of_the_old_sweep(tmp_path):
    for numbered in (False, True):
        store = two_sweeps(tmp_path / str(numbered))
        if numbered:
            as_numbered(store.uri)
        store.remove("s")
        sweep_of(store, "s", CELLS[3:5])
        shown = {row["cell_id"] for row in results(store.uri)[0] if row["sweep"] == "s"}
        assert shown == {cell.cell_id for cell in CELLS[3:5]}
        store.compact()
        shown = {row["cell_id"] for row in results(store.uri)[0] if row["sweep"] == "s"}
        assert shown == {cell.cell_id for cell in CELLS[3:5]}


def test_a_sweep_that_is_being_computed_is_not_removed(tmp_path):
    store = two_sweeps(tmp_path)
    store.leases.claim("s", "launch-7")
    with pytest.raises(LeaseError, match=r"'s' is being computed by launch launch-7 .*; stop that launch or wait for"):
        store.remove("s")
    assert run("remove", "s", "--store", tmp_path, code=1).stderr.startswith("Error: sweep 's' is being computed")
    assert store.sweep_names() == ["s", "t"]


def test_a_wrong_name_is_told_with_the_known_ones(tmp_path):
    store = two_sweeps(tmp_path)
    with pytest.raises(StoreError, match=r"no sweep 'x' in the store .*; known: s, t"):
        store.remove("x")
    assert "cannot be a name in a store" in run("remove", "../s", "--store", tmp_path, code=1).stderr


def test_a_removal_may_stop_anywhere(tmp_path):
    two_sweeps(tmp_path / "grid")
    whole = results(tmp_path / "grid")[0]
    others = [row for row in whole if row["sweep"] == "t"]

    def look(folder):
        store = Store.open(folder)
        assert [row for row in results(folder)[0] if row["sweep"] == "t"] == others
        shown = [row for row in results(folder)[0] if row["sweep"] == "s"]
        assert shown in ([], [row for row in whole if row["sweep"] == "s"])
        assert store.check().damage == ()
        if (folder / "sweeps/s").exists() and list((folder / "sweeps/s").rglob("*.*")):
            store.remove("s")
        assert store.sweep_names() == ["t"]
        assert results(folder)[0] == others
        assert not [path for path in (folder / "sweeps/s").rglob("*") if path.is_file()]

    stopped_everywhere(tmp_path, tmp_path / "grid", lambda files: remove(files, "s"), look)


def test_what_a_stopped_removal_left_goes_with_gc(tmp_path):
    store = two_sweeps(tmp_path)
    for name in ("plan.json", "job.json"):
        (tmp_path / "sweeps/s/0001" / name).unlink()
    assert store.sweep_names() == ["t"]
    store.collect()
    assert not (tmp_path / "sweeps/s").exists()
    assert store.check().findings == ()


@pytest.mark.parametrize("command", ["remove", "gc"])
@pytest.mark.parametrize("depth", [10, 1500])
def test_folders_within_each_other_end_no_removal(tmp_path, command, depth):
    store, sweep = two_sweeps(tmp_path), tmp_path / "sweeps/s"
    folder = sweep / "0001"
    try:
        for _ in range(depth):
            (folder := folder / "a").mkdir()
        if command == "remove":
            store.remove("s")
        else:
            for name in ("plan.json", "job.json"):
                (sweep / "0001" / name).unlink()
            store.collect()
        assert store.sweep_names() == ["t"]
        assert not [path for path in sweep.glob("*/*") if path.is_file()]
        assert sweep.exists() == (depth > DEEPEST)
    finally:
        subprocess.run(["rm", "-rf", str(sweep)], check=True)  # what else removes them gives up


# gc -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [True, False])
def test_what_no_sweep_refers_to_is_freed_and_nothing_else(tmp_path, compacted):
    store = two_sweeps(tmp_path, compacted=compacted)
    store.remove("s")
    expected, before = results(tmp_path), content_of(tmp_path)
    said = run("gc", "--dry-run", "--store", tmp_path).stdout
    assert content_of(tmp_path) == before
    num = len(rows_of_sweep(CELLS[:4]))
    assert f"would free {num} rows: " in said
    assert "would free 4 artefacts: " in said
    found = run("gc", "--store", tmp_path).stdout
    assert found == said.replace("would free", "freed")
    assert rows_there(store) == rows_of_sweep(CELLS[4:10])
    assert results(tmp_path) == expected
    assert not store.has_artefact("network", "net-s")
    assert store.read_artefact("network", "net-t") == b"weights" * 100
    assert store.check().findings == ()
    assert run("gc", "--store", tmp_path).stdout == "nothing to free\n"
    after = content_of(tmp_path)
    assert len(after) < len(before)
    store.compact()
    assert results(tmp_path) == expected


@settings(max_examples=8, **QUICK)
@given(
    sweeps=st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True), min_size=1
    ),
    removed=st.sets(st.sampled_from("abc")),
    compacted=st.booleans(),
)
def test_rows_stay_as_long_as_any_sweep_has_their_cell(tmp_path_factory, sweeps, removed, compacted):
    store = Store.open(tmp_path_factory.mktemp("grid"), create=True)
    for sweep, cells in sweeps.items():
        sweep_of(store, sweep, [CELLS[k] for k in cells])
    if compacted:
        store.compact()
    for sweep in removed & sweeps.keys():
        store.remove(sweep)
    before = results(store.uri)
    store.collect()
    kept = {CELLS[k] for sweep, cells in sweeps.items() if sweep not in removed for k in cells}
    assert rows_there(store) == rows_of_sweep(kept)
    assert results(store.uri) == before
    assert store.check().findings == ()


def test_a_collection_may_stop_anywhere(tmp_path):
    store = two_sweeps(tmp_path / "grid")
    store.write_part("more", [make_row(CELLS[20], "loss", 0.5)])
    store.remove("s")
    expected = results(tmp_path / "grid")

    def look(folder):
        store = Store.open(folder)
        assert results(folder) == expected
        assert store.check().damage == ()
        store.collect()
        assert results(folder) == expected
        assert rows_there(store) == rows_of_sweep(CELLS[4:10])
        assert not store.has_artefact("network", "net-s")
        assert store.has_artefact("network", "net-t")
        assert store.check().damage == ()

    stopped_everywhere(tmp_path, tmp_path / "grid", collect, look)


@pytest.mark.parametrize("sweep", ["t", "new"])
def test_while_a_launch_runs_rows_and_artefacts_stay(tmp_path, sweep):
    store = two_sweeps(tmp_path)
    store.remove("s")
    store.leases.claim(sweep, "launch-7")
    before = rows_there(store)
    found = run("gc", "--store", tmp_path)
    assert f"Kept: sweep '{sweep}' is being computed by launch launch-7" in found.stderr
    assert "run gc after it" in found.stderr
    assert rows_there(store) == before
    assert store.has_artefact("network", "net-s")


def test_a_launch_that_begins_meanwhile_keeps_its_rows(tmp_path, monkeypatch):
    store = two_sweeps(tmp_path)
    store.remove("s")
    before = rows_there(store)
    compact = garbage_collection._compact

    def claim_first(files, references):
        store.leases.claim("new", "launch-7")
        compact(files, references)

    monkeypatch.setattr(garbage_collection, "_compact", claim_first)
    with pytest.raises(StoreError, match=r"a launch began in .* meanwhile; no row was freed: run gc after it"):
        store.collect()
    assert rows_there(store) == before
    assert store.check().damage == ()


@pytest.mark.parametrize("has_rows", [True, False])
@pytest.mark.parametrize("is_planned", [True, False])
def test_a_launch_that_begins_behind_the_rows_keeps_its_artefacts_and_its_claim(
    tmp_path, monkeypatch, has_rows, is_planned
):
    """Nothing refers to what it found yet: at first it has a claim alone, then a job without a plan."""
    store = two_sweeps(tmp_path)
    store.remove("s")
    if not has_rows:
        store.collect()
        store.write_artefact("network", "net-s", b"weights" * 100)
    collected = garbage_collection._of_snapshots
    begun = []

    def begin_first(files):
        if not begun:
            begun.append(store.leases.claim("s", "launch-7"))
            if is_planned:
                store.write_job("s", {"name": "s"})
        return collected(files)

    monkeypatch.setattr(garbage_collection, "_of_snapshots", begin_first)
    if has_rows:
        with pytest.raises(StoreError, match="a launch began in"):
            store.collect()
    else:
        found = store.collect()
        assert "sweep 's' is being computed by launch launch-7" in found.kept[0]
    assert store.leases.holder("s") == begun[0]
    assert store.has_artefact("network", "net-s")
    assert not is_planned or store.sweep_names() == ["s", "t"]


def test_a_claim_that_comes_at_the_very_end_stays(tmp_path, monkeypatch):
    """A sweep that a stopped removal left is launched again while what is left of it is deleted."""
    store = two_sweeps(tmp_path)
    store.journal("left", "launch-1", [{"unit": "u", "worker": "w"}])
    files_of, begun = garbage_collection.remains, []

    def begin_then(files):
        found = files_of(files)
        begun[:] = begun or [store.leases.claim("left", "launch-7")]
        return found

    monkeypatch.setattr(garbage_collection, "remains", begin_then)
    store.collect()
    assert store.leases.holder("left") == begun[0]


def test_a_sweep_that_is_not_planned_to_its_end_keeps_everything(tmp_path):
    store = two_sweeps(tmp_path)
    store.remove("s")
    store.write_job("t", {"name": "t", "more": 1})
    before = rows_there(store)
    found = store.collect()
    assert found.kept == ("the plan of sweep 't' is not complete: resume the sweep, or remove it",)
    assert rows_there(store) == before


def test_artefacts_stay_where_an_earlier_version_did_not_note_them(tmp_path):
    store = two_sweeps(tmp_path)
    sweep_of(store, "old", CELLS[10:12], artefacts="unknown")
    store.remove("s")
    found = store.collect()
    assert "sweep 'old' (revision 1) was planned by an earlier version" in found.kept[0]
    assert store.has_artefact("network", "net-s")
    assert rows_there(store) == rows_of_sweep(CELLS[4:12])


def test_a_damaged_plan_keeps_everything(tmp_path):
    store = two_sweeps(tmp_path)
    store.remove("s")
    (tmp_path / "sweeps/t/0001/cells.parquet").write_bytes(b"PAR1")
    before = rows_there(store)
    assert "the plan of sweep 't' cannot be read" in store.collect().kept[0]
    assert rows_there(store) == before


def test_earlier_revisions_of_a_sweep_keep_their_rows(tmp_path):
    store = Store.open(tmp_path, create=True)
    sweep_of(store, "s", CELLS[:4])
    sweep_of(store, "s", CELLS[2:6])
    before = rows_there(store)
    assert store.collect().freed == ()
    assert rows_there(store) == before


def aged(path):
    os.utime(path, (1, 1))
    return path


def test_leftovers_go_when_they_are_old(tmp_path):
    store = two_sweeps(tmp_path)
    names = ("parts/v1/.x.parquet.ab.partial", f"artefacts/network/net-t-{'0' * 32}.safetensors")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(b"left" * 10)
    assert store.collect().freed == ()
    for path in paths:
        aged(path)
    [freed] = store.collect().freed
    assert (freed.what, freed.num, freed.num_bytes) == ("files left by stopped writers", 2, 80)
    assert not any(path.exists() for path in paths)
    assert store.has_artefact("network", "net-t")


def test_files_of_earlier_snapshots_go_at_once(tmp_path):
    store = two_sweeps(tmp_path)
    for number in range(3):
        store.write_part(
            f"more-{number}", [replace(make_row(CELLS[7], "loss", 0.5), created_at=f"2026-01-0{number + 3}")]
        )
        store.compact()
    expected = results(tmp_path)
    assert len(list((tmp_path / "snapshots/v1").glob("*.json"))) == 4
    [freed] = store.collect().freed
    assert freed.what == "files of earlier snapshots"
    assert len(list((tmp_path / "snapshots/v1").glob("*.json"))) == 1
    assert results(tmp_path) == expected
    assert store.check().findings == ()


def test_what_no_snapshot_lists_and_nobody_else_has_is_kept(tmp_path):
    store_of(tmp_path, "s", CELLS[:6])
    expected = results(tmp_path)
    for path in (tmp_path / "snapshots/v1").glob("*.json"):
        path.unlink()
    assert "recover them with 'stitchgrid check --repair'" in run("gc", "--store", tmp_path).stderr
    run("check", "--repair", "--store", tmp_path)
    assert results(tmp_path) == expected


def test_what_was_set_aside_stays(tmp_path):
    store = two_sweeps(tmp_path)
    (tmp_path / "set-aside/parts").mkdir(parents=True)
    aged_file = tmp_path / "set-aside/parts/x"
    aged_file.write_text("mine")
    aged(aged_file)
    store.collect()
    assert aged_file.exists()


def test_in_a_bucket(tmp_path):
    with moto_server() as endpoint:
        store = Store.open(store_uri(endpoint, make_bucket(endpoint)), create=True)
        sweep_of(store, "s", CELLS[:6])
        sweep_of(store, "t", CELLS[4:10])
        store.compact()
        store.remove("s")
        found = store.collect()
        assert {one.what for one in found.freed} >= {"rows", "artefacts"}
        assert all(one.num_bytes > 0 for one in found.freed)
        assert rows_there(store) == rows_of_sweep(CELLS[4:10])


def test_a_launched_sweep_notes_its_artefacts(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(
        'name = "tiny"\n[data]\ndataset = "digits"\nfit = { split = "train", samples = 50 }\n'
        'eval = { split = "test", samples = 40 }\n[[models]]\nname = "a"\narchitecture = "stitchgrid:resnet20"\n'
        'args = { width = 4 }\nlayers = ["blocks"]\n'
        'weights = "random"\n[[matchers]]\nkind = "cka"\n'
    )
    grid = tmp_path / "grid"
    run("launch", job, "--store", grid, "--address", "none")
    noted = json.loads((grid / "sweeps/tiny/0001/plan.json").read_text())["info"]["artefacts"]
    there = {(path.parent.name, path.stem) for path in grid.glob("artefacts/*/*.manifest")}
    assert {(kind, key) for kind, keys in noted.items() for key in keys} == there
    assert there
    before = content_of(grid)
    assert run("gc", "--store", grid).stdout == "nothing to free\n"
    assert content_of(grid) == before
    run("remove", "tiny", "--store", grid)
    run("gc", "--store", grid)
    assert not list(grid.glob("artefacts/*/*"))
    assert Store.open(grid).read_parts().table.num_rows == 0
