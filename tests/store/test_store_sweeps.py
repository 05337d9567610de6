"""Sweeps, their revisions, journals and heartbeats."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from helpers_store import SWEEP, make_synthetic_store, plan_tables

from stitchgrid import __version__
from stitchgrid.errors import StoreError
from stitchgrid.store import Store, table_checks
from stitchgrid.store.layout import HIGHEST
from stitchgrid.store.parts import DamagedFileError
from stitchgrid.store.schemas import ADDED_TO_TABLES, SWEEP_TABLES


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path, create=True)


def test_revisions_count_up_and_keep_their_jobs(store):
    assert store.latest_revision("s") is None
    assert [store.write_job("s", {"n": n}) for n in range(3)] == [1, 2, 3]
    assert store.latest_revision("s") == 3
    assert store.read_job("s") == {"n": 2}
    assert store.read_job("s", 1) == {"n": 0}
    assert store.sweep_names() == ["s"]


def test_a_plan_comes_back_as_it_went_in(store):
    tables = plan_tables()
    store.write_plan("s", store.write_job("s", {}), **tables, info={"num_shards": 4})
    plan = Store.open(store.uri).read_plan("s")
    assert (plan.sweep, plan.revision, plan.info, plan.version) == ("s", 1, {"num_shards": 4}, __version__)
    for name, schema in SWEEP_TABLES.items():
        assert getattr(plan, name).to_pylist() == tables[name].to_pylist()
        assert getattr(plan, name).cast(schema).schema == schema


def test_columns_that_came_later_are_null_where_a_plan_lacks_them(store):
    later = ADDED_TO_TABLES["models"]
    tables = plan_tables()
    before = tables["models"].drop_columns(list(later))
    store.write_plan("s", store.write_job("s", {}), **(tables | {"models": before}), info={})
    read = Store.open(store.uri).read_plan("s").models
    assert read.select(before.column_names).to_pylist() == before.to_pylist()
    assert all(read[name].null_count == len(read) for name in later)
    short = tables | {"models": before.drop_columns(["accuracy"])}
    with pytest.raises(DamagedFileError, match=r"lacks the columns \['accuracy'\]"):
        store.write_plan("t", store.write_job("t", {}), **short, info={})


def test_a_plan_that_readers_would_refuse_is_not_written(store, monkeypatch):
    tables = plan_tables()
    monkeypatch.setattr(table_checks, "MOST_ROWS", tables["cells"].num_rows - 1)
    revision = store.write_job("s", {})
    told = (
        rf"table cells of sweep 's', of {tables['cells'].num_rows:,} rows, could not be read again: .*divide the pairs"
    )
    with pytest.raises(StoreError, match=told):
        store.write_plan("s", revision, **tables, info={})
    assert not list(Path(store.uri).rglob("*.parquet"))
    monkeypatch.undo()
    store.write_plan("s", revision, **tables, info={})
    assert store.read_plan("s").cells.num_rows == tables["cells"].num_rows


def test_a_revision_without_its_manifest_is_not_there(store):
    tables = plan_tables()
    assert store.write_job("s", {"n": 1}) == 1
    assert store.read_plan("s") is None
    assert store.read_plan_info("s") == {}
    store.write_plan("s", 1, **tables, info={"n": 1})
    assert store.write_job("s", {"n": 2}) == 2
    assert store.read_plan_info("s") == {"n": 1}
    assert store.read_plan("s").revision == 1
    assert store.read_plan("s", 2) is None
    store.write_plan("s", 2, **(tables | {"cells": tables["cells"].slice(5)}), info={})
    assert store.read_plan("s").revision == 2
    assert store.read_plan("s").cells.num_rows == tables["cells"].num_rows - 5


def test_a_manifest_is_written_after_everything_it_names(store, monkeypatch):
    order = []
    for method in ("replace", "write_once"):
        real = getattr(store.files, method)
        monkeypatch.setattr(
            store.files, method, lambda name, data, real=real: (order.append(name), real(name, data))[1]
        )
    store.write_plan("s", store.write_job("s", {}), **plan_tables(), info={})
    assert order[0] == "sweeps/s/0001/job.json"
    assert order[-1] == "sweeps/s/0001/plan.json"
    assert len(order) == 5


def test_a_complete_revision_never_changes(store):
    tables = plan_tables()
    store.write_plan("s", store.write_job("s", {}), **tables, info={"n": 1})
    store.write_plan("s", 1, **tables, info={"n": 2})
    assert store.read_plan("s").info == {"n": 1}
    with pytest.raises(StoreError, match=r"revision 1 of sweep 's' .* complete with other tables; .*--update"):
        store.write_plan("s", 1, **(tables | {"cells": tables["cells"].slice(1)}), info={})


def test_a_plan_knows_its_own_tables_even_those_with_no_number_in_them(store):
    tables = plan_tables()
    models = tables["models"]
    position = models.schema.get_field_index("loss")
    models = models.set_column(position, "loss", pa.array([float("nan"), 0.3]))
    store.write_plan("s", store.write_job("s", {}), **(tables | {"models": models}), info={})
    plan = store.read_plan("s")
    assert plan.holds(**(tables | {"models": models}))
    store.write_plan("s", 1, **(tables | {"models": models}), info={})
    for name in SWEEP_TABLES:
        assert not plan.holds(**(tables | {"models": models} | {name: tables[name].slice(1)}))
    assert not plan.holds(**tables)


def test_an_unknown_sweep_is_refused_with_the_nearest(store):
    store.write_job("quickstart", {})
    for read in (store.read_job, store.read_plan):
        with pytest.raises(StoreError, match=r"no sweep 'quickstrat' .*did you mean 'quickstart'"):
            read("quickstrat")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("cells.parquet", b""),
        ("layers.parquet", b"PAR1"),
        ("plan.json", b"{"),
        ("plan.json", b"[]"),
        ("plan.json", b"{}"),
    ],
)
def test_a_damaged_plan_is_an_error_that_says_what_to_do(store, file, content):
    store.write_plan("s", store.write_job("s", {}), **plan_tables(), info={})
    store.files.path(f"sweeps/s/0001/{file}").write_bytes(content)
    with pytest.raises(StoreError, match=r"sweeps/s/0001.* is damaged: .*--update"):
        store.read_plan("s")


def test_a_table_of_another_plan_is_damage(store):
    tables = plan_tables()
    store.write_plan("s", store.write_job("s", {}), **tables, info={})
    store.write_plan("t", store.write_job("t", {}), **(tables | {"cells": tables["cells"].slice(9)}), info={})
    store.files.replace("sweeps/s/0001/cells.parquet", store.files.read("sweeps/t/0001/cells.parquet"))
    with pytest.raises(StoreError, match=r"cells\.parquet differs from its digest in plan\.json"):
        store.read_plan("s")


def test_folders_that_are_no_sweeps_are_not_listed(store):
    store.write_heartbeat("only-a-heartbeat", {"at": "now"})
    (store.files.root / "sweeps" / "empty").mkdir()
    assert store.sweep_names() == []


def test_the_journal_keeps_every_round_of_every_launch(store):
    store.journal("s", "one", [{"unit": "a"}, {"unit": "b"}])
    store.journal("s", "one", [{"unit": "a"}])
    Store.open(store.uri).journal("s", "one", [{"unit": "c"}])  # the same launch, from another process
    store.journal("s", "one", [{"unit": "d"}])
    store.journal("s", "two", [{"unit": "a", "worker": "w"}])
    attempts = store.attempts("s")
    assert [one["unit"] for one in attempts] == ["a", "b", "a", "c", "d", "a"]
    assert [one["launch"] for one in attempts] == ["one"] * 5 + ["two"]
    assert attempts == sorted(attempts, key=lambda one: one["at"])
    assert attempts[-1]["worker"] == "w"
    assert store.attempts("other") == []


def test_a_damaged_round_costs_that_round_alone(store):
    store.journal("s", "one", [{"unit": "a"}])
    store.journal("s", "one", [{"unit": "b"}])
    store.files.path("sweeps/s/journal/one/000001.json").write_bytes(b"{")
    assert [one["unit"] for one in store.attempts("s")] == ["b"]


def test_the_heartbeat_is_the_last_one(store):
    assert store.read_heartbeat("s") is None
    for number in range(3):
        store.write_heartbeat("s", {"at": "now", "units_done": number})
    assert store.read_heartbeat("s") == {"at": "now", "units_done": 2}
    store.files.path("sweeps/s/heartbeat.json").write_bytes(b"")
    assert store.read_heartbeat("s") is None


def test_the_manifest_counts_and_digests_its_files(tmp_path):
    make_synthetic_store(tmp_path)
    manifest = json.loads((tmp_path / "sweeps" / SWEEP / "0001" / "plan.json").read_text())
    assert manifest["num_rows"] == {"cells": 216, "models": 2, "layers": 6}
    assert set(manifest["sha256"]) == {"cells.parquet", "models.parquet", "layers.parquet"}


def test_no_revision_is_written_that_no_reader_would_see(store, tmp_path):
    store.write_job("s", {"n": 1})
    (tmp_path / "sweeps/s/0001").rename(tmp_path / f"sweeps/s/{HIGHEST}")
    assert store.latest_revision("s") == HIGHEST
    for write in (lambda: store.write_job("s", {"n": 2}), lambda: store.require_next_revision("s")):
        with pytest.raises(StoreError, match=rf"no revision can follow sweeps/s/{HIGHEST} .*give the job another name"):
            write()
    assert [path.name for path in (tmp_path / "sweeps/s").iterdir()] == [str(HIGHEST)]
    (tmp_path / f"sweeps/s/{HIGHEST}").rename(tmp_path / f"sweeps/s/{HIGHEST - 1}")
    assert store.write_job("s", {"n": 2}) == HIGHEST
