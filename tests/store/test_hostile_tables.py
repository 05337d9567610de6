"""Parquet files whose digests are right and whose content is not: left out and named by readers and check alike."""

import hashlib
import json
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_flow import in_a_process
from helpers_store import SWEEP, make_row, make_synthetic_store, planned_cells, sweeps_like_it

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.store import Store
from stitchgrid.store.layout import DataName, PartName, content_digest
from stitchgrid.store.parts import parquet_bytes, part_table
from stitchgrid.store.schemas import PART

CELLS = list(planned_cells())[:3]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_synthetic_store(tmp_path_factory.mktemp("made") / "grid").store


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    shutil.copytree(made.uri, tmp_path / "grid")
    return Store.open(tmp_path / "grid")


def run(store, *arguments, codes=(0,)):
    result = CliRunner().invoke(cli, [*arguments, "--store", store.uri])
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert result.exit_code in codes, (arguments, result.output)
    return result


def values(store):
    with Catalog(Store.open(store.uri)) as catalog:
        rows = catalog.query("select cell_id, metric, value from results").to_pylist()
    return {(row["cell_id"], row["metric"]): row["value"] for row in rows}


def put(store, data, num_rows):
    name = str(PartName(shard="s", digest=content_digest(data), num_rows=num_rows))
    store.files.replace(f"parts/v1/{name}", data)
    return f"parts/v1/{name}"


def sound_part():
    return part_table([make_row(cell, "accuracy", 0.5) for cell in CELLS])


def with_column(name, column, kind=None):
    table = sound_part()
    field = pa.field(name, kind) if kind else table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field.with_nullable(True), pa.array(column, field.type))


def bad_text():
    raw = pa.array([b"\xff\xfe", b"ok", b"\xc3\x28"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, raw.buffers())


def with_bad_text(name):
    table = sound_part()
    return table.set_column(table.schema.get_field_index(name), name, bad_text())


def twice(name):
    table = sound_part()
    return table.append_column(table.schema.field(name), table[name])


def packed(text, num_rows):
    """Return rows that all repeat one long text as their id; in a file they are small, and have no dictionary type."""
    table = pa.concat_tables([sound_part().slice(0, 1)] * num_rows).combine_chunks()
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows), pa.int32()), pa.array([text]))
    return table.set_column(0, pa.field("cell_id", ids.type, nullable=False), ids)


NO_LIST = pa.array([None, ["a"], []], pa.list_(pa.string()))
WRONG = {
    **{f"NULL in {name}": with_column(name, [None, "a", "b"]) for name in ("cell_id", "status", "shard", "created_at")},
    "NULL in params": with_column("params", ["{}", None, None]),
    "NULL in flags": with_column("flags", NO_LIST),
    "NULL in a list of flags": with_column("flags", [[None], ["a"], []]),
    **{f"no text in {name}": with_bad_text(name) for name in ("cell_id", "metric", "error", "matcher", "created_at")},
    "a value of no metric": with_column("metric", [None, "accuracy", "accuracy"]),
    "cell_id twice": twice("cell_id"),
    "value twice": twice("value"),
    "numbers for texts": with_column("metric", [1, 2, 3], pa.int64()),
    "texts for numbers": with_column("value", ["1", "2", "3"], pa.string()),
    "numbers of another size": with_column("value", [1, 2, 3], pa.float32()),
    "bytes for texts": with_column("error", [b"1", b"2", b"3"], pa.binary()),
    "long texts for texts": with_column("cell_id", ["a", "b", "c"], pa.large_string()),
    "a list of numbers": with_column("flags", [[1], [2], []], pa.list_(pa.int64())),
    "a list of lists": with_column("flags", [[["a"]], [], []], pa.list_(pa.list_(pa.string()))),
    "a struct for a text": with_column("shard", [{"a": 1}] * 3, pa.struct([("a", pa.int64())])),
    "a date for a text": with_column("created_at", [1, 2, 3], pa.timestamp("us")),
    "no cell_id": sound_part().drop_columns(["cell_id"]),
    "no columns": pa.table({"x": [1, 2, 3]}),
    "a text of 70 MB": with_column("error", ["x" * 70 * 2**20, None, None]),
}


def test_parts_with_wrong_content_are_damaged_for_everybody(store):
    before = values(store)
    names = {what: put(store, parquet_bytes(table), 3) for what, table in WRONG.items()}
    assert len(set(names.values())) == len(WRONG)
    found = {one.file: one.problem for one in store.check().damage}
    assert [what for what, name in names.items() if not found.pop(name, None)] == []
    assert found == {}
    for command in (["status"], ["sql", "from measurements"], ["compact"]):
        run(store, *command)
    assert {one.file for one in store.read_parts().damaged} == set(names.values())
    assert values(store) == before
    said = run(store, "check", "--repair").output
    assert [what for what, name in names.items() if f"set aside as set-aside/{name}" not in said] == []
    assert values(store) == before
    assert store.check().damage == ()
    assert run(store, "compact").exit_code == 0
    assert values(store) == before


def test_what_readers_refuse_they_name(store):
    name = put(store, parquet_bytes(WRONG["NULL in cell_id"]), 3)
    for command in (["status"], ["query", "progress"], ["sql", "from measurements"], ["compact"]):
        assert f"{name}: has no cell_id in 1 rows" in run(store, *command).stderr


# Footers --------------------------------------------------------------------------------------------------------------


def with_histograms(data):
    """Return a file whose footer has histograms of three levels for columns of one level or two."""
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    number = rb"[\x80-\xff]*[\x00-\x7f]"
    none, lists = rb"\x19\x06", rb"\x19(?:\x06|\x26" + number * 2 + rb")"  # of 64-bit integers
    changed = re.sub(none + lists + rb"\0", b"\x19\x06\x19\x36\x02\x04\x06\0", footer)
    assert changed != footer
    return data[: -8 - size] + changed + len(changed).to_bytes(4, "little") + data[-4:]


READERS = (
    ["status"],
    ["sql", "from measurements"],
    ["sql", "select metric, value from results where metric = 'accuracy' and value > 0.1"],
    ["sql", "select count(*) from cells where status = 'done'"],
    ["compact"],
)


def test_a_footer_with_histograms_of_a_wrong_length_is_damage(store):
    name = put(store, with_histograms(parquet_bytes(sound_part())), 3)
    *reads, checked, repaired = in_a_process(store.uri, [*READERS, ["check"], ["check", "--repair"]])
    assert [code for code, *_ in reads] == [0] * len(READERS)
    assert f"{name}: not readable as Parquet" in "".join(said for _, said, _ in reads)
    assert (checked[0], repaired[0]) == (1, 0)
    assert f"DAMAGED  {name}" in checked[1]
    assert f"set aside as set-aside/{name}" in repaired[1]


@pytest.mark.parametrize("folder", ["data", "extracts"])
def test_a_file_of_a_snapshot_with_histograms_of_a_wrong_length_is_damage(store, folder):
    store.compact()
    tier = json.loads(manifest(store).read_text())["snapshot"]["tiers"][0]
    old = tier["file"] if folder == "data" else tier["results"][SWEEP]["file"]
    data = with_histograms(parquet_bytes(pq.read_table(Path(store.uri) / old)))
    num_rows = pq.read_metadata(Path(store.uri) / old).num_rows
    name = f"snapshots/v1/{folder}/{DataName(number=1, digest=content_digest(data), num_rows=num_rows)}"
    store.files.replace(name, data)

    def change(body):
        (body["tiers"][0] if folder == "data" else body["tiers"][0]["results"][SWEEP])["file"] = name

    rewrite(store, change)
    checked, *others = in_a_process(store.uri, [["check"], *READERS, ["check", "--repair"]])
    assert checked[0] == 1
    assert f"DAMAGED  {name}" in checked[1]
    assert [code for code, *_ in others] == [0] * len(others)
    assert name in "".join(said for _, said, _ in others[:-1])
    assert store.check().damage == ()


# Limits ---------------------------------------------------------------------------------------------------------------


def huge_text():
    size = 600 * 2**20
    ends = pa.py_buffer(np.array([0, size, size, size], np.int32))
    bits = pa.py_buffer(b"\x01")  # the first is there, the others are NULL
    text = pa.StringArray.from_buffers(3, ends, pa.py_buffer(np.full(size, ord("x"), np.uint8)), bits)
    table = sound_part()
    table = table.set_column(table.schema.get_field_index("error"), table.schema.field("error"), text)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


def many_rows(num_rows=17_000_000):
    """Return a file of so many rows, every column of which is one value over and over."""
    sink = pa.BufferOutputStream()
    zeros = pa.array(np.zeros(num_rows // 8, np.int8))
    row = sound_part().slice(0, 1).to_pylist()[0]
    columns = []
    for field in PART:
        if field.type == pa.list_(pa.string()):
            columns.append(pa.array([[]]).cast(field.type).take(zeros))
        elif row[field.name] is None:
            columns.append(pa.nulls(len(zeros), field.type))
        else:
            columns.append(pa.DictionaryArray.from_arrays(zeros, pa.array([row[field.name]], field.type)))
    table = pa.table(columns, names=PART.names)
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for _ in range(8):
            writer.write_table(table)
    return bytes(sink.getvalue())


def test_a_small_file_that_holds_a_huge_text_is_not_decoded(store):
    data = huge_text()
    assert len(data) < 200_000
    name = put(store, data, 3)
    measured_run(store, name, "would take")


def test_a_small_file_of_very_many_rows_is_not_decoded(store):
    data = many_rows()
    assert len(data) < 20_000_000
    name = put(store, data, 17_000_000)
    measured_run(store, name, "promises 17000000 rows")


def test_a_long_text_repeated_very_often_is_not_written_out(store):
    table = packed("x" * 100_000, 20_000)
    data = parquet_bytes_with_dictionaries(table)
    assert len(data) < 500_000
    measured_run(store, put(store, data, 20_000), "bytes of text in cell_id|a text of 100000 bytes in cell_id")


def test_long_lists_of_a_repeated_text_are_not_written_out(store):
    flags = pa.array([["y" * 100_000] * 2_000], pa.list_(pa.string()))
    table = sound_part().slice(0, 1)
    table = table.set_column(table.schema.get_field_index("flags"), table.schema.field("flags"), flags)
    measured_run(store, put(store, parquet_bytes_with_dictionaries(table), 1), "in flags|would take")


def parquet_bytes_with_dictionaries(table):
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=True, dictionary_pagesize_limit=2**26, store_schema=False
    )
    return bytes(sink.getvalue())


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))"


def measured_run(store, name, reason):
    """Run commands in a process of little memory: a refusal with words, soon."""
    commands = ["sql", "from measurements"], ["check"]
    for (code, said, seconds), wanted in zip(in_a_process(store.uri, commands, first=LIMITED), (0, 1), strict=True):
        assert code == wanted, said[-2000:]
        assert name in said
        assert any(word in said for word in reason.split("|")), said
        assert seconds < 30


# Snapshots ------------------------------------------------------------------------------------------------------------


def manifest(store):
    return max((Path(store.uri) / "snapshots/v1").glob("*.json"))


def rewrite(store, change):
    """Change the body of a snapshot and sign it anew."""
    found = json.loads(manifest(store).read_text())
    change(found["snapshot"])
    found["digest"] = content_digest(json.dumps(found["snapshot"], sort_keys=True).encode())
    manifest(store).unlink()
    (Path(store.uri) / f"snapshots/v1/000001-{found['digest']}.json").write_text(json.dumps(found))


def data_file(store, folder, table):
    data = parquet_bytes(table)
    name = f"snapshots/v1/{folder}/{DataName(number=1, digest=content_digest(data), num_rows=table.num_rows)}"
    store.files.replace(name, data)
    return name


def set_tier(key, value):
    return lambda body: body["tiers"][0].__setitem__(key, value)


CHANGES = {
    "results that are store.json": lambda body: body["tiers"][0]["results"][SWEEP].__setitem__("file", "store.json"),
    "cells that are plan.json": lambda b: b["cells"][SWEEP].__setitem__("file", f"sweeps/{SWEEP}/0001/plan.json"),
    "a tier that is store.json": set_tier("file", "store.json"),
    "a tier that is an extract": lambda body: set_tier("file", body["tiers"][0]["ids"])(body),
    "ids elsewhere": set_tier("ids", "/etc/passwd"),
    "ids above": set_tier("ids", "../../../etc/passwd"),
    "no ids": set_tier("ids", None),
    "a sweep that climbs": lambda body: body["cells"].__setitem__("../../x", body["cells"][SWEEP]),
    "results of a sweep that climbs": lambda b: b["tiers"][0]["results"].__setitem__("../../x", b["cells"][SWEEP]),
    "a sweep without a name": lambda body: body["cells"].__setitem__("", body["cells"][SWEEP]),
    "replaced names that climb": lambda body: body.__setitem__("replaces", ["../../../x"]),
    "replaced names that are numbers": lambda body: body.__setitem__("replaces", [1, None]),
    "rows below none": set_tier("num_rows", -1),
    "rows that are a text": set_tier("num_rows", "many"),
    "tiers that are a number": lambda body: body.__setitem__("tiers", 7),
    "a tier that is null": lambda body: body.__setitem__("tiers", [None]),
    "no cells": lambda body: body.pop("cells"),
    "a revision that is none": lambda body: body["cells"][SWEEP].__setitem__("revision", "1"),
    "a key of nobody": set_tier("more", 1),
}


@pytest.fixture(scope="module")
def before(made):
    """Return the values of the synthetic store."""
    return values(made)


@pytest.fixture(scope="module")
def merged(made, tmp_path_factory):
    """Return the synthetic store, compacted, to copy."""
    folder = shutil.copytree(made.uri, tmp_path_factory.mktemp("merged") / "grid")
    Store.open(folder).compact()
    return folder


@pytest.fixture
def compacted(merged, tmp_path):
    return Store.open(shutil.copytree(merged, tmp_path / "compacted"))


@pytest.mark.parametrize("what", CHANGES)
def test_a_snapshot_names_only_files_of_snapshots(compacted, before, what):
    store = compacted
    files = {path for path in Path(store.uri).rglob("*") if path.is_file() and "snapshots" not in str(path)}
    rewrite(store, CHANGES[what])
    assert "snapshots/v1/000001-" in run(store, "check", codes=[1]).output
    assert values(store) == before  # of the data files that are there
    run(store, "status")
    run(store, "check", "--repair")
    assert all(path.exists() for path in files)
    assert values(store) == before
    assert store.check().damage == ()
    run(store, "compact")
    assert values(store) == before


def test_a_tier_without_the_results_of_a_sweep_is_compacted(store):
    before = values(store)
    store.compact()
    rewrite(store, lambda body: body["tiers"][0]["results"].clear())
    assert values(store) == before
    store.write_part("s", [make_row(CELLS[0], "accuracy", before[CELLS[0].cell_id, "accuracy"])])
    (Path(store.uri) / f"sweeps/{SWEEP}/0001/cells.parquet").write_bytes(b"damaged")  # so nobody makes them anew
    run(store, "compact")
    assert json.loads(manifest(store).read_text())["snapshot"]["cells"] == {}


@pytest.mark.parametrize("key", ["ids", "results", "cells"])
@pytest.mark.parametrize("table", [pa.table({"x": [1]}), pa.table({"cell_id": pa.array([1])}), sound_part()], ids=str)
def test_an_extract_of_another_schema_is_damaged(compacted, before, key, table):
    store = compacted
    name = data_file(store, "extracts", table)

    def change(body):
        if key == "ids":
            body["tiers"][0]["ids"] = name
        else:
            (body["cells"] if key == "cells" else body["tiers"][0]["results"])[SWEEP]["file"] = name

    rewrite(store, change)
    if key == "ids" and "status" in table.column_names:
        return  # it has ids; more columns do not matter
    assert name in [one.file for one in store.check().damage]
    assert values(store) == before
    assert "216" in run(store, "status").output
    run(store, "check", "--repair")
    assert values(store) == before
    assert store.check().damage == ()


IN_A_TIER = (
    *("NULL in cell_id", "NULL in params", "NULL in a list of flags", "no text in metric", "no text in cell_id"),
    *("cell_id twice", "numbers for texts", "a list of lists", "no cell_id", "no columns", "a text of 70 MB"),
)


@pytest.mark.parametrize("what", IN_A_TIER)
def test_a_tier_with_wrong_content_costs_its_own_rows(compacted, what):
    store = compacted
    name = data_file(store, "data", WRONG[what])
    rewrite(store, lambda body: body["tiers"][0].update(file=name, num_rows=3))
    for command in (["status"], ["sql", "select * from measurements"], ["sql", "select metric from results"]):
        run(store, *command)
    assert name in [one.file for one in store.check().damage]
    store.write_part("s", [make_row(cell, "accuracy", 0.25) for cell in CELLS])  # of cells that the tier has
    run(store, "sql", "select * from measurements")
    run(store, "compact")
    run(store, "check", "--repair")
    assert store.check().damage == ()
    run(store, "sql", "select * from measurements")


@pytest.mark.parametrize("column", ["source_model", "metric", "device", "cell_id"])
def test_a_query_that_meets_what_is_no_text_leaves_the_file_out(compacted, column):
    store = compacted
    extract = json.loads(manifest(store).read_text())["snapshot"]["tiers"][0]["results"][SWEEP]["file"]
    table = pq.read_table(Path(store.uri) / extract).slice(0, 3)
    table = table.set_column(table.schema.get_field_index(column), column, bad_text())
    name = data_file(store, "extracts", table)
    rewrite(store, lambda body: body["tiers"][0]["results"][SWEEP].__setitem__("file", name))
    result = run(store, "sql", "select * from results", "--format", "json")
    assert name in result.stderr
    assert len(json.loads(result.stdout)) > 300  # from the rows themselves


# Plans ----------------------------------------------------------------------------------------------------------------


def spoil_plan(store, sweep, name, what):
    """Give a table of a sweep's plan wrong content, under the right digest."""
    folder = Path(store.uri) / f"sweeps/{sweep}/0001"
    table = pq.read_table(folder / f"{name}.parquet")
    first = table.column_names[0]
    num = table.num_rows
    raw = pa.array([b"\xff"] * num, pa.binary())
    column = {
        "null": pa.nulls(num, pa.string()),
        "no text": pa.Array.from_buffers(pa.string(), num, raw.buffers()),
        "type": pa.array(range(num)),
    }.get(what)
    if what == "twice":
        table = table.append_column(first, table[first])
    elif what == "lacking":
        table = table.drop_columns([first])
    else:
        table = table.set_column(0, first, column)
    data = parquet_bytes(table)
    (folder / f"{name}.parquet").write_bytes(data)
    plan = json.loads((folder / "plan.json").read_text())
    del plan["digest"]
    plan["sha256"][f"{name}.parquet"] = hashlib.sha256(data).hexdigest()
    (folder / "plan.json").write_text(json.dumps(plan))


def test_a_table_of_a_plan_with_wrong_content_is_damaged(store):
    wrong = list(product(("cells", "models", "layers"), ("null", "no text", "twice", "type", "lacking")))
    sweeps = sweeps_like_it(store.uri, len(wrong))
    for sweep, (name, what) in zip(sweeps, wrong, strict=True):
        spoil_plan(store, sweep, name, what)
    damaged = {one.file for one in store.check().damage}
    files = {f"sweeps/{sweep}/0001/{name}.parquet": what for sweep, (name, what) in zip(sweeps, wrong, strict=True)}
    assert {file: what for file, what in files.items() if file not in damaged} == {}
    for command in (["status"], ["query", "progress"], ["atlas", "--out", f"{store.uri}/../a.html"]):
        run(store, *command, codes=(0, 1))
    run(store, "check", "--repair")
    assert store.check().damage == ()
