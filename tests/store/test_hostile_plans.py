"""Tables of a plan, parts and extracts whose digests are right and whose content no reader bears."""

import hashlib
import json
import math
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_store import SWEEP, make_synthetic_store, sweeps_like_it

from stitchgrid.cli import cli
from stitchgrid.store import Store
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import Document, EvaluationDocument, json_object
from stitchgrid.store.layout import DataName, PartName, content_digest
from stitchgrid.store.parts import parquet_bytes
from stitchgrid.store.plan_checks import check_plan, check_values

PLAN = f"sweeps/{SWEEP}/0001"
READERS = (
    ["status"],
    ["sql", "select * from pairs limit 5"],
    ["sql", "select * from models"],
    ["answer"],
    ["atlas", "--out", "out.html"],
    ["report", "--out", "out.html"],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_synthetic_store(tmp_path_factory.mktemp("made") / "grid").store


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.uri, tmp_path / "grid")
    return Store.open(tmp_path / "grid")


def run(store, *arguments):
    result = CliRunner().invoke(cli, [*arguments, "--store", store.uri])
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert result.exit_code in (0, 1, 2), (arguments, result.output)
    return result


def with_values(table, column, change):
    values = [change(number, value) for number, value in enumerate(table[column].to_pylist())]
    index = table.column_names.index(column)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def set_plan(store, name, column, change, *, plan=PLAN):
    folder = Path(store.uri) / plan
    table = with_values(pq.read_table(folder / f"{name}.parquet"), column, change)
    data = parquet_bytes(table)
    store.files.replace(f"{plan}/{name}.parquet", data)
    manifest = json.loads((folder / "plan.json").read_text())
    manifest.pop("digest", None)
    manifest["sha256"][f"{name}.parquet"] = hashlib.sha256(data).hexdigest()
    manifest["num_rows"][name] = table.num_rows
    store.files.replace(f"{plan}/plan.json", json.dumps(manifest).encode())


def set_parts(store, column, change, *, of=slice(None)):
    for name in sorted(store.files.names("parts/v1"))[of]:
        data = parquet_bytes(with_values(pq.read_table(f"{store.uri}/parts/v1/{name}"), column, change))
        old = PartName.parse(name)
        new = PartName(shard=old.shard, digest=content_digest(data), num_rows=old.num_rows)
        store.files.delete(f"parts/v1/{name}")
        store.files.replace(f"parts/v1/{new}", data)


def always(value):
    return lambda number, _: value


PARAMS = {
    "empty": "",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "no JSON": "{",
    "deep": '{"a":' + "[" * 2000 + "]" * 2000 + "}",
    "deeper than any": '{"a":[[[[1]]]]}',
    "of very many digits": '{"a":' + "9" * 5000 + "}",
    "of a large number": '{"a":1e999}',
    "of a large whole number": '{"a":9223372036854775808}',
    "no number": '{"a":NaN}',
    "long": '{"a":"' + "x" * 20_000 + '"}',
    "half a character": '{"a":"\\ud800"}',
    "a rank that is none": '{"rank":"x"}',
}
WRONG = {
    **{f"params: {what}": ("cells", "cells", "params", always(text)) for what, text in PARAMS.items()},
    "an index out of range": ("cells", "cells", "source_index", lambda number, _: 2**31 - 1 - number),
    "an index below zero": ("cells", "cells", "target_index", always(-1)),
    "an index of another layer": ("cells", "cells", "source_index", lambda _, index: (index + 1) % 3),
    "a network that is not there": ("cells", "cells", "source_model", always("net/9")),
    "a layer that is not there": ("cells", "cells", "target_layer", always("conv9")),
    "a depth that is no number": ("cells", "cells", "target_depth", always(math.nan)),
    "no depth": ("cells", "cells", "source_depth", always(None)),
    "a layer's depth that is no number": ("layers", "layers", "depth", always(math.nan)),
    "a layer's infinite depth": ("layers", "layers", "depth", always(math.inf)),
    "no shape": ("layers", "layers", "shape", always(None)),
    "a shape of NULL": ("layers", "layers", "shape", always([8, None])),
    "a shape below zero": ("layers", "layers", "shape", always([-(2**63), 2**63 - 1])),
    "a shape of very many sides": ("layers", "layers", "shape", always([1] * 10_000)),
    "layers of one number": ("layers", "layers", "layer_index", always(1)),
    "layers counted from one": ("layers", "layers", "layer_index", lambda _, index: index + 1),
    "layers of one name": ("layers", "layers", "layer", always("conv1")),
    "layers of an unknown network": ("layers", "layers", "model", lambda number, name: name if number else "net/9"),
    "networks of one name": ("models", "models", "model", always("net/0")),
    "an accuracy beyond 1": ("models", "models", "accuracy", always(1e308)),
    "images below zero": ("models", "models", "num_eval", always(-(2**63))),
}


def test_a_plan_that_no_reader_bears_is_damage_for_everybody(store):
    plans = {
        what: f"sweeps/{name}/0001" for what, name in zip(WRONG, sweeps_like_it(store.uri, len(WRONG)), strict=True)
    }
    for what, (_, name, column, change) in WRONG.items():
        set_plan(store, name, column, change, plan=plans[what])
    for arguments in READERS:
        run(store, *arguments)
    found = run(store, "check")
    assert found.exit_code == 1
    files = {what: f"{plans[what]}/{file}.parquet" for what, (file, *_) in WRONG.items()}
    assert [what for what, file in files.items() if f"DAMAGED  {file}\n" not in found.output] == []
    said = run(store, "sql", "select * from cells").output
    assert "damaged" in said
    assert [what for what in WRONG if plans[what] not in said] == []
    assert run(store, "check", "--repair").exit_code == 0
    assert run(store, "check").exit_code == 0


@pytest.mark.parametrize(
    ("name", "column"), [("models", "model"), ("layers", "layer"), ("cells", "matcher"), ("cells", "metrics")]
)
def test_a_name_that_no_reader_could_draw_is_damage(store, name, column):
    set_plan(store, name, column, always(["x" * 1_100] if column == "metrics" else "x" * 1_100))
    found = run(store, "check")
    assert found.exit_code == 1
    assert f"has a text of 1100 bytes in {column}; none has more than 1024" in " ".join(found.output.split())


def test_what_is_no_number_of_a_network_is_undefined(store):
    """A network that overflows has such a loss."""
    values = {"accuracy": math.nan, "loss": math.inf, "flops": -math.inf, "chance": math.nan}
    for column, value in values.items():
        set_plan(store, "models", column, always(value))
    for arguments in READERS:
        assert run(store, *arguments).exit_code == 0
    assert run(store, "check").exit_code == 0
    asked = ", ".join(f"{column} is null as {column}" for column in values)
    rows = json.loads(run(store, "sql", "--format", "json", f"select {asked} from models").output)
    assert rows == [dict.fromkeys(values, True)] * 2


ODD = [math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324]


@pytest.mark.parametrize("compacted", [False, True])
def test_values_of_any_size_are_borne(store, compacted):
    set_parts(store, "value", lambda number, _: ODD[number % len(ODD)])
    if compacted:
        store.compact()
    for arguments in READERS:
        assert run(store, *arguments).exit_code == 0
    assert run(store, "check").exit_code == 0


COUNTS = ["num_eval", "num_fit", "num_rows"]


def test_a_number_of_images_may_be_unknown(store):
    for place, column in enumerate(COUNTS):
        set_parts(store, column, lambda number, value, place=place: None if number >> place & 1 else value)
    for arguments in READERS:
        assert run(store, *arguments).exit_code == 0


def test_a_number_of_images_below_zero_is_damage(store):
    for number, column in enumerate(COUNTS):  # each in a part of its own
        set_parts(store, column, always(-1), of=slice(number, number + 1))
    for arguments in READERS:
        run(store, *arguments)
    found = run(store, "check")
    assert found.exit_code == 1
    assert [column for column in COUNTS if f"has a {column} of -1 to -1" not in found.output] == []


def set_extracts(store, column, change):
    """Give the extracts of a snapshot other content under names that fit it."""
    folder = "snapshots/v1/extracts"
    renamed = {}
    for name in store.files.names(folder):
        table = pq.read_table(f"{store.uri}/{folder}/{name}")
        if column in table.column_names:
            data = parquet_bytes(with_values(table, column, change))
            old = DataName.parse(name)
            new = str(DataName(number=old.number, digest=content_digest(data), num_rows=old.num_rows))
            store.files.delete(f"{folder}/{name}")
            store.files.replace(f"{folder}/{new}", data)
            renamed[name] = new
    [manifest] = store.files.names("snapshots/v1")
    text = store.files.read(f"snapshots/v1/{manifest}").decode()
    for old, new in renamed.items():
        text = text.replace(old, new)
    found = json.loads(text)
    digest = content_digest(json.dumps(found["snapshot"], sort_keys=True).encode())
    store.files.delete(f"snapshots/v1/{manifest}")
    text = json.dumps(found | {"digest": digest})
    store.files.replace(f"snapshots/v1/{manifest.partition('-')[0]}-{digest}.json", text.encode())


BELOW, LIST = always(-1), always("[]")


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("params", LIST),
        ("params", always(PARAMS["deep"])),
        ("params", always(PARAMS["of very many digits"])),
        ("source_index", always(2**31 - 1)),
        ("source_index", BELOW),
        ("target_layer", always("conv9")),
        ("source_model", always("net/9")),
        ("source_depth", always(math.nan)),
    ],
)
def test_an_extract_that_no_reader_bears_is_left_out(store, column, change):
    """What it held of the sweep is joined anew."""
    before = run(store, "sql", "--format", "json", "select cell_id, status from cells order by all").output
    store.compact()
    set_extracts(store, column, change)
    is_first = column not in ("source_index", "params") or change in (BELOW, LIST)
    for arguments in READERS if is_first else READERS[:3]:  # all read through one catalog
        assert run(store, *arguments).exit_code == 0, arguments
    found = run(store, "check")
    assert found.exit_code == 1
    assert "snapshots/v1/extracts/" in found.output
    assert run(store, "check", "--repair").exit_code == 0
    assert run(store, "check").exit_code == 0
    assert run(store, "sql", "--format", "json", "select cell_id, status from cells order by all").output == before


def test_a_million_cells_are_looked_at_within_a_second():
    rows = 1_000_000
    names = pa.array([f"layer{number}" for number in range(100)])
    layers = pa.table({"model": ["net"] * 100, "layer": names, "layer_index": pa.array(range(100), pa.int32())})
    index = pa.array([number % 100 for number in range(rows)], pa.int32())
    layer = pa.DictionaryArray.from_arrays(index, names)
    one = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), ["net"])
    params = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), ["{}"])
    columns = {f"{side}_{what}": array for side in ("source", "target") for what, array in (("model", one),)}
    columns |= {f"{side}_layer": layer for side in ("source", "target")}
    columns |= {f"{side}_index": index for side in ("source", "target")}
    cells = pa.table({**columns, "params": params})
    start = time.perf_counter()
    check_values(cells)
    check_plan({"layers": layers, "cells": cells})
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a":1e400}', "the number 1e400 is too large"),
        ('{"a":{"b":[-1e999]}}', "the number -1e999 is too large"),
        ('{"a":1,"a":1}', "it has a key twice"),
        ('{"a":[{"b":1,"c":2,"b":3}]}', "it has a key twice"),
    ],
)
@pytest.mark.parametrize("kind", [Document, EvaluationDocument])
def test_json_says_one_finite_thing_of_each_key(text, said, kind):
    with pytest.raises(DamagedFileError, match=rf"^not readable as JSON \({said}\)"):
        json_object(text.encode(), kind)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"seconds": math.inf}, "has a seconds of inf to inf; wanted 0 to"),
        ({"seconds": math.nan}, "has a seconds that is no number"),
        ({"seconds": -1.0}, "has a seconds of -1.0 to -1.0; wanted 0 to"),
        ({"low": math.nan, "high": math.inf}, "has a low that is no number"),
        ({"low": 0.0, "high": math.inf}, "has a high of inf to inf"),
        ({"low": 0.0, "high": None}, "has an interval of one end"),
        ({"low": 1.0, "high": 0.5}, "has an interval whose low end is above its high end"),
    ],
)
def test_times_and_intervals_are_possible(store, columns, said):
    name = min(Path(store.uri, "parts/v1").iterdir())
    table = pq.read_table(name)
    for column, value in columns.items():
        place = table.column_names.index(column)
        table = table.set_column(place, table.schema.field(column), pa.array([value] * len(table), pa.float64()))
    data = parquet_bytes(table)
    name.unlink()
    shard = PartName.parse(name.name).shard
    new = name.with_name(str(PartName(shard=shard, digest=content_digest(data), num_rows=len(table))))
    new.write_bytes(data)
    for command in (["check"], ["sql", "select metric, value, seconds, low from measurements limit 1"]):
        found = CliRunner().invoke(cli, [*command, "--store", store.uri])
        assert said in " ".join(found.output.split()), (command, found.output)
    with pytest.raises(DamagedFileError, match=f"^{said}"):
        check_values(table)
