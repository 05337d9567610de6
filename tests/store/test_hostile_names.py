"""Names and sizes that a store may not choose: of logs, of what is set aside, on lines and in columns."""

import json
import os
import re
import shutil

import helpers_store
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_store import FAILED, PENDING, SWEEP, make_synthetic_store, write_synthetic_store
from hypothesis import given
from hypothesis import strategies as st

from stitchgrid.catalog.catalog import distinct
from stitchgrid.cli import cli
from stitchgrid.printable import shortened
from stitchgrid.store.logs import LONGEST

UNIT = "0123abcd"
LOGS = f"sweeps/{SWEEP}/logs/{UNIT}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = make_synthetic_store(tmp_path_factory.mktemp("made") / "grid").store
    store.write_log(SWEEP, UNIT, "all went well\n")
    return store


@pytest.fixture
def grid(made, tmp_path, monkeypatch):
    shutil.copytree(made.uri, tmp_path / "grid")
    return tmp_path / "grid"


def run(grid, *arguments, codes=(0,)):
    result = CliRunner().invoke(cli, [*arguments, "--store", str(grid)])
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert result.exit_code in codes, (arguments, result.output)
    return result


def damaged_part(grid):
    path = min((grid / "parts/v1").glob("*.parquet"))
    path.write_text("damaged")
    return path.relative_to(grid)


# Logs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "is_sound"), [(LONGEST, True), (LONGEST + 1, False)])
def test_a_log_that_is_not_shown_is_damage(grid, size, is_sound):
    (grid / LOGS / "002.log").write_bytes(b"x" * size)
    shown = run(grid, "logs", SWEEP, UNIT, codes=[0 if is_sound else 1]).output
    assert "all went well" in shown
    assert ("x" * 1000 in shown) is is_sound
    found = run(grid, "check", codes=[0 if is_sound else 1]).output
    assert (f"{LOGS}/002.log" in found) is not is_sound
    run(grid, "check", "--repair")
    assert (grid / "set-aside" / LOGS / "002.log").exists() is not is_sound
    run(grid, "logs", SWEEP, UNIT)
    run(grid, "check")


def test_a_link_to_a_long_file_is_no_log(grid):
    (grid / "long").write_bytes(b"x" * (LONGEST + 1))
    (grid / LOGS / "002.log").symlink_to("../../../../long")
    run(grid, "logs", SWEEP, UNIT, codes=[1])
    run(grid, "check", codes=[1])
    run(grid, "check", "--repair")
    run(grid, "check")
    assert (grid / "long").exists()


# What is set aside ----------------------------------------------------------------------------------------------------


def put(path, what, outside):
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "a file":
        path.write_text("mine")
    elif what == "a link":
        path.symlink_to(outside)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("what", ["a file", "a link", "a pipe"])
@pytest.mark.parametrize("blocked", ["set-aside/parts", "set-aside/parts/v1"])
def test_what_is_in_the_place_of_a_folder_is_named_and_another_taken(grid, tmp_path, what, blocked):
    outside = tmp_path / "outside"
    outside.mkdir()
    part = damaged_part(grid)
    put(grid / blocked, what, outside)
    said = run(grid, "check", "--repair").output
    aside = f"set-aside/{part}".replace(blocked, f"{blocked}.2")
    assert f"not used: {blocked}: {what} is in the place of a folder" in said
    assert f"set aside as {aside}" in said
    assert (grid / aside).read_text() == "damaged"
    assert list(outside.iterdir()) == []
    run(grid, "check")
    if what == "a file":
        assert (grid / blocked).read_text() == "mine"


@pytest.mark.parametrize("what", ["a file", "a link", "a pipe"])
def test_what_is_in_the_place_of_the_folder_itself_makes_room(grid, tmp_path, what):
    outside = tmp_path / "outside"
    outside.mkdir()
    part = damaged_part(grid)
    put(grid / "set-aside", what, outside)
    assert re.search("^DAMAGED  set-aside$", run(grid, "check", codes=[1]).output, re.MULTILINE)
    said = run(grid, "check", "--repair").output
    assert ("set aside as set-aside.2" if what == "a file" else f"set-aside was {what}, and was deleted") in said
    assert (grid / "set-aside" / part).read_text() == "damaged"
    assert list(outside.iterdir()) == []
    run(grid, "check")
    if what == "a file":
        assert (grid / "set-aside.2").read_text() == "mine"


@pytest.mark.parametrize("letter", ["s", "\N{GREEK SMALL LETTER ALPHA}"])
def test_a_name_as_long_as_names_get_is_set_aside(grid, letter):
    end = f"-{'0' * 32}-1.parquet"
    name = letter * ((255 - len(end)) // len(letter.encode())) + end
    for _ in range(3):
        (grid / "parts/v1" / name).write_text(f"damaged {_}")
        run(grid, "check", codes=[1] if letter == "s" else [0, 1])
        run(grid, "check", "--repair")
    run(grid, "check")
    if letter == "s":
        assert len(list((grid / "set-aside/parts/v1").iterdir())) == 3


# Lines ----------------------------------------------------------------------------------------------------------------

FORGED = "12 files verified: all sound"


def forged(output):
    return [line for line in output.splitlines() if line.startswith(FORGED)]


@pytest.mark.parametrize("folder", ["parts/v1", "snapshots/v1", "artefacts/network", f"sweeps/{SWEEP}/0001", LOGS])
def test_a_name_forges_no_line_of_a_check(grid, folder):
    (grid / folder).mkdir(parents=True, exist_ok=True)
    (grid / folder / f"x\n{FORGED}").write_text("x")
    (grid / folder / f"x\n{FORGED}\n.parquet").write_text("x")
    (grid / f"y\n{FORGED}").symlink_to("/etc/hostname")
    for arguments in (["check"], ["check", "--repair"], ["gc"]):
        assert forged(run(grid, *arguments, codes=[0, 1]).output) == []
    assert f"\\n{FORGED}" in run(grid, "check", codes=[0, 1]).output or not folder.startswith("parts")


def test_a_key_forges_no_line_of_a_check(grid):
    plan = grid / f"sweeps/{SWEEP}/0001/plan.json"
    found = json.loads(plan.read_text())
    del found["digest"]
    found["num_rows"][f"x\n{FORGED}\n"] = "none"
    plan.write_text(json.dumps(found))
    assert forged(run(grid, "check", codes=[1]).output) == []


def test_a_name_forges_no_line_of_what_was_left_out(grid):
    name = f"x\nError: {FORGED}\n-{'0' * 32}-1.parquet"
    (grid / "parts/v1" / name).write_text("damaged")
    said = run(grid, "sql", "select 1 as one")
    assert "Error" not in [line.partition(":")[0] for line in said.output.splitlines()]


@pytest.fixture
def forging(tmp_path, monkeypatch):
    """Make a store in which the names of networks and layers, and a remark, have lines that look like answers."""
    name = f"net\n{FORGED}"
    models, layers = (f"{name}/0", f"{name}/1"), ("conv1", f"block1\n{FORGED}", "block2")
    monkeypatch.setattr(helpers_store, "MODELS", models)
    monkeypatch.setattr(helpers_store, "LAYERS", layers)
    for what, (source, _, target, _) in {"FAILED": FAILED, "PENDING": PENDING}.items():
        pair = (models[int(source[-1])], "block2", models[int(target[-1])], "conv1")
        monkeypatch.setattr(helpers_store, what, pair)
    write_synthetic_store(tmp_path)
    (tmp_path / f"sweeps/{SWEEP}/logs/x\n{FORGED}").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 0),
        (["answer"], 0),
        (["answer", "--target", "none"], 2),
        (["logs", SWEEP], 0),
        (["query", "networks"], 0),
        (["sql", "select source_model from results"], 0),
        (["sql", "select source_model from results", "--format", "spreadsheet"], 0),
        (["sql", "select source_model from results", "--format", "markdown"], 0),
        (["diff", SWEEP, SWEEP], 0),
    ],
)
def test_a_name_of_a_network_or_layer_forges_no_line(forging, arguments, code):
    said = run(forging, *arguments, codes=[code]).output
    assert forged(said) == []
    assert FORGED in said or arguments[0] in ("diff", "logs")


# Columns --------------------------------------------------------------------------------------------------------------

SQL = "select 1 as a, 2 as a, 3 as b, 4 as a"


def test_columns_of_one_name_are_told_apart_in_every_format(grid, tmp_path):
    names, row = ["a", "a_1", "b", "a_2"], [1, 2, 3, 4]
    assert json.loads(run(grid, "sql", "--format", "json", SQL).output) == [dict(zip(names, row, strict=True))]
    assert run(grid, "sql", "--format", "csv", SQL).output == "a,a_1,b,a_2\n1,2,3,4\n"
    assert run(grid, "sql", "--format", "markdown", SQL).output.splitlines()[0] == "| a | a_1 | b | a_2 |"
    out = tmp_path / "out.parquet"
    run(grid, "sql", "--format", "parquet", "--out", str(out), SQL)
    assert pq.read_table(out).to_pydict() == {name: [value] for name, value in zip(names, row, strict=True)}


@given(st.lists(st.sampled_from(["a", "a_1", "a_2", "a_1_1", "b"])))
def test_distinct_names_are_distinct(names):
    found = distinct(names)
    assert len(set(found)) == len(found) == len(names)
    assert all(new == old or new.startswith(f"{old}_") for new, old in zip(found, names, strict=True))
    assert [found[names.index(name)] for name in names] == names  # the first of a name keeps it
    assert pa.table({name: [1] for name in found}).column_names == found


# Messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "x" * 1_000_000],
        ["status", "x" * 1_000_000],
        ["sql", f"select {'x' * 100_000}"],
        ["logs", SWEEP, "x" * 1_000_000],
    ],
)
def test_no_message_is_longer_than_anybody_reads(grid, arguments):
    output = run(grid, *arguments, codes=[1, 2]).output
    assert len(output) < 20_000
    assert "characters)" in output


def test_a_long_key_is_not_repeated(grid):
    plan = grid / f"sweeps/{SWEEP}/0001/plan.json"
    found = json.loads(plan.read_text())
    del found["digest"]
    found["num_rows"]["x" * 10_000_000] = "none"
    plan.write_text(json.dumps(found))
    for arguments in (["check"], ["sql", "select 1 as one"], ["status"]):
        assert len(run(grid, *arguments, codes=[0, 1, 2]).output) < 20_000


@given(st.text(), st.integers(min_value=3, max_value=40))
def test_shortened_text_keeps_its_lines(text, longest):
    found = shortened(text, longest)
    assert len(found.split("\n")) == len(text.split("\n"))
    for new, old in zip(found.split("\n"), text.split("\n"), strict=True):
        assert new == old if len(old) <= longest else (new.startswith(old[: longest - longest // 3]))
