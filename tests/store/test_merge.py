"""Stores taken into one another: whatever their state, nothing is lost, shown twice, or changed where it came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers_flow import at_once, run
from helpers_objects import make_bucket, moto_server, store_uri
from helpers_stopping import content_of, stopped_everywhere
from helpers_store import QUICK, make_row, plan_tables, planned_cells, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compact import part_lists, planned_store
from test_unlisted import as_numbered, results, store_of

from stitchgrid.catalog import Catalog
from stitchgrid.errors import InputError
from stitchgrid.models.fingerprint import to_json
from stitchgrid.records import Fingerprint, TensorSummary, canonical, digest
from stitchgrid.store import Store, store_merge
from stitchgrid.store.compact import Compaction
from stitchgrid.store.layout import HIGHEST
from stitchgrid.store.limits import HIGHEST_GENERATION_TAKEN, MOST
from stitchgrid.store.store_merge import merge

CELLS = list(planned_cells())


def full_store(folder, sweep, cells, *, compacted=True):
    """Return a store with something of every kind."""
    store = store_of(folder, sweep, cells, compacted=compacted)
    store.write_artefact("network", f"{sweep}-net", b"weights of " + sweep.encode())
    store.write_artefact("evaluation", f"{sweep}-eval", b'{"accuracy": 0.5}')
    store.journal(sweep, f"launch-{sweep}", [{"unit": "u", "worker": "w"}])
    store.write_log(sweep, "unit", f"log of {sweep}")
    store.write_part("failed", [make_row(CELLS[20], None, None, status="failed", error=f"in {sweep}")])
    return store


def seen(folder):
    """Return all that readers see of a store."""
    store = Store.open(folder)
    logs = {
        (sweep, unit): sorted((store.read_log(sweep, unit) or "").split("\n"))
        for sweep in store.sweep_names()
        for unit in store.log_names(sweep)
    }
    artefacts = sorted(str(p.relative_to(folder)) for p in Path(folder).glob("artefacts/*/*"))
    attempts = {sweep: len(store.attempts(sweep)) for sweep in store.sweep_names()}
    failed = store.cell_status().failed(CELLS[20].cell_id)
    return results(folder), logs, artefacts, attempts, failed


def agreed(row):
    """Return a row with the value that whoever computes its cell finds."""
    number = int(digest(row.cell_id, str(row.metric), str(row.generation or 0))[:4], 16)
    return row if row.value is None else replace(row, value=number / 2**16)


@settings(max_examples=6, **QUICK)
@given(here=part_lists, there=part_lists, states=st.tuples(st.booleans(), st.booleans()))
def test_a_merged_store_says_what_one_store_of_all_rows_would(tmp_path_factory, here, there, states):
    one, two, both = (planned_store(tmp_path_factory.mktemp("grid")) for _ in range(3))
    here, there = ([[agreed(row) for row in part] for part in parts] for parts in (here, there))
    for store, parts, is_compacted in ((one, here, states[0]), (two, there, states[1])):
        for shard, part in enumerate(parts):
            store.write_part(f"shard-{shard}", part)
            both.write_part(f"shard-{shard}-of-{store is one}", part)
        if is_compacted:
            store.compact()
    before = content_of(two.uri)
    one.merge([two])
    assert results(one.uri) == results(both.uri)
    came, wanted = one.cell_status(), both.cell_status()
    for cell in CELLS[:10]:
        assert came.metrics_done(cell.cell_id) == wanted.metrics_done(cell.cell_id)
        assert came.failed(cell.cell_id) == wanted.failed(cell.cell_id)
        assert came.quarantined(cell.cell_id) == wanted.quarantined(cell.cell_id)
    assert one.check().findings == ()
    assert content_of(two.uri) == before
    kept = content_of(one.uri)
    assert [(found.num_rows, found.num_artefacts) for found in one.merge([two]).stores] == [(0, 0)]
    assert content_of(one.uri).items() <= kept.items()  # files of earlier snapshots may go


def test_an_error_that_a_later_computation_repeats_comes_along_once(tmp_path):
    one, two = (Store.open(tmp_path / name, create=True) for name in ("one", "two"))
    error = make_row(CELLS[0], None, None, status="failed", error="again")
    one.write_part("a", [error])
    two.write_part(
        "b", [replace(error, generation=2), replace(make_row(CELLS[0], CELLS[0].metrics[0], 0.5), generation=2)]
    )
    assert [[found.num_rows for found in one.merge([two]).stores] for _ in range(2)] == [[2], [0]]


@pytest.mark.parametrize("states", [(True, True), (True, False), (False, False)])
def test_everything_comes_along_once(tmp_path, states):
    full_store(tmp_path / "into", "s", CELLS[:6], compacted=states[0])
    full_store(tmp_path / "from", "t", CELLS[3:9], compacted=states[1])
    before = seen(tmp_path / "from")
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert "new sweeps: t\n" in found.stdout
    assert "2 new artefacts, 2 new logs" in found.stdout
    assert seen(tmp_path / "from") == before
    merged = seen(tmp_path / "into")
    assert {row["sweep"] for row in merged[0][0]} == {"s", "t"}
    assert [row for row in merged[0][0] if row["sweep"] == "t"] == before[0][0]
    assert merged[1] == {("s", "unit"): ["log of s"], ("t", "unit"): ["log of t"]}
    assert set(before[2]) <= set(merged[2])
    assert merged[3] == {"s": 1, "t": 1}
    assert merged[4] == "in t"
    kept = content_of(tmp_path / "into")
    assert (
        "0 new rows, 0 new artefacts, 0 new logs; new sweeps: none"
        in run("merge", tmp_path / "from", "--store", tmp_path / "into").stdout
    )
    assert content_of(tmp_path / "into") == kept
    assert Store.open(tmp_path / "into").check().findings == ()


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_merge_may_stop_anywhere(tmp_path, every):
    full_store(tmp_path / "into", "s", CELLS[:4])
    source = full_store(tmp_path / "from", "t", CELLS[2:6])
    alone, expected_from = results(tmp_path / "into"), content_of(tmp_path / "from")
    shutil.copytree(tmp_path / "into", tmp_path / "whole")
    Store.open(tmp_path / "whole").merge([source])
    expected = seen(tmp_path / "whole")

    def look(folder):
        store = Store.open(folder)
        assert store.check().damage == ()
        assert [row for row in results(folder)[0] if row["sweep"] == "s"] == alone[0]
        store.merge([source])
        assert seen(folder) == expected
        assert store.check().damage == ()
        assert content_of(tmp_path / "from") == expected_from

    stopped_everywhere(tmp_path, tmp_path / "into", lambda files: merge(files, [source.files]), look, every=every)


def test_a_new_store_is_made_and_several_are_taken_in(tmp_path):
    for name, cells in (("a", CELLS[:4]), ("b", CELLS[4:8]), ("c", CELLS[2:6])):
        full_store(tmp_path / name, name, cells, compacted=name != "b")
    run("merge", *(tmp_path / name for name in "abc"), "--store", tmp_path / "all")
    rows, _ = results(tmp_path / "all")
    assert {row["cell_id"] for row in rows} == {cell.cell_id for cell in CELLS[:8]}
    assert len({repr(row) for row in rows}) == len(rows)


def test_a_store_of_version_0_1_0_comes_in(tmp_path):
    full_store(tmp_path / "from", "t", CELLS[:6])
    expected = results(tmp_path / "from")
    as_numbered(tmp_path / "from")
    before = content_of(tmp_path / "from")
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert results(tmp_path / "into") == expected
    assert content_of(tmp_path / "from") == before


def test_what_no_snapshot_of_the_other_lists_comes_too(tmp_path):
    store_of(tmp_path / "from", "t", CELLS[:6])
    expected = results(tmp_path / "from")
    for path in (tmp_path / "from/snapshots/v1").glob("*.json"):
        path.unlink()
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert results(tmp_path / "into") == expected


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "pattern",
    [
        "parts/v1/*.parquet",
        "snapshots/v1/data/*",
        "artefacts/network/*.safetensors",
        "artefacts/evaluation/*.manifest",
        "sweeps/t/0001/cells.parquet",
        "sweeps/t/0001/plan.json",
        "sweeps/t/journal/*/000001.json",
    ],
)
def test_what_is_damaged_is_named_and_never_copied(tmp_path, pattern):
    full_store(tmp_path / "from", "t", CELLS[:6])
    [path] = (tmp_path / "from").glob(pattern)
    if path.suffix in (".manifest", ".json"):
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path)
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=1)
    name = str(path.relative_to(tmp_path / "from"))
    told = name.replace(".safetensors", "") if "network" in name else name
    assert f"Warning: left out: {tmp_path / 'from'}: {told.split('-')[0]}" in found.stderr.replace("t-net", "t")
    into = Store.open(tmp_path / "into")
    assert into.check().damage == ()
    assert path.read_bytes() not in [one.read_bytes() for one in (tmp_path / "into").rglob("*") if one.is_file()]


def test_damage_of_the_store_itself_is_named_and_stays(tmp_path):
    into = full_store(tmp_path / "into", "s", CELLS[:4], compacted=False)
    store_of(tmp_path / "from", "t", CELLS[4:8])
    flip(into.part_paths()[-1])
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert f"Warning: left out: parts/v1/{into.part_paths()[0].name}" in found.stderr
    assert len(into.part_paths()) == 1


def test_links_and_foreign_names_are_left_out(tmp_path):
    full_store(tmp_path / "from", "t", CELLS[:6])
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "from/artefacts/network/x.manifest").symlink_to(tmp_path / "secret")
    (tmp_path / "from/parts/v1/mine.parquet").write_bytes(b"PAR1")
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=1)
    assert "artefacts/network/x.manifest" in found.stderr
    assert "parts/v1/mine.parquet: not the name of a part" in found.stderr
    assert not [one for one in (tmp_path / "into").rglob("*") if one.name.startswith(("x.", "mine"))]


# Sweeps of one name ---------------------------------------------------------------------------------------------------


def test_a_copy_that_went_on_brings_its_revisions(tmp_path):
    store_of(tmp_path / "into", "s", CELLS[:4])
    shutil.copytree(tmp_path / "into", tmp_path / "from")
    store_of(tmp_path / "from", "s", CELLS[:8])
    assert "new sweeps: s" in run("merge", tmp_path / "from", "--store", tmp_path / "into").stdout
    assert Store.open(tmp_path / "into").latest_revision("s") == 2
    assert results(tmp_path / "into") == results(tmp_path / "from")
    before = content_of(tmp_path / "into")
    shutil.rmtree(tmp_path / "from/sweeps/s/0002")
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert content_of(tmp_path / "into").items() <= before.items()


def test_one_job_computed_in_two_stores_is_one_sweep(tmp_path):
    into, source = (store_of(tmp_path / name, "s", CELLS[:8], compacted=False) for name in ("into", "from"))
    for store, kept in ((into, CELLS[:4]), (source, CELLS[4:8])):
        [path] = store.part_paths()
        path.unlink()
        store.write_part("part", [make_row(cell, metric, 0.5) for cell in kept for metric in cell.metrics])
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert "s does not change here: it has all cells of the sweep there" in found.stdout
    assert into.sweep_names() == ["s"]
    assert {row["status"] for row in results(tmp_path / "into")[1]} == {"done"}


def test_other_cells_under_one_name_get_a_name_of_their_own(tmp_path):
    store_of(tmp_path / "into", "s", CELLS[:4])
    store_of(tmp_path / "from", "s", CELLS[4:8])
    before = results(tmp_path / "into")[0]
    for number in range(2):
        found = run("merge", tmp_path / "from", "--store", tmp_path / "into")
        first, name = Store.open(tmp_path / "into").sweep_names()
        assert (first, name[:2], len(name)) == ("s", "s-", 10)
        assert f"s is called {name} here: a sweep here has its name and other cells" in found.stdout
        assert (f"new sweeps: {name}" in found.stdout) == (number == 0)
    rows = results(tmp_path / "into")[0]
    assert [row for row in rows if row["sweep"] == "s"] == before
    assert [row | {"sweep": "s"} for row in rows if row["sweep"] == name] == results(tmp_path / "from")[0]
    assert Store.open(tmp_path / "into").read_job(name)["name"] == name
    assert Store.open(tmp_path / "into").check().findings == ()


@pytest.mark.parametrize(
    ("mine", "theirs"), [(["0001"], ["0002"]), (["0001", "0002"], ["0001", "0003"]), (["0001"], ["0001"])]
)
def test_no_revision_comes_on_top_of_a_sweep_that_it_does_not_continue(tmp_path, mine, theirs):
    """The other store's sweep is another one, whatever the numbers of its revisions: it comes as a whole."""
    for place, cells, wanted in (("into", CELLS[:4], mine), ("from", CELLS[4:8], theirs)):
        for number, name in enumerate(wanted, start=1):
            store_of(tmp_path / place, "s", cells[: 1 + number])
            folder = tmp_path / place / "sweeps/s"
            if name != f"{number:04d}":
                (folder / f"{number:04d}").rename(folder / name)
    before = content_of(tmp_path / "into/sweeps/s")
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into")
    [name] = set(Store.open(tmp_path / "into").sweep_names()) - {"s"}
    assert f"s is called {name} here" in found.stdout
    assert content_of(tmp_path / "into/sweeps/s") == before
    assert sorted(path.name for path in (tmp_path / f"into/sweeps/{name}").iterdir()) == theirs
    assert Store.open(tmp_path / "into").check().findings == ()


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_job_that_was_never_planned_is_no_continuation_of_another(tmp_path, is_sound):
    for place, number in (("into", 1), ("from", 2)):
        Store.open(tmp_path / place, create=True).write_job("s", {"name": "s", "of": number})
    (tmp_path / "from/sweeps/s/0001").rename(tmp_path / "from/sweeps/s/0002")
    if not is_sound:  # the name is this store's, though nobody can read what it stands for
        (tmp_path / "into/sweeps/s/0001/job.json").write_text("{")
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert [path.name for path in (tmp_path / "into/sweeps/s").iterdir()] == ["0001"]
    assert len(list((tmp_path / "into/sweeps").iterdir())) == 2


def test_a_revision_that_leaves_no_room_for_others_is_left_out(tmp_path):
    store_of(tmp_path / "from", "s", CELLS[:4])
    (tmp_path / "from/sweeps/s/0001").rename(tmp_path / f"from/sweeps/s/{HIGHEST}")
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=1)
    assert f"left out: {tmp_path / 'from'}: sweep 's': its revision {HIGHEST} has a number above" in found.stderr
    assert Store.open(tmp_path / "into").sweep_names() == []


def test_what_was_noted_of_code_behind_a_job_without_a_plan_stays_there(tmp_path):
    source = Store.open(tmp_path / "from", create=True)
    source.write_code("s", source.write_job("s", {"name": "s"}), {"own_code": {"net": "0"}})
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert source.read_code("s") == {"own_code": {"net": "0"}}
    assert Store.open(tmp_path / "into").read_code("s") == {}


def test_a_sweep_that_is_being_computed_here_is_left_alone(tmp_path):
    into = store_of(tmp_path / "into", "s", CELLS[:4])
    shutil.copytree(tmp_path / "into", tmp_path / "from")
    store_of(tmp_path / "from", "s", CELLS[:8])
    into.leases.claim("s", "launch-1")
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=1)
    assert "sweep 's': 's' is being computed by launch launch-1" in found.stderr
    assert "merge again after it" in found.stderr
    assert into.latest_revision("s") == 1


def test_claims_and_heartbeats_of_the_other_stay_there(tmp_path):
    source = store_of(tmp_path / "from", "s", CELLS[:4])
    source.leases.claim("s", "launch-1")
    source.write_heartbeat("s", {"at": "2026-11-24T00:00:00+00:00", "launch": "launch-1", "running": []})
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    into = Store.open(tmp_path / "into")
    assert into.leases.holder("s") is None
    assert into.read_heartbeat("s") is None


# Values of one cell ---------------------------------------------------------------------------------------------------

EARLIER, LATER = "2020-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00"


def values_of(folder):
    with Catalog(Store.open(folder)) as catalog:
        return catalog.query("select distinct cell_id, metric, value from results order by all").to_pylist()


def with_others(folder, *, compacted, **changes):
    """Write rows of the first three cells into a store, with another accuracy."""
    store = Store.open(folder)
    named = [(cell, metric) for cell in CELLS[:3] for metric in cell.metrics]
    store.write_part("other", [make_row(*one, 0.75 if one[1] == "accuracy" else 0.5, **changes) for one in named])
    if compacted:
        store.compact()
    return store


@pytest.mark.parametrize("compacted", [True, False])
@pytest.mark.parametrize("at", [EARLIER, LATER])
def test_other_values_of_a_cell_are_counted_and_those_here_stay(tmp_path, at, compacted):
    store_of(tmp_path / "into", "s", CELLS[:6], compacted=compacted)
    store_of(tmp_path / "from", "s", CELLS[:6], compacted=False)
    [path] = Store.open(tmp_path / "from").part_paths()
    path.unlink()
    with_others(tmp_path / "from", compacted=compacted, created_at=at)
    before = values_of(tmp_path / "into")
    changed = [cell for cell in CELLS[:3] if "accuracy" in cell.metrics]
    first = min(changed, key=lambda cell: cell.cell_id)
    for _ in range(2):
        found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=1)
        told = f"{tmp_path / 'from'}: {len(changed)} cells have other values there than here, beyond rounding; "
        assert f"{told}the values here stay:" in found.stderr
        layers = f"{first.matcher} {first.source_layer} -> {first.target_layer}"
        assert f"{layers}, accuracy: 0.5 here, 0.75 there (cell {first.cell_id})" in found.stderr
        assert values_of(tmp_path / "into") == before
    kept = content_of(tmp_path / "into")
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", "--format", "json", code=1)
    [told] = json.loads(found.stdout)["stores"]
    assert (told["num_differing"], told["num_replaced"], len(told["differences"])) == (len(changed), 0, len(changed))
    assert content_of(tmp_path / "into") == kept


def test_a_later_computation_counts_and_is_said(tmp_path):
    for name in ("into", "from"):
        store_of(tmp_path / name, "s", CELLS[:6])
    source = with_others(tmp_path / "from", compacted=True, generation=7)
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert "3 cells were computed again there: their new values replace those here" in found.stdout
    assert values_of(tmp_path / "into") == values_of(tmp_path / "from")
    assert 0.75 in [row["value"] for row in values_of(tmp_path / "into")]
    kept = content_of(tmp_path / "into")
    assert "computed again" not in run("merge", tmp_path / "from", "--store", tmp_path / "into").stdout
    assert content_of(tmp_path / "into").items() <= kept.items()  # files of earlier snapshots may go
    store_of(tmp_path / "before", "s", CELLS[:6])
    [told] = source.merge([Store.open(tmp_path / "before")]).stores  # what was computed earlier is no other value
    assert (told.num_rows, told.num_differing, told.num_replaced) == (0, 0, 0)


@pytest.mark.parametrize(
    ("generation", "code"), [(HIGHEST_GENERATION_TAKEN, 0), (HIGHEST_GENERATION_TAKEN + 1, 1), (MOST, 1)]
)
def test_rows_that_leave_no_room_for_later_ones_are_left_out(tmp_path, generation, code):
    store_of(tmp_path / "into", "s", CELLS[:6])
    store_of(tmp_path / "from", "s", CELLS[:6])
    before = values_of(tmp_path / "into")
    with_others(tmp_path / "from", compacted=True, generation=generation)
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=code)
    assert ("rows of a generation above 500000000000000, which no later computation" in found.stderr) == bool(code)
    assert (values_of(tmp_path / "into") == before) == bool(code)


def test_rounding_is_no_other_value(tmp_path):
    for name, value in (("into", 0.5), ("from", 0.5 + 9e-7)):
        store = Store.open(tmp_path / name, create=True)
        store.write_plan("s", store.write_job("s", {"name": "s"}), **plan_tables(), info={})
        store.write_part("part", [make_row(CELLS[0], "accuracy", value, created_at=LATER if value == 0.5 else EARLIER)])
    shutil.copytree(tmp_path / "into", tmp_path / "other")
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    run("merge", tmp_path / "other", "--store", tmp_path / "from")
    assert values_of(tmp_path / "into") == values_of(tmp_path / "from") != []


# Artefacts ------------------------------------------------------------------------------------------------------------


def test_other_weights_under_one_key_are_named(tmp_path):
    into, source = (store_of(tmp_path / name, name, CELLS[:2]) for name in ("into", "from"))
    for store, weights in ((into, b"one"), (source, b"two")):
        store.write_artefact("network", "k", weights)
        store.write_artefact("evaluation", "k", b'{"accuracy": 0.5}' + b" " * len(store.uri))
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=1)
    assert "network k: it was trained in both stores, to other weights" in found.stderr
    assert "evaluation" not in found.stderr
    assert into.read_artefact("network", "k") == b"one"


@pytest.mark.parametrize(("mean", "code"), [(1.0000001, 0), (2.0, 1)])
def test_rows_of_a_network_that_computes_something_else_stay_there(tmp_path, mean, code):
    into, source = (store_of(tmp_path / name, name, cells) for name, cells in (("into", CELLS[:2]), ("from", CELLS)))
    for store, value in ((into, 1.0), (source, mean)):
        summary = TensorSummary(mean=value, std=1.0, projection=0.0)
        found = Fingerprint(input_shape=(1,), noise=(("relu", summary),), images=(), images_digest="")
        key = digest("fingerprint", digest("net/0"), canonical(found.input_shape), "0")
        store.write_artefact("fingerprint", key, to_json(found))
    found = run("merge", tmp_path / "from", "--store", tmp_path / "into", code=code)
    said = f"rows of the network {digest('net/0')}: it computes something else there than here"
    assert (said in found.stderr) == bool(code)
    rows = [row["cell_id"] for row in results(tmp_path / "into")[0] if row["sweep"] == "from"]
    of_others = [cell for cell in CELLS if "net/0" not in (cell.source_model, cell.target_model)]
    expected = [*of_others, *CELLS[:2]] if code else CELLS  # those that were here before are here
    assert set(rows) == {cell.cell_id for cell in expected}


# Places, races, input -------------------------------------------------------------------------------------------------


def test_folders_and_buckets_take_each_other_in(tmp_path):
    with moto_server() as endpoint:
        uri = store_uri(endpoint, make_bucket(endpoint))
        full_store(tmp_path / "a", "s", CELLS[:6])
        expected = results(tmp_path / "a")
        run("merge", tmp_path / "a", "--store", uri)
        assert results(uri) == expected
        run("merge", uri, "--store", tmp_path / "back")
        assert results(tmp_path / "back") == expected
        assert "0 new rows" in run("merge", tmp_path / "back", "--store", uri).stdout
        run("merge", uri, "--store", uri, code=2)


def test_a_source_that_is_compacted_meanwhile_is_read_anew(tmp_path, monkeypatch):
    source = store_of(tmp_path / "from", "t", CELLS[:6], compacted=False)
    expected, pending = results(tmp_path / "from"), [True]
    contents = store_merge.contents

    def compact_then(files):
        found = contents(files)
        if pending and pending.pop():
            source.compact()
        return found

    monkeypatch.setattr(store_merge, "contents", compact_then)
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    assert results(tmp_path / "into") == expected


def test_a_store_that_is_compacted_meanwhile_is_merged_again(tmp_path, monkeypatch):
    into = store_of(tmp_path / "into", "s", CELLS[:4], compacted=False)
    source = store_of(tmp_path / "from", "t", CELLS[4:8])
    publish, pending = Compaction._publish, [True]

    def compact_first(self, snapshot, previous):
        if pending and pending.pop():
            into.write_part("more", [replace(rows_of(CELLS[0])[0], metric="loss")])
            into.compact()
        return publish(self, snapshot, previous)

    monkeypatch.setattr(store_merge.RowMerge, "_publish", compact_first)
    into.merge([source])
    rows, _ = results(tmp_path / "into")
    assert {row["cell_id"] for row in rows} == {cell.cell_id for cell in CELLS[:8]}
    assert into.check().damage == ()


def test_two_merges_at_once_lose_nothing(tmp_path):
    for name, cells in (("a", CELLS[:4]), ("b", CELLS[4:8])):
        full_store(tmp_path / name, name, cells)
    store_of(tmp_path / "into", "s", CELLS[:2])
    at_once(2, lambda k: Store.open(tmp_path / "into").merge([Store.open(tmp_path / "ab"[k])]))
    rows, _ = results(tmp_path / "into")
    assert {row["cell_id"] for row in rows} == {cell.cell_id for cell in CELLS[:8]}
    assert Store.open(tmp_path / "into").check().damage == ()


def test_what_cannot_be_merged_is_said(tmp_path):
    store = store_of(tmp_path / "a", "s", CELLS[:2])
    with pytest.raises(InputError, match=r"cannot merge the store .* into itself; name two stores"):
        store.merge([Store.open(tmp_path / "a")])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert "into itself" in run("merge", tmp_path / "link", "--store", tmp_path / "a", code=2).stderr
    assert "no store at" in run("merge", tmp_path / "none", "--store", tmp_path / "new", code=1).stderr
    assert not (tmp_path / "new").exists()


def test_a_merged_store_answers_as_before(tmp_path):
    full_store(tmp_path / "from", "t", CELLS[:30])
    run("merge", tmp_path / "from", "--store", tmp_path / "into")
    statement = "select * from scores order by all"
    with Catalog(Store.open(tmp_path / "from")) as one, Catalog(Store.open(tmp_path / "into")) as other:
        assert json.dumps(one.query(statement).to_pylist()) == json.dumps(other.query(statement).to_pylist())
