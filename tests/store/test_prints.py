"""64 bits of each id of a cell: tables that share a cell are always seen to, those that do not as good as always."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from helpers_store import QUICK, make_row, planned_cells
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_unlisted import results, store_of

from stitchgrid.records import digest
from stitchgrid.store.id_hashes import id_hashes, meet
from stitchgrid.store.schemas import TEXT

CELLS = list(planned_cells())
USUAL = st.integers(0, 12).map(lambda number: digest(str(number)))
IDS = st.lists(st.one_of(USUAL, USUAL, st.sampled_from(["", "odd", "x" * 31, "x" * 32, "x" * 33, "\u0663" * 16, None])))


@settings(max_examples=200, **QUICK)
@given(one=IDS, other=IDS, begin=st.integers(0, 3), cut=st.integers(0, 6))
@example(one=[digest("1"), "odd"], other=[digest("1")], begin=0, cut=0)  # beside ids of another length
@example(one=[digest("1"), digest("2")], other=[digest("1")], begin=1, cut=0)  # an array that begins amid another
def test_tables_meet_where_they_share_an_id(one, other, begin, cut):
    whole = pa.array(one, TEXT)
    mine = whole[begin:]
    left = id_hashes(pa.chunked_array([mine[:cut], mine[cut:]], TEXT))
    right = id_hashes(pc.dictionary_encode(pa.array(other, TEXT)))
    assert left.tolist() == id_hashes(mine).tolist() == sorted(set(left.tolist()))
    assert len(left) == len(set(one[begin:]))
    assert meet(left, right) == meet(right, left) == bool(set(one[begin:]) & set(other))


@pytest.mark.parametrize("compacted", [True, False])
def test_a_merge_sees_what_is_there_beside_ids_that_are_not_of_this_version(tmp_path, compacted):
    stores = [store_of(tmp_path / name, "s", CELLS[:3], compacted=compacted) for name in "ab"]
    odd = [make_row(CELLS[0], "loss", 0.5, cell_id="odd")]
    stores[1].write_part("odd", odd)
    stores[1].compact()
    before = results(tmp_path / "a")
    stores[0].merge([stores[1]])
    assert results(tmp_path / "a") == before
    assert stores[0].read_parts().table.num_rows == sum(len(cell.metrics) for cell in CELLS[:3]) + 1
