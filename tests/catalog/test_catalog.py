"""The views over a store, and the gate in front of them."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from helpers_store import (
    ERROR,
    FAILED,
    MODELS,
    PENDING,
    SWEEP,
    find_cell,
    make_row,
    make_synthetic_store,
    plan_tables,
    planned_cells,
    value_of,
)

from stitchgrid.catalog import VIEWS, Catalog
from stitchgrid.errors import QueryError
from stitchgrid.matchers.describe import as_record
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.store import Store, is_fresh

PROMISED = """
sweep, cell_id, source_model, source_layer, source_index, source_depth, target_model, target_layer, target_index,
target_depth, matcher, params, seed, metric, value, higher_is_similar, num_fit, num_eval, num_rows, seconds, device,
precision, alignment, flags, source_weights, target_weights, data, version, created_at, low, high, replicates, null
"""
RESULTS_COLUMNS = [name.strip() for name in PROMISED.split(",")]
NOW = datetime(2026, 1, 2, tzinfo=UTC)
CELL = find_cell(("net/0", "conv1", "net/0", "block1"), "direct")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    with Catalog(make_synthetic_store(tmp_path_factory.mktemp("grid")).store) as catalog:
        yield catalog


def column(table, name="value"):
    return table[name].to_pylist()


def status_of(store, cell_id, *, now=None):
    with Catalog(store, now=now) as catalog:
        table = catalog.query("select status, error, attempts from cells where cell_id = $id", {"id": cell_id})
    return tuple(table.to_pylist()[0].values())


def test_results_have_the_promised_columns_and_types(catalog):
    schema = catalog.query("from results limit 0").schema
    assert schema.names == RESULTS_COLUMNS
    assert schema.field("value").type == pa.float64()
    assert schema.field("higher_is_similar").type == pa.bool_()
    assert pa.types.is_list(schema.field("flags").type)
    assert {"cell_id", "status", "error", "attempts"} <= set(catalog.query("from cells limit 0").column_names)
    assert not {"sweep", "source_model", "target_model"} & set(catalog.query("from measurements limit 0").column_names)


def test_an_empty_store_has_every_view_with_no_rows(tmp_path):
    with Catalog(Store.open(tmp_path, create=True)) as catalog:
        assert catalog.sweeps == ()
        for view in set(VIEWS) - {"matchers"}:
            assert catalog.query(f"select count(*) as value from {view}")["value"].to_pylist() == [0]
        assert catalog.query("from results").schema.names == RESULTS_COLUMNS


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_can_be_the_first_that_is_asked_for(catalog, store, view):
    with Catalog(store) as fresh:
        assert fresh.query(f'from "{view.upper()}"').num_rows == catalog.query(f"from {view}").num_rows


@pytest.mark.parametrize("sql", ["select view_name as name from duckdb_views()", "show all tables", "describe"])
def test_a_statement_that_looks_around_finds_every_view(store, sql):
    with Catalog(store) as fresh:
        assert set(VIEWS) <= set(column(fresh.query(sql), "name"))


def test_a_name_that_is_no_view_s_is_told_the_nearest(store):
    with Catalog(store) as fresh, pytest.raises(QueryError, match='Did you mean "results"'):
        fresh.query("from resuls")


def test_a_sweep_without_a_plan_is_not_yet_in_the_views(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_job("s", {})
    with Catalog(store) as catalog:
        assert catalog.sweeps == ()
        assert catalog.damaged == ()


def test_results_are_the_values_under_the_names_of_the_sweep(catalog):
    table = catalog.query(
        "select source_model, source_layer, target_model, target_layer, matcher, seed, metric, value from results"
    )
    found = {tuple(row.values())[:-1]: row["value"] for row in table.to_pylist()}
    expected = {
        (*cell.pair, cell.matcher, cell.seed, metric): value_of(cell, metric)
        for cell in planned_cells()
        if (cell.pair, cell.matcher) not in ((FAILED, "cka"), (PENDING, "procrustes"))
        for metric in cell.metrics
    }
    assert found == expected
    assert table.num_rows == len(expected)


def test_a_cell_without_a_result_is_absent_and_an_undefined_value_is_null(catalog):
    assert (
        catalog.query(
            "from results where matcher = 'cka' and source_model = 'net/1' and source_layer = 'block2' "
            "and target_model = 'net/0' and target_layer = 'conv1'"
        ).num_rows
        == 0
    )
    nulls = catalog.query("select distinct metric as value, flags from results where value is null")
    assert column(nulls) == ["negative_mass"] * nulls.num_rows
    assert all("undefined" in flags for flags in column(nulls, "flags"))


def test_every_cell_has_one_status(catalog):
    statuses = Counter(column(catalog.query("select status as value from cells")))
    assert statuses == {"done": 214, "failed": 1, "pending": 1}
    errors = catalog.query("select error as value from cells where error is not null")
    assert column(errors) == [ERROR]


def test_attempts_come_from_the_journal(catalog):
    table = catalog.query("select distinct source_model, target_model, attempts as value from cells")
    assert {(r["source_model"], r["target_model"]): r["value"] for r in table.to_pylist()} == {
        (f, g): 2 if (f, g) == ("net/1", "net/0") else 1 for f in MODELS for g in MODELS
    }


def test_models_and_layers_come_from_the_plan(catalog):
    assert column(catalog.query("select accuracy as value from models order by model")) == [0.9, 0.89]
    assert column(catalog.query("select shape as value from layers where model = 'net/0' and layer = 'block1'")) == [
        [16, 16, 16]
    ]
    assert column(catalog.query("select distinct sweep as value from layers")) == [SWEEP]


def test_the_earliest_of_two_values_counts(tmp_path):
    store = make_synthetic_store(tmp_path).store
    late = make_row(CELL, "accuracy", 99.0, created_at="2027-01-01T00:00:00+00:00")
    early = make_row(CELL, "residual", 98.0, created_at="2025-01-01T00:00:00+00:00")
    store.write_part("zz", [late, early])
    store.write_part("00", [late, early])
    with Catalog(store) as catalog:
        sql = "select metric, value from {} where cell_id = $id and metric <> 'negative_mass'"
        for view in ("results", "measurements"):
            rows = catalog.query(sql.format(view), {"id": CELL.cell_id}).to_pylist()
            values = {row["metric"]: row["value"] for row in rows}
            assert values == {"accuracy": value_of(CELL, "accuracy"), "residual": 98.0}
            assert len(rows) == 2
        assert catalog.query("select 1 from measurements group by cell_id, metric having count(*) > 1").num_rows == 0


def test_a_cell_that_two_sweeps_share_is_listed_under_each(tmp_path):
    store = make_synthetic_store(tmp_path).store
    tables = plan_tables()
    shared = tables["cells"].filter(pa.compute.equal(tables["cells"]["matcher"], "direct"))
    metrics = pa.array([["residual"]] * shared.num_rows)
    shared = shared.set_column(shared.schema.get_field_index("metrics"), "metrics", metrics)
    store.write_plan("second", store.write_job("second", {}), **(tables | {"cells": shared}), info={})
    with Catalog(store) as catalog:
        assert catalog.sweeps == ("second", SWEEP)
        counts = catalog.query(
            "select sweep, metric, count(*) as value from results where matcher = 'direct' group by all"
        )
        assert {(r["sweep"], r["metric"]): r["value"] for r in counts.to_pylist()} == {
            ("second", "residual"): 36,
            **{(SWEEP, metric): 36 for metric in ("accuracy", "residual", "negative_mass")},
        }
        assert column(catalog.query("select count(*) as value from measurements where matcher = 'direct'")) == [108]


def test_the_latest_complete_revision_counts(tmp_path):
    store = make_synthetic_store(tmp_path).store
    tables = plan_tables()
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **(tables | {"cells": tables["cells"].slice(0, 7)}), info={})
    store.write_job(SWEEP, {})  # a third revision that has no plan yet
    with Catalog(store) as catalog:
        assert column(catalog.query("select count(*) as value from cells")) == [7]


def test_a_metric_not_yet_stored_leaves_its_cell_pending(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    store.write_part("a", [make_row(CELL, "accuracy", 0.5), make_row(CELL, "residual", 0.5)])
    assert status_of(store, CELL.cell_id) == ("pending", None, 0)
    store.write_part("b", [make_row(CELL, "negative_mass", None)])
    assert status_of(store, CELL.cell_id) == ("done", None, 0)


def test_an_error_stands_until_a_value_is_stored_after_it(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    error = replace(make_row(CELL, None, None, created_at="2"), status="failed", error="first")
    store.write_part("a", [make_row(CELL, "accuracy", 0.1, created_at="1"), error])
    assert status_of(store, CELL.cell_id) == ("failed", "first", 0)
    store.write_part("b", [replace(error, created_at="3", status="quarantined", error="second")])
    assert status_of(store, CELL.cell_id) == ("quarantined", "second", 0)
    store.write_part("c", [make_row(CELL, "residual", 0.1, created_at="4")])
    assert status_of(store, CELL.cell_id) == ("pending", None, 0)
    store.write_part("d", [make_row(CELL, "negative_mass", 0.1, created_at="1")])
    assert status_of(store, CELL.cell_id) == ("done", None, 0)


def test_cells_of_a_shard_at_work_are_running_while_the_heartbeat_is_fresh(tmp_path):
    synthetic = make_synthetic_store(tmp_path)
    shard = find_cell(PENDING, "procrustes").shard
    units = [{"unit": "half of it", "shard": shard, "worker": "w0", "since": NOW.isoformat()}]
    synthetic.store.write_heartbeat(SWEEP, {"at": NOW.isoformat(), "running": units})
    soon, later = NOW + timedelta(seconds=30), NOW + timedelta(hours=1)
    assert status_of(synthetic.store, synthetic.pending, now=soon)[0] == "running"
    assert status_of(synthetic.store, synthetic.pending, now=later)[0] == "pending"
    assert status_of(synthetic.store, synthetic.failed, now=soon)[0] == "failed"


@pytest.mark.parametrize(
    ("beat", "fresh"),
    [
        ({"at": NOW.isoformat()}, True),
        ({"at": "2026-01-02T00:00:10"}, True),
        ({"at": "2026-01-01T23:00:00+00:00"}, False),
        ({"at": "2027-01-01T00:00:00+00:00"}, False),
        ({"at": "soon"}, False),
        ({}, False),
    ],
)
def test_a_heartbeat_is_believed_for_a_while(beat, fresh):
    assert is_fresh(beat, NOW) is fresh


def test_a_damaged_part_or_plan_costs_itself_alone(tmp_path):
    synthetic = make_synthetic_store(tmp_path)
    make_synthetic_store(tmp_path, sweep="other")
    synthetic.store.part_paths()[0].write_bytes(b"")
    (tmp_path / "sweeps" / "other" / "0001" / "cells.parquet").write_bytes(b"")
    with Catalog(synthetic.store) as catalog:
        assert len(catalog.damaged) == 2
        assert catalog.sweeps == (SWEEP,)
        statuses = catalog.query("select status, count(*) as value from cells group by all").to_pylist()
        assert {row["status"] for row in statuses} >= {"done", "pending"}
        assert sum(row["value"] for row in statuses) == 216


def test_scores_average_seeds_and_turn_every_matcher_the_same_way(catalog):
    assert column(catalog.query("select distinct num_cells as value from scores where matcher = 'task_loss'")) == [2]
    row = catalog.query(
        "select * from scores where matcher = 'task_loss' and source_model = target_model and source_model = 'net/1' "
        "and source_layer = 'conv1' and target_layer = 'conv1'"
    ).to_pylist()[0]
    assert row["score"] == row["similarity"] == row["accuracy"] == pytest.approx(0.8995)
    assert row["residual"] == 1.5
    turned = catalog.query(
        "select distinct matcher, metric, sign(score) = sign(similarity) as value from scores where score <> 0"
    )
    assert {(r["matcher"], r["metric"]): r["value"] for r in turned.to_pylist()} == {
        ("direct", "residual"): False,
        ("task_loss", "accuracy"): True,
        ("cka", "cka"): True,
        ("pwcca", "pwcca"): False,
        ("procrustes", "procrustes"): False,
    }


def test_what_is_no_number_is_no_score(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    values = [("residual", float("nan")), ("accuracy", 0.5), ("negative_mass", None)]
    store.write_part("a", [make_row(CELL, metric, value) for metric, value in values])
    with Catalog(store) as catalog:
        assert catalog.query("from scores").num_rows == 0
        assert catalog.query("from results").num_rows == 3


def test_a_kind_that_only_a_stored_sweep_knows_is_read_by_what_it_says(tmp_path):
    store = make_synthetic_store(tmp_path).store
    record = {**as_record(MATCHERS["cka"]), "kind": "of_tomorrow", "score": "of_tomorrow"}
    record["metrics"] = [{"name": "of_tomorrow", "higher_is_similar": False, "low": 0.0, "high": None}]
    plan = store.read_plan(SWEEP)
    again = {name: getattr(plan, name) for name in ("cells", "models", "layers")}
    store.write_plan("newer", store.write_job("newer", {}), **again, info={"matchers": [record]})
    with Catalog(store) as catalog:
        [found] = catalog.query("from matchers where matcher = 'of_tomorrow'").to_pylist()
        assert (found["score_metric"], found["higher_is_similar"], found["low"]) == ("of_tomorrow", False, 0.0)
        known = catalog.query("from matchers").num_rows
    assert known == len(MATCHERS) + 1


def test_every_matcher_has_a_score_among_its_metrics(catalog):
    for name, matcher in MATCHERS.items():
        assert matcher.kind == name
        assert matcher.metric(matcher.score).higher_is_similar is not None
    assert set(column(catalog.query("select matcher as value from matchers"))) == set(MATCHERS)


READING = [
    "select 1",
    "  -- a comment\n select 1;",
    "with x as (select 1 as a) select * from x",
    "from cells limit 1",
    "values (1), (2)",
    "describe results",
    "show tables",
    "summarize models",
    "explain select * from results",
    "explain analyze select * from results",
    "/* é */ Explain -- (\n /* set */ analyze (format json) select 'é' as analyze",
    "explain (analyze, format json) from results",
    "explain (format json) (select 1)",
    "explain (select 1)",
    "pivot results on metric in ('cka', 'pwcca') using first(value)",
    "select params->>'$.a' from cells limit 1",
]


@pytest.mark.parametrize("sql", READING)
def test_statements_that_read_are_run(catalog, sql):
    assert catalog.query(sql).num_rows >= 1


WRITING = [
    "copy (select 1) to '{folder}/x.csv'",
    "explain analyze copy (select 1) to '{folder}/x.csv'",
    "export database '{folder}/x'",
    "attach '{folder}/x.db'",
    "attach ':memory:' as other",
    "install httpfs",
    "load httpfs",
    "load '{folder}/x.so'",
    "pragma enable_external_access = true",
    "pragma memory_limit = '1GB'",
    "set enable_external_access = true",
    "set threads = 1",
    "reset threads",
    "use memory",
    "create table t as select 1",
    "create view results as select 1",
    "drop view results",
    "explain analyze drop view results",
    "explain set threads = 1",
    "explain analyze set threads = 1",
    "explain /* ) */ (analyze, format json) set threads = 1",
    "explain analyze (format json) vacuum",
    "explain analyze load httpfs",
    "explain analyze checkpoint",
    "explain analyze call enable_logging()",
    "explain analyze prepare p as select 1",
    "explain analyze begin",
    "explain analyze create table t as select 1",
    "with x as (insert into t values (1) returning *) select * from x",
    "delete from results",
    "call enable_logging()",
    "checkpoint",
    "vacuum",
    "begin",
    "prepare p as select 1",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_parquet('{folder}/parts/v1/*.parquet')",
    "select * from '/etc/passwd'",
    "select * from glob('/*')",
    "select * from sniff_csv('/etc/passwd')",
    "select getenv('HOME')",
    "select * from SECRET",
    "select 1; select 2",
    "select 1; drop view results",
    "",
    "-- nothing",
    "select from where",
]
SECRET = pa.table({"a": [1]})  # a Python variable that SQL must not see


@pytest.mark.parametrize("sql", WRITING)
def test_everything_else_is_refused_and_changes_nothing(tmp_path_factory, catalog, sql):
    folder = tmp_path_factory.mktemp("outside")
    with pytest.raises(QueryError):
        catalog.query(sql.format(folder=folder))
    assert list(folder.iterdir()) == []
    assert column(catalog.query("select count(*) as value from cells")) == [216]


def test_the_catalog_is_locked(catalog):
    names = (
        "enable_external_access",
        "python_enable_replacements",
        "autoinstall_known_extensions",
        "lock_configuration",
    )
    settings = [catalog.query(f"select current_setting('{name}') as value")["value"][0].as_py() for name in names]
    assert settings == [False, False, False, True]


def test_refused_statements_leave_the_catalog_usable(catalog):
    for _ in range(3):
        with pytest.raises(QueryError):
            catalog.query("select nonsense from cells")
    assert catalog.query("select 1").num_rows == 1


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select 1; select 2", r"one statement at a time, got 2; .*pivot results on metric in"),
        ("drop view results", r"only statements that read .* got DROP; .*--out"),
        ("select valeu from results", r"DuckDB cannot run the query: .*valeu(.|\n)*describe results"),
        ("select 1 where", r"DuckDB cannot run the query: Parser Error"),
        ("select $x", r"no value for \$x; .*stitchgrid query FILE\.sql --param NAME=VALUE"),
        ("select * from read_csv('/etc/passwd')", "disabled by configuration"),
    ],
)
def test_a_refusal_says_what_to_do(catalog, sql, message):
    with pytest.raises(QueryError, match=message):
        catalog.query(sql)


def test_parameters_are_values_never_sql(catalog):
    evil = "' or 1 = 1; drop view results; --"
    assert catalog.query("select 1 from cells where sweep = $s", {"s": evil}).num_rows == 0
    assert column(catalog.query("select $s as value", {"s": evil})) == [evil]
    with pytest.raises(QueryError, match=r"the SQL has no parameter \$swep; did you mean 'sweep'"):
        catalog.query("select $sweep", {"sweep": "x", "swep": "y"})


def test_nothing_is_written_beside_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = make_synthetic_store(tmp_path / "grid").store
    before = sorted(tmp_path.rglob("*"))
    with Catalog(store) as catalog:
        catalog.query("select * from results order by value")
    assert sorted(tmp_path.rglob("*")) == before
    assert Path.cwd() == tmp_path
