"""Tables as text."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stitchgrid.catalog.formats import render
from stitchgrid.catalog.output_formats import OUTPUT_FORMATS
from stitchgrid.errors import QueryError
from stitchgrid.printable import as_markdown, in_one_line

TABLE = pa.table(
    {
        "name": ["a|b", None, "[red]x[/red]"],
        "value": [0.1234567891, None, float("nan")],
        "count": [1, 20, None],
        "flags": pa.array([["x", "y"], [], None], pa.list_(pa.string())),
        "good": [True, False, None],
    }
)
EMPTY = TABLE.slice(0, 0)

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(cells, st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_machine_formats_lose_nothing(rows):
    schema = pa.schema([("a", pa.string()), ("b", pa.float64()), ("c", pa.int64())])
    table = pa.Table.from_pylist([dict(zip("abc", row, strict=True)) for row in rows], schema=schema)
    read = list(csv.reader(io.StringIO(render(table, "csv"), newline="")))
    assert read[0] == ["a", "b", "c"]
    assert [(a, float(b), int(c)) for a, b, c in read[1:]] == rows
    assert pq.read_table(pa.BufferReader(render(table, "parquet"))) == table
    finite = [row for row in rows if abs(row[1]) != float("inf")]
    objects = json.loads(render(table, "json"))
    assert [tuple(o.values()) for o in objects if o["b"] is not None] == finite


def test_null_differs_from_text_and_zero_in_every_format():
    table = pa.table({"text": ["-", "", None], "value": [0.0, 1.0, None]})
    shown = [line.split() for line in render(table, "table").splitlines()[2:5]]
    assert shown == [['"-"', "0"], ['""', "1"], ["-", "-"]]
    assert render(table, "csv").splitlines()[-1] == ","
    assert json.loads(render(table, "json"))[-1] == {"text": None, "value": None}
    assert render(table, "markdown").splitlines()[-1] == "| - | - |"


def test_a_table_shows_text_as_it_is_and_never_folds_without_a_width():
    text = render(pa.table({"long": ["[red]x[/red] " * 40]}), "table")
    assert "[red]x[/red] " * 39 in text
    assert "(1 row)" in text
    assert max(map(len, render(pa.table({"long": ["x" * 300]}), "table", width=60).splitlines())) <= 60


def test_numbers_lie_on_the_right_and_a_row_has_the_lines_of_its_longest_cell():
    table = pa.table({"name": ["a\nbc", "\N{CJK UNIFIED IDEOGRAPH-6F22}x"], "n": [1, None], "last\nword": ["", "e"]})
    assert render(table, "table").splitlines() == [
        "           last",
        "name   n   word",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 15,
        'a      1   ""',
        "  bc",
        "\N{CJK UNIFIED IDEOGRAPH-6F22}x    -   e",
        "",
        "(2 rows)",
    ]


def test_a_table_cannot_steer_the_terminal():
    text = render(pa.table({"\x1b[31mhead": ["\x1b]0;title\x07 body\nline"]}), "table")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "body\n" in text


def test_numbers_are_short_for_people_and_whole_for_programs():
    assert "0.123457" in render(TABLE, "table")
    assert "0.1234567891" in render(TABLE, "csv")
    assert "0.1234567891" in render(TABLE, "json")


def test_csv_and_json_write_lists_and_truth_values():
    lines = render(TABLE, "csv").splitlines()
    assert lines[1] == 'a|b,0.1234567891,1,"[""x"", ""y""]",true'
    assert json.loads(render(TABLE, "json"))[2] == {
        "name": "[red]x[/red]",
        "value": None,  # JSON has no NaN
        "count": None,
        "flags": None,
        "good": None,
    }


def test_json_writes_what_duckdb_can_return():
    when = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    values = {"a": Decimal("3"), "b": Decimal("1.5"), "c": when, "d": when.date(), "e": b"\x01", "f": {"g": [1, None]}}
    assert json.loads(render(pa.Table.from_pylist([values]), "json")) == [
        {"a": 3, "b": 1.5, "c": "2026-01-02T03:04:00+00:00", "d": "2026-01-02", "e": "01", "f": {"g": [1, None]}}
    ]


def test_markdown_escapes_what_would_break_the_table():
    table = pa.table({"a|b": ["x|y", "two\nlines", "back\\slash"], "n": [1, 2, 3]})
    assert render(table, "markdown").splitlines() == [
        "| a\\|b | n |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
        "| two<br>lines | 2 |",
        "| back\\\\slash | 3 |",
    ]


@pytest.mark.parametrize("format", OUTPUT_FORMATS)
def test_an_empty_table_still_has_its_columns(format):
    text = render(EMPTY, format)
    if format == "json":
        assert json.loads(text) == []
    else:
        assert b"value" in text if isinstance(text, bytes) else "value" in text


def test_an_unknown_format_is_refused_with_the_nearest():
    with pytest.raises(QueryError, match=r"no output format 'jsn'; did you mean 'json'\? known: csv, json, markdown"):
        render(TABLE, "jsn")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[click](javascript:alert(1))", "\\[click\\](javascript:alert(1))"),
        ("![](http://127.0.0.1/seen)", "\\!\\[\\](http&#58;//127.0.0.1/seen)"),
        ("<javascript:alert(1)>", "&lt;javascript:alert(1)&gt;"),
        ("[x]: javascript:alert(1)", "\\[x\\]: javascript:alert(1)"),
        ("&#60;b&#62;", "&amp;\\#60;b&amp;\\#62;"),
        ("\\[x](y)", "\\\\\\[x\\](y)"),
        ("`a` | b", "\\`a\\` \\| b"),
    ],
)
def test_markdown_makes_no_tag_and_no_link_of_what_is_in_a_cell(text, shown):
    head, _, row = render(pa.table({text: [text]}), "markdown").splitlines()
    assert row == f"| {shown} |"
    assert head == row


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_text_is_a_formula_for_spreadsheets(start):
    table = pa.table({f"{start}head": [f"{start}1+cmd|' /C calc'!A0", None], "n": [-1.5, 2.0], "safe": ["a=b", "1"]})
    [head, first, second] = csv.reader(io.StringIO(render(table, "spreadsheet"), newline=""))
    shown = in_one_line(start)
    assert head == [f"'{shown}head", "n", "safe"]
    assert first == [f"'{shown}1+cmd|' /C calc'!A0", "-1.5", "a=b"]
    assert second == ["", "2.0", "1"]
    assert "'" + start not in render(table, "csv"), "which loses nothing"


@pytest.mark.parametrize("start", ["=", '"=', '""@', "\uff0b"])
def test_no_text_is_a_formula_where_semicolons_separate_cells(start):
    text = f"a;{start}1+cmd|' /C calc'!A0;b"
    [row] = csv.reader(io.StringIO(render(pa.table({"a": [text]}), "spreadsheet").split("\n", 1)[1]))
    assert row == [text.replace(";", ";'", 1)]
    [row] = csv.reader(io.StringIO(render(pa.table({"a": ["a; =1;b=c;"]}), "spreadsheet").split("\n", 1)[1]))
    assert row == ["a; =1;b=c;"], "no formula"


FORGING = "net\nForged: all sound\r\x1b[2J\u202e"
IN_ONE_LINE = "net\\nForged: all sound\ufffd\ufffd[2J\ufffd"


def test_a_spreadsheet_has_a_row_in_one_line_and_nothing_that_steers():
    table = pa.table({FORGING: [FORGING]})
    assert render(table, "spreadsheet") == f"{IN_ONE_LINE}\n{IN_ONE_LINE}\n"
    assert list(csv.reader(io.StringIO(render(table, "csv"), newline=""))) == [[FORGING], [FORGING]]


@pytest.mark.parametrize("width", [None, 80])
@pytest.mark.parametrize("rows", [1, 3])
def test_no_text_of_a_table_begins_where_a_row_does(width, rows):
    text = render(pa.table({"a": [FORGING] * rows, "b": list(range(rows))}), "table", width=width)
    assert "Forged" in text
    assert not [line for line in text.splitlines() if line.startswith("Forged")]


UNUSUAL = (
    "date 'infinity'",
    "date '-infinity'",
    "timestamp 'infinity'",
    "timestamptz 'infinity'",
    "date '290000-01-01'",
    "interval 1 month",
    "interval 1000000 years",
    "union_value(a := 1)",
    "time '24:00:00'",
    "1e308::double * 10",
    "map {'a': 1}",
    "map {[1]: 2}",
    "{'a': date 'infinity'}",
    "[interval 1 day]",
    "uuid()",
    "'101'::bit",
    "170141183460469231731687303715884105727::hugeint",
    "'a'::enum('a', 'b')",
    "null",
)


@pytest.mark.parametrize("format", OUTPUT_FORMATS)
@pytest.mark.parametrize("value", UNUSUAL)
def test_a_value_is_written_or_refused_in_words(value, format):
    table = duckdb.sql(f"select {value} as v").to_arrow_table()
    try:
        said = render(table, format)
    except QueryError as problem:
        said = str(problem)
        assert said.startswith(f"the result cannot be written as {format} (")  # some are, some are not
    assert said


def test_what_cannot_be_written_is_said():
    infinite = duckdb.sql("select date 'infinity' as v").to_arrow_table()
    with pytest.raises(QueryError, match=r"cannot be written as csv \(OverflowError: .*\); select the column as text"):
        render(infinite, "csv")
    interval = duckdb.sql("select interval 1 month as v").to_arrow_table()
    with pytest.raises(QueryError, match=r"cannot be written as parquet \(ArrowNotImplementedError: "):
        render(interval, "parquet")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://evil.example", "https&#58;//evil.example"),
        ("www.evil.example", "www&#46;evil.example"),
        ("me@evil.example", "me&#64;evil.example"),
        ("__b__ _i_ $x$ layer_1", r"\_\_b\_\_ \_i\_ \$x\$ layer_1"),
    ],
)
def test_markdown_makes_no_links_and_no_emphasis_of_bare_text(text, shown):
    assert as_markdown(text) == shown
