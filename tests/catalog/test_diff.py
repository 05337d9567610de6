"""Two sweeps side by side: every change is listed, and nothing else."""

import json
from dataclasses import replace

import pytest
from helpers_flow import run
from helpers_store import make_row, plan_tables, planned_cells
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stitchgrid.catalog import Catalog
from stitchgrid.catalog.difference import SweepAt, compare, find_sweep
from stitchgrid.errors import InputError, QueryError
from stitchgrid.store import Store

CELLS = list(planned_cells())[:8]
QUICK = {
    "phases": (Phase.explicit, Phase.generate),
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
NUMBERS = st.sampled_from([None, 0.0, 0.5, 0.5 + 1e-9, 0.7, 1e6, 1e6 + 0.5, float("nan"), float("inf")])


def make(store, sweep, values, *, planned=None):
    """Plan a sweep of cells and store values: position of the cell -> its first metric. Ids are the sweep's own."""
    tables = plan_tables()
    positions = {CELLS[k].cell_id: k for k in (planned or values)}
    mine = [
        row | {"cell_id": f"{sweep}{positions[row['cell_id']]:031x}"[:32], "metrics": row["metrics"][:1]}
        for row in tables["cells"].to_pylist()
        if row["cell_id"] in positions
    ]
    tables["cells"] = tables["cells"].from_pylist(mine, schema=tables["cells"].schema)
    store.write_plan(sweep, store.write_job(sweep, {"name": sweep}), **tables, info={})
    rows = [
        replace(make_row(CELLS[k], CELLS[k].metrics[0], value), cell_id=f"{sweep}{k:031x}"[:32])
        for k, value in values.items()
    ]
    if rows:
        store.write_part(f"shard-{sweep}", rows)


def is_same(one, other, tolerance):
    if one is None or other is None:
        return one is other
    if one == other or (one != one and other != other):
        return True
    return abs(one - other) <= tolerance * max(1, abs(one), abs(other)) and abs(one) + abs(other) < 1e300


@settings(max_examples=25, **QUICK)
@given(
    a=st.dictionaries(st.integers(0, 7), NUMBERS, min_size=1),
    b=st.dictionaries(st.integers(0, 7), NUMBERS, min_size=1),
    tolerance=st.sampled_from([0.0, 1e-6, 0.1]),
)
def test_every_value_is_changed_new_gone_or_the_same(tmp_path_factory, a, b, tolerance):
    store = Store.open(tmp_path_factory.mktemp("grid"), create=True)
    make(store, "a", a)
    make(store, "b", b)
    with Catalog(store) as catalog:
        found = compare(catalog, "a", catalog, "b", tolerance=tolerance)
        back = compare(catalog, "b", catalog, "a", tolerance=tolerance)
    same = [k for k in a.keys() & b.keys() if is_same(a[k], b[k], tolerance)]
    assert found.num_same == len(same)
    assert found.num_changed == len(a.keys() & b.keys()) - len(same)
    assert (found.num_new, found.num_gone) == (len(b.keys() - a.keys()), len(a.keys() - b.keys()))
    assert found.rows.num_rows == found.num_changed + found.num_new + found.num_gone
    assert (back.num_changed, back.num_new, back.num_gone) == (found.num_changed, found.num_gone, found.num_new)


def test_the_command_lists_changes_and_exits_with_1(tmp_path):
    store = Store.open(tmp_path / "grid", create=True)
    make(store, "a", {0: 0.5, 1: 0.25, 2: 0.5, 3: 0.5})
    make(store, "b", {0: 0.5, 1: 0.75, 4: 0.5}, planned=(0, 1, 2, 4))
    found = run("diff", "a", "b", "--store", store.uri, "--format", "json", code=1)
    rows = json.loads(found.stdout)
    assert [row["change"] for row in rows] == ["changed", "gone", "gone", "new"]
    assert (rows[0]["a"], rows[0]["b"], rows[0]["difference"]) == (0.25, 0.75, 0.5)
    assert sorted((row["change"], row["status_there"] or "") for row in rows) == [
        ("changed", ""),
        ("gone", ""),
        ("gone", "pending"),
        ("new", ""),
    ]
    assert "1 values changed, 1 new, 2 gone, 1 the same (tolerance 1e-06)" in found.stderr
    assert "changed" in run("diff", "a", "b", "--store", store.uri, code=1).stdout


def test_new_and_gone_values_alone_are_no_change(tmp_path):
    store = Store.open(tmp_path / "grid", create=True)
    make(store, "a", {0: 0.5, 1: 0.25})
    make(store, "b", {0: 0.5 + 1e-9, 4: 0.5})
    assert "0 values changed, 1 new, 1 gone, 1 the same" in run("diff", "a", "b", "--store", store.uri).stderr
    run("diff", "a", "b", "--tolerance", "0", "--store", store.uri, code=1)
    assert "0 values changed, 0 new, 0 gone, 2 the same" in run("diff", "a", "a", "--store", store.uri).stderr


def test_sweeps_of_two_stores(tmp_path):
    for name, value in (("one", 0.5), ("two", 0.75)):
        make(Store.open(tmp_path / name, create=True), "s", {0: value, 1: 0.5})
    out = tmp_path / "out.csv"
    run("diff", f"{tmp_path}/one:s", "s", "--store", tmp_path / "two", "--format", "csv", "--out", out, code=1)
    assert out.read_text().splitlines()[0].startswith("change,source_model,")
    assert len(out.read_text().splitlines()) == 2


def test_one_cell_measured_with_other_numbers_of_images_is_two_values(tmp_path):
    store = Store.open(tmp_path / "grid", create=True)
    tables = plan_tables()
    first = [row for row in tables["cells"].to_pylist() if row["cell_id"] == CELLS[0].cell_id]
    rows = [
        first[0] | {"cell_id": "1" * 32, "metrics": ["loss"]},
        first[0] | {"cell_id": "2" * 32, "metrics": ["loss"]},
    ]
    tables["cells"] = tables["cells"].from_pylist(rows, schema=tables["cells"].schema)
    store.write_plan("s", store.write_job("s", {}), **tables, info={})
    values = [(100, 0.25, "1" * 32), (200, 0.5, "2" * 32)]
    store.write_part("p", [replace(make_row(CELLS[0], "loss", v), num_fit=n, cell_id=i) for n, v, i in values])
    with Catalog(store) as catalog:
        found = compare(catalog, "s", catalog, "s")
    assert (found.num_same, found.rows.num_rows) == (2, 0)


@pytest.mark.parametrize(
    ("text", "store", "sweep"),
    [
        ("s", "grid", "s"),
        ("/a/b:s", "/a/b", "s"),
        ("s3://bucket/grid:s", "s3://bucket/grid", "s"),
        ("s3://b/g?endpoint_override=http://127.0.0.1:9000:s", "s3://b/g?endpoint_override=http://127.0.0.1:9000", "s"),
    ],
)
def test_a_sweep_is_named_with_or_without_its_store(text, store, sweep):
    assert find_sweep(text, "grid") == SweepAt(store=store, sweep=sweep)


@pytest.mark.parametrize("text", ["", ":s", "grid:", "a/b", "s3://bucket/grid"])
def test_what_names_no_sweep_is_told(text):
    with pytest.raises(InputError, match=r"wanted SWEEP or STORE:SWEEP, got '.*'; name a sweep as 'stitchgrid status'"):
        find_sweep(text, "grid")


def test_an_unknown_sweep_or_store_is_told(tmp_path):
    store = Store.open(tmp_path / "grid", create=True)
    make(store, "a", {0: 0.5})
    with Catalog(store) as catalog, pytest.raises(QueryError, match="no planned sweep 'b' in the store; known: a"):
        compare(catalog, "a", catalog, "b")
    assert "known: a" in run("diff", "b", "a", "--store", store.uri, code=2).stderr
    assert "no store at" in run("diff", f"{tmp_path}/none:a", "a", "--store", store.uri, code=1).stderr
