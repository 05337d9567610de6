"""The views as files for other tools: what a query would say, complete or not there."""

import duckdb
import pyarrow.parquet as pq
import pytest
from helpers_flow import run
from helpers_store import SWEEP, make_synthetic_store, planned_cells
from test_unlisted import store_of

from stitchgrid.catalog import VIEWS, Catalog, export
from stitchgrid.errors import InputError, QueryError
from stitchgrid.store import Store

CELLS = list(planned_cells())


@pytest.fixture(params=["loose", "compacted"])
def store(request, tmp_path):
    store = make_synthetic_store(tmp_path / "grid").store
    store_of(tmp_path / "grid", "other", CELLS[:3], compacted=False)
    if request.param == "compacted":
        store.compact()
    return store


def shown(store, conditions):
    """Return the rows of views, given with a condition each."""
    with Catalog(Store.open(store.uri)) as catalog:
        return {
            view: sorted(map(repr, catalog.query(f"select * from {view} where {condition}").to_pylist()))
            for view, condition in conditions.items()
        }


def of_duckdb(path, views):
    with duckdb.connect(str(path), read_only=True) as connection:
        return {
            view: sorted(map(repr, connection.sql(f"select * from {view}").to_arrow_table().to_pylist()))
            for view in views
        }


def test_a_duckdb_file_has_every_view(store, tmp_path):
    path = tmp_path / "out/results.duckdb"
    found = run("export", "--duckdb", path, "--store", store.uri)
    assert of_duckdb(path, VIEWS) == shown(store, dict.fromkeys(VIEWS, "true"))
    assert [view for view in VIEWS if f" {view}" not in found.stdout] == []
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.sql("select store, sweeps from export").fetchall() == [(store.uri, f"other, {SWEEP}")]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_parquet_has_every_view(store, tmp_path):
    folder = tmp_path / "out"
    wanted = shown(store, dict.fromkeys(VIEWS, "true"))
    for _ in range(2):  # the second replaces the first
        run("export", "--parquet", folder, "--store", store.uri)
        assert {path.name for path in folder.iterdir()} == {f"{view}.parquet" for view in VIEWS}
        for view in VIEWS:
            rows = sorted(map(repr, pq.read_table(folder / f"{view}.parquet").to_pylist()))
            assert rows == wanted[view]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_only_the_sweeps_that_are_named(store, tmp_path):
    path = tmp_path / "one.duckdb"
    run("export", "--duckdb", path, "other", "--store", store.uri)
    ids = "cell_id in (select cell_id from cells where sweep = 'other')"
    conditions = {view: "sweep = 'other'" for view in VIEWS if view not in export.WITHOUT_SWEEP}
    conditions |= {"measurements": ids, "matchers": "true"}
    assert of_duckdb(path, conditions) == shown(store, conditions)


def test_an_empty_store_is_exported_too(tmp_path):
    Store.open(tmp_path / "grid", create=True)
    run("export", "--duckdb", tmp_path / "x.duckdb", "--store", tmp_path / "grid")
    assert of_duckdb(tmp_path / "x.duckdb", ["results"]) == {"results": []}


def test_what_stops_amid_leaves_what_was_there(store, tmp_path, monkeypatch):
    path, folder = tmp_path / "x.duckdb", tmp_path / "out"
    with Catalog(store) as catalog:
        export.export_duckdb(catalog, path, ["other"])
        export.export_parquet(catalog, folder, ["other"])
        before = path.read_bytes(), {one.name: one.read_bytes() for one in folder.iterdir()}

        def stop(_, statements, take):
            raise KeyboardInterrupt

        monkeypatch.setattr(Catalog, "export", stop)
        with pytest.raises(KeyboardInterrupt):
            export.export_duckdb(catalog, path)
        with pytest.raises(KeyboardInterrupt):
            export.export_parquet(catalog, folder)
    assert (path.read_bytes(), {one.name: one.read_bytes() for one in folder.iterdir()}) == before
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_a_damaged_file_is_left_out_and_named(tmp_path):
    store = store_of(tmp_path / "grid", "s", CELLS[:4])
    [path] = (tmp_path / "grid/snapshots/v1/data").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    found = run("export", "--duckdb", tmp_path / "x.duckdb", "--store", store.uri)
    assert f"left out: snapshots/v1/data/{path.name}" in found.stderr
    assert of_duckdb(tmp_path / "x.duckdb", ["measurements"]) == {"measurements": []}


def test_what_is_no_export_is_not_replaced(store, tmp_path):
    mine, folder = tmp_path / "mine.duckdb", tmp_path / "mine"
    with duckdb.connect(str(mine)) as connection:
        connection.execute("create table precious as select 1 as x")
    folder.mkdir()
    (folder / "results.parquet").write_text("old")
    (folder / "notes.txt").write_text("mine")
    with Catalog(store) as catalog:
        with pytest.raises(InputError, match=r"exists and is not an export of stitchgrid; name another"):
            export.export_duckdb(catalog, mine)
        with pytest.raises(InputError, match=r"wanted a new or empty folder, .* has 'notes.txt' in it; name another"):
            export.export_parquet(catalog, folder)
        with pytest.raises(InputError, match=r"wanted a folder, .* is a file; name another one"):
            export.export_parquet(catalog, mine)
    (tmp_path / "text").write_text("text")
    assert "is not an export" in run("export", "--duckdb", tmp_path / "text", "--store", store.uri, code=2).stderr
    assert (folder / "notes.txt").read_text() == "mine"
    with duckdb.connect(str(mine)) as connection:
        assert connection.sql("select x from precious").fetchall() == [(1,)]


def test_a_place_that_cannot_be_written_is_told(store, tmp_path):
    (tmp_path / "file").write_text("x")
    for option in ("--duckdb", "--parquet"):
        found = run("export", option, tmp_path / "file/x", "--store", store.uri, code=2)
        assert found.stderr.startswith(f"Error: cannot write {tmp_path}/file/x: ")
        assert "; name another place" in found.stderr


def test_bad_input_is_told(store, tmp_path):
    said = "give either --duckdb FILE or --parquet DIR"
    assert said in run("export", "--store", store.uri, code=2).stderr
    both = ("--duckdb", tmp_path / "x", "--parquet", tmp_path / "y")
    assert said in run("export", *both, "--store", store.uri, code=2).stderr
    with Catalog(store) as catalog, pytest.raises(QueryError, match=r"no planned sweep 'othr'.*did you mean 'other'"):
        export.export_duckdb(catalog, tmp_path / "x", ["othr"])
    assert not (tmp_path / "x").exists()
