"""A store is compacted while a launch goes on, and never at its cost."""

from helpers_flow import run
from helpers_store import make_row, make_synthetic_store, planned_cells, rows_of

from stitchgrid.driver.auto_compaction import AutoCompaction
from stitchgrid.errors import StoreError

CELLS = [cell for cell in planned_cells() if "residual" in cell.metrics]


def write(store, upkeep, count, *, first=0):
    for number in range(first, first + count):
        store.write_part(f"more-{number}", [make_row(CELLS[number], "residual", 0.5, created_at="2027")])
        upkeep.part_written()


def test_parts_are_merged_each_time_there_are_so_many(tmp_path):
    store = make_synthetic_store(tmp_path).store
    before = set(store.read_parts(("cell_id", "metric")).table["cell_id"].to_pylist())
    upkeep = AutoCompaction(store, lambda _: None, loose_parts=20)
    write(store, upkeep, 19)
    assert upkeep._thread is None
    write(store, upkeep, 1, first=19)
    upkeep._thread.join()
    assert store.part_paths() == []
    found = store.read_parts(("cell_id", "value")).table
    assert set(found["cell_id"].to_pylist()) == before
    assert 0.5 not in found["value"].to_pylist(), "the earliest row wins"


def test_what_is_left_at_the_end_is_merged_if_it_is_much(tmp_path):
    store = make_synthetic_store(tmp_path).store
    loose = len(store.part_paths())
    AutoCompaction(store, lambda _: None, loose_parts=loose + 1).finish()
    assert len(store.part_paths()) == loose
    AutoCompaction(store, lambda _: None, loose_parts=loose).finish()
    assert store.part_paths() == []


def test_a_store_that_cannot_be_compacted_is_told_of_and_goes_on(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    said = []

    def refuse(threshold):
        raise StoreError("disk full")

    monkeypatch.setattr(store, "compact_if_many", refuse)
    AutoCompaction(store, said.append).finish()
    assert said == ["the store could not be compacted: disk full"]
    assert store.read_parts().table.num_rows > len(rows_of(CELLS[0]))


def test_readers_of_many_small_files_are_told_how_to_be_quicker(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    monkeypatch.setattr("stitchgrid.store.MANY_PARTS", 3)
    count = len(store.part_paths())
    assert count > 3
    hint = f"{count} small files were read one by one; 'stitchgrid compact' merges them."
    for command in (["status"], ["query", "progress"], ["sql", "select 1"]):
        assert hint in run(*command, "--store", tmp_path).stderr
    run("compact", "--store", tmp_path)
    assert "one by one" not in run("status", "--store", tmp_path).stderr
