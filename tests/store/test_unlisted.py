"""Stores copied into one another by hand, data files that no snapshot lists: nothing is lost or shown twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_store import make_row, plan_tables, planned_cells, rows_of

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.store import Store
from stitchgrid.store.documents import SnapshotDocument
from stitchgrid.store.layout import content_digest

CELLS = list(planned_cells())


def store_of(folder, sweep, cells, *, compacted=True):
    """Return a store with a sweep of some cells, all done."""
    store = Store.open(folder, create=True)
    tables = plan_tables()
    ids = {cell.cell_id for cell in cells}
    mine = [row for row in tables["cells"].to_pylist() if row["cell_id"] in ids]
    tables["cells"] = tables["cells"].from_pylist(mine, schema=tables["cells"].schema)
    store.write_plan(sweep, store.write_job(sweep, {"name": sweep}), **tables, info={})
    store.write_part(f"shard-{sweep}", [make_row(cell, metric, 0.5) for cell in cells for metric in cell.metrics])
    if compacted:
        store.compact()
    return store


def results(folder):
    with Catalog(Store.open(folder)) as catalog:
        assert catalog.damaged == ()
        rows = catalog.query("select sweep, cell_id, metric, value from results order by all").to_pylist()
        cells = catalog.query("select sweep, cell_id, status from cells order by all").to_pylist()
    return rows, cells


def copied(tmp_path, first, second):
    """Return the folder of a store into which another one was copied by hand."""
    shutil.copytree(first, tmp_path / "both")
    shutil.copytree(second, tmp_path / "both", dirs_exist_ok=True)
    return tmp_path / "both"


def as_numbered(folder):
    """Give every manifest the name and content that version 0.1.0 gave it."""
    for path in (Path(folder) / "snapshots/v1").glob("*.json"):
        document = json.loads(path.read_text())
        for key in ("follows", "before"):
            document["snapshot"].pop(key)
        document["digest"] = content_digest(json.dumps(document["snapshot"], sort_keys=True).encode())
        (path.parent / f"{path.name[:6]}.json").write_text(json.dumps(document))
        path.unlink()
    (Path(folder) / "store.json").write_text('{"format":1,"version":"0.1.0"}')


@pytest.mark.parametrize("cut", [6, 3], ids=["apart", "overlapping"])
@pytest.mark.parametrize("states", [(True, True), (True, False), (False, True)])
def test_two_stores_copied_together_show_both(tmp_path, states, cut):
    first = store_of(tmp_path / "a", "s", CELLS[:6], compacted=states[0])
    second = store_of(tmp_path / "b", "t", CELLS[cut : cut + 6], compacted=states[1])
    expected = tuple(
        sorted(one + two, key=repr) for one, two in zip(results(first.uri), results(second.uri), strict=True)
    )
    both = copied(tmp_path, first.uri, second.uri)
    for _ in range(2):
        rows, cells = results(both)
        assert (sorted(rows, key=repr), sorted(cells, key=repr)) == expected
        assert Store.open(both).check().findings == ()
        Store.open(both).compact()
    assert not Store.open(both).compact().is_published


def test_an_older_copy_brings_nothing_back(tmp_path):
    store = store_of(tmp_path / "a", "s", CELLS[:6])
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    store.write_part("more", [replace(rows_of(CELLS[0])[0], metric="loss")])
    store.compact()
    expected = results(store.uri)
    both = copied(tmp_path, tmp_path / "a", tmp_path / "old")
    assert results(both) == expected
    assert Store.open(both).check().damage == ()
    Store.open(both).compact()
    assert results(both) == expected


def test_numbered_snapshots_stay_readable_and_get_names(tmp_path):
    store = store_of(tmp_path / "a", "s", CELLS[:6])
    expected = results(store.uri)
    as_numbered(store.uri)
    assert results(store.uri) == expected
    assert store.check().findings == ()
    assert store.compact().is_published
    assert results(store.uri) == expected
    assert store.check().findings == ()
    assert json.loads((tmp_path / "a/store.json").read_text())["format"] == 2
    assert not store.compact().is_published


@pytest.mark.parametrize("times", [1, 2])
def test_numbered_stores_copied_together_are_found_and_taken_back(tmp_path, times):
    stores = [store_of(tmp_path / name, name, cells) for name, cells in (("a", CELLS[:6]), ("b", CELLS[6:12]))]
    for _ in range(times - 1):
        stores[0].write_part("more", [replace(rows_of(CELLS[0])[0], metric="loss")])
        stores[0].compact()
    expected = sorted(results(stores[0].uri)[0] + results(stores[1].uri)[0], key=repr)
    for store in stores:
        as_numbered(store.uri)
    both = copied(tmp_path, stores[0].uri, stores[1].uri)
    assert sorted(results(both)[0], key=repr) != expected  # what such names cost
    found = CliRunner().invoke(cli, ["check", "--store", str(both)])
    assert found.exit_code == 1
    assert "no snapshot lists it, and" in found.stdout
    assert "rows are nowhere else" in found.stdout
    found = CliRunner().invoke(cli, ["check", "--repair", "--store", str(both)])
    assert found.exit_code == 0, found.stdout
    assert "taken back: snapshots/v1/data/" in found.stdout
    assert sorted(results(both)[0], key=repr) == expected
    assert Store.open(both).check().findings == ()


def test_a_compaction_takes_back_what_it_finds(tmp_path):
    stores = [store_of(tmp_path / name, name, cells) for name, cells in (("a", CELLS[:6]), ("b", CELLS[6:12]))]
    expected = sorted(results(stores[0].uri)[0] + results(stores[1].uri)[0], key=repr)
    for store in stores:
        as_numbered(store.uri)
    both = copied(tmp_path, stores[0].uri, stores[1].uri)
    Store.open(both).compact()
    assert sorted(results(both)[0], key=repr) == expected
    assert Store.open(both).check().findings == ()


def test_without_its_manifest_a_data_file_is_told_of_and_taken_back(tmp_path):
    store = store_of(tmp_path / "a", "s", CELLS[:6])
    expected = results(store.uri)
    for path in (tmp_path / "a/snapshots/v1").glob("*.json"):
        path.unlink()
    [finding] = store.check().findings
    assert "rows are nowhere else" in finding.problem
    assert "a merge or compaction is still running or was stopped" in finding.advice
    assert CliRunner().invoke(cli, ["check", "--repair", "--store", store.uri]).exit_code == 0
    assert results(store.uri) == expected


def test_what_a_stopped_compaction_left_is_harmless_and_goes(tmp_path):
    store = store_of(tmp_path / "a", "s", CELLS[:6])
    expected = results(store.uri)
    [data] = (tmp_path / "a/snapshots/v1/data").iterdir()
    left = data.with_name(data.name.replace("000001-", "000002-"))
    shutil.copy(data, left)
    [finding] = store.check().findings
    assert (finding.problem, finding.is_damage) == ("no snapshot lists it", False)
    store.write_part("more", [replace(rows_of(CELLS[0])[0], metric="loss")])
    store.compact()
    store.compact()
    assert not left.exists()
    assert store.check().findings == ()
    assert results(store.uri) == expected


def test_a_manifest_whose_name_is_of_other_content_is_damaged(tmp_path):
    store = store_of(tmp_path / "a", "s", CELLS[:6])
    [path] = (tmp_path / "a/snapshots/v1").glob("*.json")
    other = path.with_name(f"000001-{'0' * 32}.json")
    path.rename(other)
    [finding] = store.check().damage
    assert finding.file == f"snapshots/v1/{other.name}"
    assert SnapshotDocument.model_validate_json(other.read_bytes()).snapshot.follows == []
