"""Parts and what they say of cells."""

from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_store import find_cell, make_row, make_synthetic_store, planned_cells, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stitchgrid.errors import StoreError
from stitchgrid.records import Row
from stitchgrid.store import CellStatus, PartRows, Store
from stitchgrid.store.layout import PartName, content_digest
from stitchgrid.store.parts import part_table
from stitchgrid.store.schemas import PART

CELL = next(iter(planned_cells()))
OTHER = find_cell(("net/1", "conv1", "net/1", "conv1"), "cka")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
number = st.floats(allow_nan=False)
whole = st.integers(-(2**63), 2**63 - 1)
generated_rows = st.builds(
    Row,
    **{
        "value": st.none() | number,
        "seconds": st.none() | st.floats(min_value=0, allow_nan=False, allow_infinity=False),
        "higher_is_similar": st.none() | st.booleans(),
        "flags": st.lists(text, max_size=3).map(tuple),
        "seed": st.none() | whole,
        **{name: st.none() | st.integers(0, 10**12) for name in ("num_fit", "num_eval", "num_rows")},
        **{name: st.none() | text for name in ("metric", "error", "alignment")},
        **{f.name: text for f in fields(Row) if f.type is str},
        "params": st.sampled_from(["{}", '{"rank": 4}', '{"pool": "mean", "rcond": 1e-12}']),
    },
)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path, create=True)


def read_rows(store):
    return [Row(**{**row, "flags": tuple(row["flags"])}) for row in store.read_parts().table.to_pylist()]


def test_the_columns_of_a_part_are_the_fields_of_a_row():
    assert PART.names == [field.name for field in fields(Row)]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(generated_rows, min_size=1, max_size=4))
def test_rows_come_back_as_they_went_in(tmp_path_factory, rows):
    store = Store.open(tmp_path_factory.mktemp("grid"), create=True)
    store.write_part("shard", rows)
    assert read_rows(store) == rows
    assert store.read_parts().damaged == ()


def test_the_same_rows_are_the_same_part(store):
    names = {store.write_part("shard", rows_of(CELL)) for _ in range(3)}
    assert len(names) == len(store.part_paths()) == 1
    store.write_part("shard", [replace(row, value=0.5) for row in rows_of(CELL)])
    assert len(store.part_paths()) == 2


def test_the_name_of_a_part_is_its_manifest(store):
    name = PartName.parse(store.write_part("a-shard-7", rows_of(CELL)))
    [path] = store.part_paths()
    assert (name.shard, name.num_rows) == ("a-shard-7", len(rows_of(CELL)))
    assert name.digest == content_digest(path.read_bytes())
    assert pq.read_schema(path).metadata[b"stitchgrid.part"] == b"3"


def test_a_shard_cannot_name_a_file_elsewhere(store):
    with pytest.raises(StoreError, match=r"shard '\.\./x' cannot be a name"):
        store.write_part("../x", rows_of(CELL))


def test_an_empty_store_has_no_status_of_any_cell(store):
    status = store.cell_status()
    assert (status.metrics_done("x"), status.failed("x"), status.damaged) == (frozenset(), None, ())
    assert read_rows(store) == []


def test_the_status_of_a_sweeps_cells_says_what_is_done_failed_and_missing(tmp_path):
    synthetic = make_synthetic_store(tmp_path)
    status = synthetic.store.cell_status()
    for cell in planned_cells():
        has_value = cell.cell_id not in (synthetic.failed, synthetic.pending)
        assert status.metrics_done(cell.cell_id) == (frozenset(cell.metrics) if has_value else frozenset())
    failed = [cell.cell_id for cell in planned_cells() if status.failed(cell.cell_id) is not None]
    assert failed == [synthetic.failed]
    assert status.failed(synthetic.failed) == "ValueError: planted | failure"


def test_a_metric_stored_as_undefined_is_stored(store):
    store.write_part("shard", [make_row(CELL, "negative_mass", None)])
    assert store.cell_status().metrics_done(CELL.cell_id) == {"negative_mass"}


def test_an_error_stands_until_a_value_is_stored_after_it(store):
    error = replace(make_row(CELL, None, None, created_at="2"), status="failed", error="first")
    store.write_part("a", [make_row(CELL, "accuracy", 0.1, created_at="1"), error])
    assert store.cell_status().failed(CELL.cell_id) == "first"
    store.write_part("b", [replace(error, created_at="3", status="quarantined", error="second")])
    assert store.cell_status().failed(CELL.cell_id) == "second"
    assert store.cell_status().quarantined(CELL.cell_id)
    store.write_part("c", [make_row(CELL, "residual", 0.1, created_at="4")])
    assert store.cell_status().failed(CELL.cell_id) is None
    assert store.cell_status().metrics_done(CELL.cell_id) == {"accuracy", "residual"}


status_rows = st.builds(
    lambda cell, metric, status, at: replace(
        make_row(CELL, metric if status == "done" else None, 1.0),
        cell_id=cell,
        status=status,
        error=None if status == "done" else f"{status} at {at}",
        created_at=str(at),
    ),
    st.sampled_from("abc"),
    st.sampled_from(["accuracy", "residual", "loss"]),
    st.sampled_from(["done", "done", "failed", "quarantined"]),
    st.integers(1, 5),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(status_rows, max_size=12))
def test_the_status_of_cells_agrees_with_reading_row_by_row(rows):
    status = CellStatus(PartRows(table=part_table(rows) if rows else PART.empty_table(), damaged=()))
    for cell in "abcd":
        mine = [row for row in rows if row.cell_id == cell]
        values = [row for row in mine if row.status == "done"]
        first = [
            min(row.created_at for row in values if row.metric == metric) for metric in {row.metric for row in values}
        ]
        last_value = max(first, default="0")  # the earliest value of a metric is the one that counts
        errors = [row for row in mine if row.status != "done"]
        last_error = max(errors, key=lambda row: (row.created_at, row.status), default=None)
        stands = last_error is not None and last_error.created_at >= last_value
        assert status.metrics_done(cell) == {row.metric for row in mine if row.status == "done"}
        assert status.failed(cell) == (last_error.error if stands else None)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def promise_more(path):
    path.rename(path.with_name(path.name.replace("-1.parquet", "-2.parquet")))


def be_garbage(path):
    garbage = b"PAR1 not really PAR1"
    path.rename(path.with_name(f"s-{content_digest(garbage)}-1.parquet")).write_bytes(garbage)


def lack_columns(path):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"cell_id": ["x"]}), sink)
    data = bytes(sink.getvalue())
    path.rename(path.with_name(f"s-{content_digest(data)}-1.parquet")).write_bytes(data)


DAMAGES = [
    (lambda path: path.write_bytes(b""), "empty file"),
    (truncate, "content differs from the digest in its name"),
    (flip, "content differs from the digest in its name"),
    (promise_more, "holds 1 rows, its name promises 2"),
    (be_garbage, "not readable as Parquet"),
    (lack_columns, "lacks the columns"),
    (lambda path: path.rename(path.with_name("copy.parquet")), "not the name of a part"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[reason for _, reason in DAMAGES])
def test_a_damaged_part_is_named_and_its_cells_are_missing(store, damage, reason):
    store.write_part("good", [make_row(OTHER, "cka", 0.5)])
    name = store.write_part("s", [make_row(CELL, "accuracy", 0.5)])
    damage(next(path for path in store.part_paths() if path.name == name))
    status = store.cell_status()
    [found] = status.damaged
    assert found.file.startswith("parts/v1/")
    assert reason in str(found)
    assert status.metrics_done(CELL.cell_id) == frozenset()
    assert status.metrics_done(OTHER.cell_id) == {"cka"}
    assert [row.value for row in read_rows(store)] == [0.5]


def test_writing_a_damaged_part_again_heals_it(store):
    rows = [make_row(CELL, "accuracy", 0.5)]
    store.write_part("s", rows)
    flip(store.part_paths()[0])
    assert store.cell_status().damaged
    store.write_part("s", rows)
    assert not store.cell_status().damaged
    assert read_rows(store) == rows


def test_files_that_are_no_parts_are_no_damage(store):
    store.write_part("s", rows_of(CELL))
    folder = store.part_paths()[0].parent
    (folder / ".s.parquet.abc.partial").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    assert store.cell_status().damaged == ()
    assert len(store.part_paths()) == 1
