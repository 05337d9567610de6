"""Tables at a terminal: they keep to its width, one line a row, and tell once what all rows share."""

import json
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from stitchgrid.catalog.formats import render
from stitchgrid.cli.files_out import format_of

ROWS = pa.table(
    {
        "sweep": ["quickstart"] * 50,
        "layer": [f"encoder.layers.encoder_layer_{k}" for k in range(50)],
        "params": [json.dumps({"pool": "mean", "rank": k % 7}) for k in range(50)],
        "value": [k / 7 for k in range(50)],
        "digest": [f"{k:032x}" for k in range(50)],
    }
)

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
COLUMNS = st.one_of(
    st.lists(TEXTS, min_size=3, max_size=3),
    st.lists(st.floats(), min_size=3, max_size=3),
    st.lists(st.none() | st.integers(-(2**62), 2**62), min_size=3, max_size=3),
)


@given(st.lists(COLUMNS, min_size=1, max_size=12), st.integers(60, 200))
@settings(max_examples=150, deadline=None)
def test_no_line_is_wider_than_the_terminal(columns, width):
    table = pa.table({f"column_{k}": column for k, column in enumerate(columns)})
    for line in render(table, "table", width=width).splitlines():
        assert cell_len(line) <= width


def test_rows_are_lines_and_what_they_share_is_told_below():
    lines = render(ROWS.slice(0, 5), "table", width=100).splitlines()
    assert lines[0].split() == ["layer", "params", "value", "digest"]
    assert [line.split()[1] for line in lines[2:7]] == [f"rank={k}" for k in range(5)]
    assert lines[8] == "In all rows: sweep quickstart"
    assert lines[-1] == "(5 rows)"


def test_digests_are_as_short_as_tells_them_apart():
    lines = render(ROWS.slice(0, 3), "table", width=120).splitlines()[2:5]
    assert len({line.split()[-1] for line in lines}) == 3


def test_the_first_rows_are_shown_unless_all_are_asked_for():
    some = render(ROWS, "table", width=100).splitlines()
    assert some[-1] == "(40 of 50 rows; --all shows all of them, --out FILE.csv writes them to a file)"
    assert "encoder_layer_39" in "".join(some)
    assert "encoder_layer_40" not in "".join(some)
    every = render(ROWS, "table", width=100, every=True).splitlines()
    assert (every[-1], sum("encoder_layer_" in line for line in every)) == ("(50 rows)", 50)


def test_columns_that_do_not_fit_are_named():
    wide = pa.table({f"column_{k}": [f"{'x' * 20}{row}" for row in range(20)] for k in range(9)})
    text = render(wide, "table", width=80)
    assert text.splitlines()[0].split() == ["column_0", "column_1", "column_2", "column_3", "column_4"]
    assert "a file: column_5, column_6, column_7, column_8" in " ".join(text.split())


def test_few_rows_that_are_too_wide_are_shown_as_records():
    wide = pa.table({f"column_{k}": [f"{'x' * 20}{row}" for row in range(2)] for k in range(12)})
    lines = render(wide, "table", width=80).splitlines()
    assert lines[0] == f"column_0   {'x' * 20}0"
    assert lines[12:14] == ["", f"column_0   {'x' * 20}1"]


def test_names_are_cut_in_the_middle():
    table = pa.table({"layer": [f"{'a' * 30}{k}{'b' * 30}_{k}" for k in range(2)]})
    for k, line in enumerate(render(table, "table", width=20).splitlines()[2:4]):
        assert re.fullmatch(rf"a+…b+_{k}", line)


def test_one_row_of_many_lines_keeps_them():
    text = render(pa.table({"plan": ["first\nsecond"]}), "table", width=80)
    assert text.splitlines()[:2] == ["plan  first", "  second"]


@pytest.mark.parametrize(
    ("form", "out", "found"),
    [
        (None, None, "table"),
        (None, "a.csv", "csv"),
        (None, "~/x/a.JSON", "json"),
        (None, "a.md", "markdown"),
        (None, "a.parquet", "parquet"),
        (None, "a.txt", "table"),
        ("json", "a.csv", "json"),
    ],
)
def test_the_suffix_of_a_file_decides_its_format(form, out, found):
    assert format_of(form, out) == found
