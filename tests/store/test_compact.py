"""Compaction: the same answers before and after, wherever it is stopped, and with two at once."""

import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner
from helpers_stopping import stopped_everywhere
from helpers_store import (
    QUICK,
    SWEEP,
    make_row,
    make_synthetic_store,
    plan_tables,
    planned_cells,
    rows_of,
    write_synthetic_store,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stitchgrid.catalog import VIEWS, Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import StoreError
from stitchgrid.rows import without_middle
from stitchgrid.store import Store, compact, data_files, materialized_views, row_reader, table_checks
from stitchgrid.store import parts as parts_module
from stitchgrid.store.compact import Compaction
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.snapshots import Snapshots

CELLS = list(planned_cells())
OF_VIEWS = ("scores", "all_scores", "answers", "all_answers", "pairs", "profiles", "training")  # made of the others
OF_ROWS = tuple(view for view in VIEWS if view not in OF_VIEWS)

rows = st.builds(
    lambda cell, metric, value, status, at, generation: replace(
        make_row(CELLS[cell], None, value),
        metric=metric if status == "done" else None,
        status=status,
        error=None if status == "done" else f"{status} at {at}",
        created_at=f"2026-01-0{at}",
        seconds=value,
        generation=generation,
    ),
    st.integers(0, 9),
    st.sampled_from(["accuracy", "residual", "negative_mass", "cka"]),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.sampled_from(["done", "done", "done", "failed", "quarantined"]),
    st.integers(1, 4),
    st.sampled_from([None, None, None, 1, 2]),
)
part_lists = st.lists(st.lists(rows, min_size=1, max_size=6), min_size=1, max_size=6)


def answers(store, views=OF_ROWS):
    """Return everything that readers can see, in an order of its own."""
    with Catalog(Store.open(store.uri)) as catalog:
        assert catalog.damaged == ()
        seen = {view: sorted(map(repr, catalog.query(f"select * from {view}").to_pylist())) for view in views}
    status = store.cell_status()
    said = [(status.metrics_done(c.cell_id), status.failed(c.cell_id), status.quarantined(c.cell_id)) for c in CELLS]
    return seen, said


def planned_store(folder):
    store = Store.open(folder, create=True)
    for sweep in ("one", "two"):
        store.write_plan(sweep, store.write_job(sweep, {}), **plan_tables(), info={})
    return store


@settings(max_examples=6, **QUICK)
@given(first=part_lists, second=part_lists, third=part_lists)
def test_answers_are_the_same_before_and_after(tmp_path_factory, first, second, third):
    store = planned_store(tmp_path_factory.mktemp("grid"))
    for number, parts in enumerate((first, second, third)):
        for shard, part in enumerate(parts):
            store.write_part(f"shard-{number}-{shard}", part)
        before, last = answers(store), answers(store, OF_VIEWS) if number == 2 else None
        done = store.compact()
        assert done.is_published
        assert store.part_paths() == []
        assert answers(store) == before
        assert store.check().findings == ()
    assert answers(store, OF_VIEWS) == last
    again = store.compact()
    assert not again.is_published
    assert answers(store) == before


@settings(max_examples=6, **QUICK)
@given(parts=part_lists, more=part_lists)
def test_loose_parts_beside_a_snapshot_count_as_if_nothing_had_been_merged(tmp_path_factory, parts, more):
    merged, plain = (planned_store(tmp_path_factory.mktemp("grid")) for _ in range(2))
    for store in (merged, plain):
        for shard, part in enumerate(parts):
            store.write_part(f"shard-{shard}", part)
    merged.compact()
    for store in (merged, plain):
        for shard, part in enumerate(more):
            store.write_part(f"more-{shard}", part)
    assert answers(merged) == answers(plain)


def test_a_later_revision_is_seen_before_and_after_the_next_compaction(tmp_path):
    store = make_synthetic_store(tmp_path).store
    store.compact()
    tables = plan_tables()
    store.write_plan(SWEEP, store.write_job(SWEEP, {"n": 2}), **(tables | {"cells": tables["cells"].slice(9)}), info={})
    before = answers(store)
    assert len(before[0]["cells"]) == 207
    assert store.compact().is_published
    assert answers(store) == before


def test_a_compaction_may_stop_anywhere(tmp_path):
    origin = make_synthetic_store(tmp_path / "origin").store
    origin.compact()
    for shard, cells in enumerate((CELLS[:5], CELLS[3:9])):
        origin.write_part(f"new-{shard}", [replace(rows_of(cell)[0], metric="loss") for cell in cells])
    origin.write_part("again", [replace(row, value=0.125, generation=1) for row in rows_of(CELLS[2])])
    expected = answers(origin)

    def look(folder):
        store = Store.open(folder)
        assert answers(store) == expected
        assert store.check().damage == ()
        store.compact()
        assert store.part_paths() == []
        assert answers(store) == expected

    assert stopped_everywhere(tmp_path, tmp_path / "origin", lambda files: Compaction(files).run(), look) >= 7


def test_who_gives_up_deletes_no_file_of_another_who_writes_the_same_rows(tmp_path):
    store = make_synthetic_store(tmp_path).store
    expected = answers(store)

    class GivingUp(Compaction):
        def _publish(self, snapshot, previous):
            self.snapshots.delete_own(self.number, self.written)

    class GoingOn(Compaction):
        def _publish(self, snapshot, previous):
            GivingUp(self.files).run()  # has written all that this one has, and nobody has published yet
            return super()._publish(snapshot, previous)

    assert GoingOn(store.files).run().is_published
    assert store.part_paths() == []
    assert answers(store) == expected
    assert store.check().findings == ()


def test_of_two_at_once_one_wins_at_least_and_nothing_is_lost(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    expected = answers(store)
    both_have_written = threading.Barrier(2)
    publish = Snapshots.publish

    def publish_together(self, snapshot):
        both_have_written.wait(60)
        return publish(self, snapshot)

    monkeypatch.setattr(Snapshots, "publish", publish_together)
    found = []
    threads = [threading.Thread(target=lambda: found.append(Store.open(tmp_path).compact())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(one.is_published for one in found)  # both may, within the same instant; their rows are the same
    assert answers(store) == expected
    store.compact()
    assert answers(store) == expected
    assert store.check().findings == ()


def test_a_straggler_neither_wins_nor_deletes(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    store.write_part("early", [replace(rows_of(CELLS[0])[0], metric="loss")])
    slow = Compaction(LocalFiles(tmp_path))
    publish, write_once, written = slow._publish, slow.files.write_once, []
    monkeypatch.setattr(slow.files, "write_once", lambda name, data: written.append(name) or write_once(name, data))

    def meanwhile(snapshot, previous):
        store.compact()
        store.write_part("late", [replace(rows_of(CELLS[1])[0], metric="loss")])
        store.compact()
        return publish(snapshot, previous)

    monkeypatch.setattr(slow, "_publish", meanwhile)
    assert not slow.run().is_published
    assert written == []  # not for a moment
    assert len(store.read_parts().table) > 400
    assert store.check().findings == ()


@pytest.mark.parametrize("number", range(4))
def test_of_two_that_publish_within_one_instant_both_may_count(tmp_path, monkeypatch, number):
    store = make_synthetic_store(tmp_path).store
    slow = Compaction(LocalFiles(tmp_path))
    write_once = slow.files.write_once

    def meanwhile(name, data):
        store.write_part("late", [replace(rows_of(CELLS[1])[0], metric="loss", value=float(number))])
        store.compact()
        return write_once(name, data)

    monkeypatch.setattr(slow.files, "write_once", meanwhile)
    slow.run()
    for _ in range(2):
        assert store.check().damage == ()
        assert store.cell_status().metrics_done(CELLS[1].cell_id) >= {"loss"}
        with Catalog(store) as catalog:
            [row] = catalog.query(
                "select count(*) as n, count(distinct (cell_id, metric)) as d from results"
            ).to_pylist()
        assert row["n"] == row["d"] > 400
        store.compact()
    assert store.cell_status().metrics_done(CELLS[1].cell_id) >= {"loss"}
    assert store.check().damage == ()


def test_readers_read_anew_when_a_compaction_takes_parts_away(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    expected = answers(store)
    sound_rows = parts_module._whole_rows
    pending = [True]

    def compact_first(*arguments):
        if pending and pending.pop():
            store.compact()
        return sound_rows(*arguments)

    monkeypatch.setattr(parts_module, "_whole_rows", compact_first)
    found = Store.open(tmp_path).read_parts()
    assert found.damaged == ()
    assert not pending
    assert answers(store) == expected


def test_plans_are_read_as_many_at_a_time_as_memory_is_meant_to_hold(tmp_path, monkeypatch):
    stores = [planned_store(tmp_path / name) for name in ("few", "many")]
    for store, num_cells in zip(stores, (1, 10**9), strict=True):
        monkeypatch.setattr(materialized_views, "CELLS_AT_ONCE", num_cells)
        store.write_part("part", [row for cell in CELLS[:20] for row in rows_of(cell)])
        store.compact()
    few, many = (Snapshots(store.files).newest()[0] for store in stores)
    assert few.cells.keys() == many.cells.keys() == {"one", "two"}
    assert [sorted(tier.results) for tier in few.tiers] == [sorted(tier.results) for tier in many.tiers]
    assert answers(stores[0]) == answers(stores[1])


def test_small_files_are_merged_and_large_ones_left(tmp_path, monkeypatch):
    monkeypatch.setattr(compact, "TIER_ROWS", 8)
    monkeypatch.setattr(row_reader, "BATCH_ROWS", 4)
    store = Store.open(tmp_path, create=True)
    sizes = []
    for number, cell in enumerate(CELLS[:12]):
        store.write_part(f"s-{number}", rows_of(cell)[:1])
        store.compact()
        sizes.append(sorted(tier.num_rows for tier in Snapshots(store.files).newest()[0].tiers))
    assert sizes[:4] == [[1], [2], [1, 2], [4]]
    assert sizes[7] == [8]
    assert sizes[11] == [4, 8]


def damage_one(folder, pattern):
    path = next(iter(sorted(folder.glob(pattern))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return str(path.relative_to(folder))


def test_a_damaged_manifest_costs_nothing(tmp_path):
    store = make_synthetic_store(tmp_path).store
    expected = answers(store)
    store.compact()
    name = damage_one(tmp_path, "snapshots/v1/*.json")
    with Catalog(store) as catalog:
        assert [one.file for one in catalog.damaged] == [name]
        assert sorted(map(repr, catalog.query("select * from results").to_pylist())) == expected[0]["results"]
    assert [one.file for one in store.check().damage] == [name]
    store.set_aside(store.check())
    assert answers(store) == expected
    assert store.check().findings == ()


def test_a_damaged_extract_costs_nothing(tmp_path):
    store = make_synthetic_store(tmp_path).store
    expected = answers(store)
    store.compact()
    names = [
        damage_one(tmp_path, f"snapshots/v1/extracts/{p.name}") for p in (tmp_path / "snapshots/v1/extracts").iterdir()
    ]
    assert sorted(one.file for one in store.check().damage) == sorted(names)
    with Catalog(store) as catalog:
        assert sorted(map(repr, catalog.query("select * from cells").to_pylist())) == expected[0]["cells"]
        assert sorted(map(repr, catalog.query("select * from results").to_pylist())) == expected[0]["results"]
    store.set_aside(store.check())
    assert answers(store) == expected
    assert not store.compact().is_published
    assert store.check().findings == ()


@pytest.mark.parametrize("damage", [b"", b"PAR1"])
def test_damaged_rows_are_missing_until_they_are_computed_again(tmp_path, damage):
    synthetic = make_synthetic_store(tmp_path)
    store = synthetic.store
    expected = answers(store)
    store.compact()
    path = next((tmp_path / "snapshots/v1/data").iterdir())
    path.write_bytes(damage)
    assert store.cell_status().metrics_done(CELLS[0].cell_id) == frozenset()
    [finding] = store.check().damage
    assert finding.file == str(path.relative_to(tmp_path))
    assert "resume" in finding.advice
    store.set_aside(store.check())
    assert store.check().damage == ()
    assert store.cell_status().metrics_done(CELLS[0].cell_id) == frozenset()
    with Catalog(store) as catalog:
        assert catalog.query("select count(*) as n from results").to_pylist() == [{"n": 0}]
        assert "done" not in catalog.query("select status from cells")["status"].to_pylist()
    for start in range(0, len(CELLS), 40):
        found = [row for cell in CELLS[start : start + 40] for row in rows_of(cell)]
        store.write_part(f"again-{start}", found)
    assert answers(store) == expected
    store.compact()
    assert answers(store) == expected
    assert store.check().findings == ()


def test_damaged_parts_stay_where_they_are(tmp_path):
    store = make_synthetic_store(tmp_path).store
    bad = store.part_paths()[1]
    bad.write_bytes(b"PAR1")
    done = store.compact()
    assert (done.num_parts, len(done.damaged)) == (3, 1)
    assert store.part_paths() == [bad]


def test_a_store_is_compacted_when_it_holds_many_parts(tmp_path):
    store = make_synthetic_store(tmp_path).store
    assert store.compact_if_many(5) is None
    assert store.compact_if_many(4).num_parts == 4
    assert store.compact_if_many(1) is None


def test_the_command_says_what_it_did(tmp_path):
    store = make_synthetic_store(tmp_path).store
    run = CliRunner().invoke(cli, ["compact", "--store", store.uri])
    assert run.exit_code == 0
    assert run.stdout.startswith("merged 4 parts")
    run = CliRunner().invoke(cli, ["compact", "--store", store.uri])
    assert run.stdout == "nothing to merge\n"


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    expected = answers(store)

    def refuse(self, name, data):
        raise StoreError("cannot write: No space left on device")

    monkeypatch.setattr(LocalFiles, "replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        store.compact()
    assert answers(store) == expected


# Rows that are large


def with_large_rows(folder, *, numbers, error):
    """Write the synthetic store, with lists of many numbers and long errors in parts of their own."""
    store = make_synthetic_store(folder).store
    cells = list(planned_cells())
    for number, cell in enumerate(cells[:40]):
        row = make_row(cell, f"{cell.metrics[0]}@shuffles={numbers}", None)
        store.write_part(f"list-{number}", [replace(row, null=tuple(float(k + number) for k in range(numbers)))])
        broken = replace(row, status="failed", metric=None, null=None, error=f"{number} {error}", created_at="0")
        store.write_part(f"error-{number}", [broken])
    return store


def lists_of(rows):
    pairs = zip(rows["cell_id"].to_pylist(), rows["null"].to_pylist(), strict=True)
    return {cell: some for cell, some in pairs if some}


@pytest.mark.parametrize("limit", ["of a table", "of a file"])
def test_files_are_no_larger_than_readers_take(tmp_path, monkeypatch, limit):
    """Whatever the size of rows: what a compaction has written is read again, to the last number."""
    store = with_large_rows(tmp_path, numbers=2000, error="x" * 2000)
    before = lists_of(store.read_parts().table)
    if limit == "of a table":
        monkeypatch.setattr(parts_module, "MOST_TABLE", 100_000)
    else:
        for module in (table_checks, data_files):
            monkeypatch.setattr(module, "most_bytes", lambda num_rows: 20_000 + 400 * num_rows)
    done = store.compact()
    assert done.is_published
    assert not done.damaged
    assert store.part_paths() == []
    assert done.num_files > 4
    assert store.check().damage == ()
    assert lists_of(store.scan().rows.to_table(columns=["cell_id", "null"])) == before


def test_a_part_of_too_many_rows_is_written_as_several(tmp_path, monkeypatch):
    whole = make_synthetic_store(tmp_path / "whole").store
    monkeypatch.setattr(parts_module, "MOST_PART_ROWS", 10)
    store = write_synthetic_store(tmp_path / "apart").store
    assert len(store.part_paths()) > len(whole.part_paths())
    assert store.read_parts().table.num_rows == sum(1 for cell in planned_cells() for _ in rows_of(cell))
    assert store.check().damage == ()


def test_a_file_of_more_rows_than_a_part_has_is_damage(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    monkeypatch.setattr(parts_module, "MOST_PART_ROWS", 10)
    assert "promises" in store.check().damage[0].problem


def test_a_very_long_error_is_kept_without_its_middle():
    told = without_middle("a" * 30_000 + "end")
    assert len(told) < 20_100
    assert told.endswith("end")
    assert "characters left out" in told
    assert without_middle("short") == "short"
