"""Stores that somebody else made: links, pipes, odd names; nothing is read, written or deleted outside of them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_flow import in_a_process
from helpers_store import SWEEP, make_synthetic_store, sweeps_like_it

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import StoreError
from stitchgrid.store import Store
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.layout import HIGHEST

NO_PART = f"parts/v1/x-{'0' * 32}-1.parquet"
UNIT = "0123abcd"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a store with a log and a heartbeat, and beside it a folder that nothing may touch or read."""
    tmp_path = tmp_path_factory.mktemp("made")
    store = make_synthetic_store(tmp_path / "grid").store
    store.write_log(SWEEP, UNIT, "all went well\n")
    store.write_heartbeat(SWEEP, {"at": "2026-11-24T00:00:00+00:00", "running": []})
    store.write_artefact("network", "k" * 32, b"weights")
    outside = tmp_path / "outside"
    (outside / "deeper").mkdir(parents=True)
    for name in ("a.parquet", "000001.json", "001.log", f"y-{'1' * 32}-1.parquet", "deeper/secret"):
        (outside / name).write_text("SECRET")
    return tmp_path


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def grid(place):
    return place / "grid"


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


COMMANDS = (
    ["status"],
    ["sql", "select count(*) as n from results"],
    ["logs", SWEEP, UNIT],
    ["check"],
    ["compact"],
    ["check", "--repair"],
    ["compact"],
    ["sql", "select count(*) as n from cells"],
)


def run(grid, *arguments, codes=(0, 1, 2)):
    result = CliRunner().invoke(cli, [*map(str, arguments), "--store", str(grid)])
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert result.exit_code in codes, (arguments, result.output)
    assert "SECRET" not in result.output, arguments
    return result


@contextmanager
def untouched(folder):
    before = tree(folder)
    yield
    assert tree(folder) == before


def drive(place, monkeypatch):
    """Run every command on a store; what lies beside it stays as it is, and nothing of it is shown."""
    monkeypatch.chdir(place)
    with untouched(place / "outside"):
        for command in COMMANDS:
            run(place / "grid", *command)
    assert not any(b"SECRET" in (content or b"") for content in tree(place / "grid").values())
    assert Store.open(place / "grid").check().damage == ()


def values(grid):
    with Catalog(Store.open(grid)) as catalog:
        rows = catalog.query("select cell_id, metric, value from results").to_pylist()
    return {(row["cell_id"], row["metric"]): row["value"] for row in rows}


def some_part(grid):
    return min((grid / "parts/v1").glob("*.parquet"))


def replaced(path, target):
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(path.name + ".moved"))
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


# Links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["../../../outside/a.parquet", "../../../nothing", "../../../outside", "/dev/zero"])
def test_a_part_that_is_a_link_is_neither_read_nor_copied(place, grid, target, monkeypatch):
    (grid / NO_PART).symlink_to(target)
    found = run(grid, "check", codes=[1])
    assert NO_PART in found.output
    assert "left out" in run(grid, "query", "progress", codes=[0]).stderr
    drive(place, monkeypatch)
    assert (grid / "set-aside" / NO_PART).is_symlink()  # the link itself


FOLDERS = (
    "parts/v1",
    "parts",
    "snapshots/v1",
    "snapshots/v1/data",
    "snapshots",
    "sweeps",
    f"sweeps/{SWEEP}",
    f"sweeps/{SWEEP}/0001",
    f"sweeps/{SWEEP}/journal",
    f"sweeps/{SWEEP}/journal/launch-1",
    f"sweeps/{SWEEP}/claims",
    f"sweeps/{SWEEP}/logs",
    f"sweeps/{SWEEP}/logs/{UNIT}",
    "artefacts",
    "artefacts/network",
    "set-aside",
)


#: Folders without which all else can be read, and others within these.
BESIDE = (*(f"sweeps/{SWEEP}/{name}" for name in ("journal", "claims", "logs")), "artefacts")
WITHIN = (f"sweeps/{SWEEP}/journal/launch-1", f"sweeps/{SWEEP}/logs/{UNIT}", "artefacts/network")


@pytest.mark.parametrize(
    ("folders", "is_inside"),
    [
        *(([folder], False) for folder in FOLDERS if folder not in (*BESIDE, *WITHIN)),
        (BESIDE, False),
        (WITHIN, False),
        *(([folder], True) for folder in ("parts/v1", "sweeps", "set-aside")),
    ],
)
def test_a_folder_that_is_a_link_is_not_followed(place, grid, folders, is_inside, monkeypatch):
    if is_inside:
        (grid / "other").mkdir()
        (grid / "other" / f"y-{'1' * 32}-1.parquet").write_text("mine")
    for folder in folders:
        replaced(grid / folder, grid / "other" if is_inside else place / "outside")
    (grid / NO_PART).parent.mkdir(parents=True, exist_ok=True)
    if not (grid / NO_PART).parent.is_symlink() and not (grid / "parts").is_symlink():
        (grid / NO_PART).write_text("damaged")
    assert {one.file for one in Store.open(grid).check().damage} >= set(folders)
    drive(place, monkeypatch)
    if is_inside:
        assert (grid / "other" / f"y-{'1' * 32}-1.parquet").read_text() == "mine"


def test_nothing_is_set_aside_through_a_link(place, grid):
    (grid / "set-aside").mkdir()
    (grid / "set-aside/parts").symlink_to(place / "outside")
    some_part(grid).write_text("damaged")
    with untouched(place / "outside"):
        found = run(grid, "check", "--repair", codes=[0])
    assert "set aside as set-aside/parts.2/v1/" in found.stdout
    assert "set-aside/parts: a link is in the place of a folder" in found.stdout


def test_compaction_deletes_nothing_through_a_link(place, grid):
    (place / "parts").mkdir()
    for part in (grid / "parts/v1").iterdir():
        part.rename(place / "parts" / part.name)
    (grid / "parts/v1").rmdir()
    (grid / "parts/v1").symlink_to(place / "parts")
    with untouched(place / "parts"):
        found = run(grid, "compact")
        assert "parts/v1" in found.stderr
        assert "parts/v1" in run(grid, "status", codes=[0]).stderr
        assert values(grid) == {}


FILES = (
    "store.json",
    f"sweeps/{SWEEP}/0001/job.json",
    f"sweeps/{SWEEP}/0001/plan.json",
    f"sweeps/{SWEEP}/0001/code.json",
    f"sweeps/{SWEEP}/0001/cells.parquet",
    f"sweeps/{SWEEP}/heartbeat.json",
    f"sweeps/{SWEEP}/journal/launch-1/000001.json",
    f"sweeps/{SWEEP}/claims/000001.json",
    f"sweeps/{SWEEP}/logs/{UNIT}/001.log",
    f"artefacts/network/{'k' * 32}.manifest",
    "snapshots/v1/000001.json",
)


#: Files whose damage costs no other: one store may lack all of them.
APART = FILES[5:]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        *(([name], "pipe") for name in FILES[:5]),
        (APART, "pipe"),
        *((names, what) for names in ([FILES[0]], [FILES[3]], FILES[6::3]) for what in ("link", "socket", "folder")),
    ],
)
def test_a_file_that_is_none_is_not_opened(place, grid, names, what, monkeypatch):
    for path in (grid / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if what == "link":
            path.symlink_to(place / "outside" / "000001.json")
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            monkeypatch.chdir(path.parent)  # names of sockets are short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
    if names == ["store.json"]:
        assert "no store at" in run(grid, "check", codes=[1]).output
        return
    drive(place, monkeypatch)


def test_a_link_to_a_file_of_the_store_is_read(place, grid):
    before = values(grid)
    part = some_part(grid)
    (grid / "same").mkdir()
    part.rename(grid / "same" / "content")
    part.symlink_to("../../same/content")
    assert values(grid) == before
    assert Store.open(grid).check().damage == ()
    assert run(grid, "compact", codes=[0]).output.startswith("merged 4 parts")
    assert values(grid) == before
    assert (grid / "same" / "content").is_file()
    assert not part.is_symlink()  # the link was deleted


def test_a_store_may_be_reached_through_a_link(place, grid):
    (place / "there").symlink_to(grid)
    assert values(place / "there") == values(grid)
    assert run(place / "there", "check", codes=[0]).output.endswith("all sound\n")
    Store.open(place / "there", create=True).write_log(SWEEP, UNIT, "again")


def test_nothing_is_written_through_a_link(place, grid):
    files = LocalFiles(grid)
    (grid / "out").symlink_to(place / "outside")
    (grid / "file").symlink_to(place / "outside" / "a.parquet")
    with untouched(place / "outside"):
        for write in (files.replace, files.write_once):
            with pytest.raises(StoreError, match=r"cannot write out/x .*out is a link"):
                write("out/x", b"1")
        with pytest.raises(StoreError, match=r"cannot delete out/a.parquet .*out is a link"):
            files.delete("out/a.parquet")
        with pytest.raises(StoreError, match=r"cannot move out/a.parquet"):
            files.move("out/a.parquet", "a")
        with pytest.raises(StoreError, match=r"cannot write file .*a link that leads to no file of the store"):
            files.write_once("file", b"1")
        files.replace("file", b"1")  # the link gives way
        assert files.read("file") == b"1"


# What makes a reader wait ---------------------------------------------------------------------------------------------


def test_nobody_waits_for_a_pipe(grid):
    for name in (NO_PART, f"sweeps/{SWEEP}/heartbeat.json", f"sweeps/{SWEEP}/claims/000001.json"):
        (grid / name).parent.mkdir(exist_ok=True)
        (grid / name).unlink(missing_ok=True)
        os.mkfifo(grid / name)
    for code, said, _ in in_a_process(grid, (["status"], ["query", "progress"], ["check"], ["check", "--repair"])):
        assert code in (0, 1), said
        assert "Traceback" not in said


# A claim's process ----------------------------------------------------------------------------------------------------

CLAIM = {"launch": "l", "user": "u", "host": "h", "process": "p/1", "at": "2026-11-24T00:00:00+00:00"}
PIDS = ["../some/where", "/etc", "a\0b", "", [1], None, True, 1.0, 1.5, -1, 0, 2**31, 10**5000, {"a": 1}, "1"]


def test_a_claim_names_a_process_by_its_number(place, grid, monkeypatch):
    os.mkfifo(place / "stat")
    here = Store.open(grid).leases.claim(SWEEP, "l")  # with a process of this machine
    Store.open(grid).write_heartbeat(SWEEP, {"at": here.at, "launch": "l", "running": []})
    files = [f"sweeps/{sweep}/claims/000001.json" for sweep in sweeps_like_it(grid, len(PIDS))]
    for file, pid in zip(files, PIDS, strict=True):
        sys.set_int_max_str_digits(0)
        text = json.dumps({**CLAIM, "pid": pid, "process": here.process, "at": here.at})
        sys.set_int_max_str_digits(4300)
        (grid / file).write_text(text)
    found = run(grid, "check", codes=[1]).output
    assert [file for file in files if f"DAMAGED  {file}\n" not in found] == []
    monkeypatch.chdir(place)
    for command in (["status"], ["query", "progress"], ["check", "--repair"]):
        run(grid, *command)
    assert Store.open(grid).check().damage == ()


def test_every_field_of_a_claim_is_looked_at(grid):
    fields = [
        *((key, None) for key in ("launch", "user", "host", "process", "at", "pid")),
        *(("user", value) for value in (5.0, [], {}, float("nan"), "x" * 5000)),
    ]
    sweeps = sweeps_like_it(grid, len(fields))
    for sweep, (key, value) in zip(sweeps, fields, strict=True):
        (grid / f"sweeps/{sweep}/claims").mkdir()
        (grid / f"sweeps/{sweep}/claims/000001.json").write_text(json.dumps({**CLAIM, "pid": 1, key: value}))
    found = run(grid, "check", codes=[1]).output
    for sweep, (key, value) in zip(sweeps, fields, strict=True):
        _, said = found.split(f"DAMAGED  sweeps/{sweep}/claims/000001.json\n")
        assert key in said.split("\n")[0] or value != value  # NaN is no JSON
    run(grid, "status", codes=[0])


def test_a_stored_job_that_is_none_is_answered_with_words(grid):
    plan = grid / f"sweeps/{SWEEP}/0001/plan.json"
    of_earlier = {key: value for key, value in json.loads(plan.read_text()).items() if key not in ("job", "digest")}
    plan.write_text(json.dumps(of_earlier))  # as of an earlier version, which has no digest of the job
    for job in ({"base": "."}, {"base": 5}, {"base": "a\0b", "data": 1}, {"base": ".", "data": {}, "matchers": [1]}):
        (grid / f"sweeps/{SWEEP}/0001/job.json").write_text(json.dumps(job))
        assert "the stored job" in run(grid, "resume", SWEEP, "--address", "none", codes=[2]).output


@pytest.mark.parametrize("at", ["2026-11-24T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "x"])
def test_a_claim_of_any_time_is_answered_with_words(grid, at):
    store = Store.open(grid)
    claims = grid / f"sweeps/{SWEEP}/claims"
    claims.mkdir()
    (claims / "000001.json").write_text(json.dumps({**CLAIM, "pid": 1, "at": at}))
    store.leases.require_free(SWEEP)
    for beat in ({"at": at, "launch": "l"}, {"at": at, "launch": "l", "is_over": True}):
        store.write_heartbeat(SWEEP, beat)
        run(grid, "status", codes=[0])
        store.leases.holder(SWEEP)


# Names ----------------------------------------------------------------------------------------------------------------

ODD = ("lost+found", "@eaDir", b"caf\xe9", "a b", "café", "-", "x" * 255, "..data", ".Trash-1000", "$RECYCLE.BIN")


@pytest.mark.parametrize("is_folder", [True, False])
def test_odd_names_cost_nothing(grid, is_folder):
    before = values(grid)
    for where in ("", "sweeps", f"sweeps/{SWEEP}", f"sweeps/{SWEEP}/journal", f"sweeps/{SWEEP}/logs"):
        for path in (grid / where / os.fsdecode(name) for name in ODD):
            if is_folder:
                path.mkdir()
                (path / "inside").write_text("x")
            else:
                path.write_text("x")
    assert run(grid, "check", codes=[0]).output.endswith("all sound\n")
    run(grid, "status", codes=[0])
    assert values(grid) == before


def test_foreign_folders_are_reported(grid):
    for name in ("sweeps/lost+found", f"sweeps/{SWEEP}/journal/a b", f"sweeps/{SWEEP}/logs/@eaDir", "parts/v1/@eaDir"):
        (grid / name).mkdir(parents=True)
    found = run(grid, "check", codes=[0]).output
    for name in ("sweeps/lost+found", f"sweeps/{SWEEP}/journal/a b", f"sweeps/{SWEEP}/logs/@eaDir"):
        assert f"harmless  {name}\n" in found


def test_only_names_that_a_store_gives_are_numbers(place, grid, monkeypatch):
    before = values(grid)
    names = (
        f"sweeps/{SWEEP}/claims/\N{SUPERSCRIPT TWO}.json",
        f"sweeps/{SWEEP}/claims/\N{ARABIC-INDIC DIGIT THREE}.json",
        f"sweeps/{SWEEP}/claims/7.json",
        f"sweeps/{SWEEP}/journal/launch-1/\N{SUPERSCRIPT TWO}.json",
        f"snapshots/v1/{'9' * 240}.json",
        "snapshots/v1/1.json",
        "snapshots/v1/\N{FULLWIDTH DIGIT ONE}00000.json",
    )
    for name in names:
        (grid / name).parent.mkdir(parents=True, exist_ok=True)
        (grid / name).write_text("{}")
    found = run(grid, "check", codes=[0]).output
    assert [name for name in names if f"harmless  {name}\n" not in found] == []
    monkeypatch.chdir(place)
    for command in (["status"], ["logs", SWEEP, UNIT], ["compact"]):
        run(grid, *command)
    assert values(grid) == before


def test_a_folder_of_no_revision_is_none(place, grid, monkeypatch):
    before = values(grid)
    for name in ("\N{ARABIC-INDIC DIGIT THREE}" * 4, "9" * 200, "0000", "00001"):
        (grid / f"sweeps/{SWEEP}/{name}").mkdir()
        (grid / f"sweeps/{SWEEP}/{name}/plan.json").write_text("{}")
        (grid / f"sweeps/{SWEEP}/{name}/job.json").write_text("{}")
    drive(place, monkeypatch)
    assert values(grid) == before


def test_the_highest_number_is_the_last(place, grid):
    store = Store.open(grid)
    claims = grid / f"sweeps/{SWEEP}/claims"
    claims.mkdir()
    (claims / f"{HIGHEST}.json").write_text(json.dumps({**CLAIM, "pid": 1}))
    with pytest.raises(StoreError, match=r"no claim .* can follow"):
        store.leases.claim(SWEEP, "l")


def test_a_folder_as_deep_as_paths_go_is_reported(place, grid):
    here = os.open(grid, os.O_RDONLY)
    for _ in range(2100):  # deeper than any path can say
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert "deeper than any folder of a store" in run(grid, "check", codes=[0]).output
    subprocess.run(["rm", "-rf", str(grid / "d")], check=True)


# JSON -----------------------------------------------------------------------------------------------------------------

DEEP = {
    "journal": f"sweeps/{SWEEP}/journal/launch-1/000001.json",
    "claim": f"sweeps/{SWEEP}/claims/000001.json",
    "plan": f"sweeps/{SWEEP}/0001/plan.json",
    "job": f"sweeps/{SWEEP}/0001/job.json",
    "heartbeat": f"sweeps/{SWEEP}/heartbeat.json",
    "snapshot": "snapshots/v1/000001.json",
    "manifest": f"artefacts/network/{'k' * 32}.manifest",
    "evaluation": "",
    "fingerprint": "",
    "probe": "",
}
READERS = (
    ["status"],
    ["query", "progress"],
    ["query", "failures"],
    ["atlas", "--out", "a.html"],
    ["logs", SWEEP, UNIT],
)


@pytest.mark.parametrize(
    "whats", [["plan"], ["job"], [what for what in DEEP if what not in ("plan", "job")]], ids=["plan", "job", "others"]
)
def test_json_nested_beyond_any_depth_is_damage(place, grid, whats, monkeypatch):
    before, names = values(grid), []
    for what in whats:
        text = ("[" if len(what) % 2 else '{"a":') * 50_000
        if name := DEEP[what]:
            (grid / name).parent.mkdir(parents=True, exist_ok=True)
            (grid / name).write_text(text)
        else:
            Store.open(grid).write_artefact(what, "d" * 32, text.encode())
            name = next(str(one.relative_to(grid)) for one in (grid / f"artefacts/{what}").glob("*.json"))
        names.append(name)
    monkeypatch.chdir(place)
    for command in READERS:
        run(grid, *command, codes=[0] if len(whats) > 1 else [0, 1])
    found = run(grid, "check", codes=[1]).output
    assert [name for name in names if f"DAMAGED  {name}\n" not in found] == []
    run(grid, "resume", SWEEP, "--address", "none", codes=[1, 2])
    run(grid, "check", "--repair", codes=[0])
    assert Store.open(grid).check().damage == ()
    assert whats == ["plan"] or values(grid) == before


def test_a_store_whose_marker_is_nested_beyond_any_depth_is_refused(grid):
    (grid / "store.json").write_text("[" * 50_000)
    for command in (*READERS, ["check"], ["check", "--repair"], ["compact"]):
        assert "store.json" in run(grid, *command, codes=[1]).output


AT = "2026-11-24T00:00:00+00:00"
BEATS = {
    "a count that is a text": {"num_done": "many"},
    "a count that is null": {"num_total": None},
    "a count that is NaN": {"num_failed": float("nan")},
    "a count below zero": {"num_done": -1},
    "seconds that are endless": {"seconds": float("inf")},
    "a unit without a name": {"running": [{}]},
    "units that are texts": {"running": ["u"]},
    "units that are null": {"running": None},
    "workers that are a number": {"workers": 5},
    "workers that are numbers": {"workers": [5]},
    "a worker whose unit is a list": {"workers": [{"worker": "w", "unit": []}]},
    "what happened is a list": {"happened": [1]},
    "what happened is a text": {"happened": {"retried": "often"}},
    "a time that is null": {"at": None},
    "a stage that is a number": {"stage": 5},
    "whether it is over is a text": {"is_over": "no"},
}


def test_a_heartbeat_that_is_none_is_damage(place, grid, monkeypatch):
    names = [f"sweeps/{sweep}/heartbeat.json" for sweep in sweeps_like_it(grid, len(BEATS))]
    for name, beat in zip(names, BEATS.values(), strict=True):
        (grid / name).write_text(json.dumps({"at": AT, "launch": "l", "running": [], **beat}))
    monkeypatch.chdir(place)
    readers = [[*command, SWEEP] if command[0] == "atlas" else command for command in READERS]  # an atlas of one
    for command in (*readers, ["status", "--format", "json"], ["query", "progress", "--format", "json"]):
        found = run(grid, *command, codes=[0])
        if "json" in command:
            json.loads(found.stdout, parse_constant=pytest.fail)
    found = run(grid, "check", codes=[1]).output
    assert [what for what, name in zip(BEATS, names, strict=True) if f"DAMAGED  {name}\n" not in found] == []
    run(grid, "check", "--repair", codes=[0])
    assert Store.open(grid).check().damage == ()


@pytest.mark.parametrize(
    "found",
    [
        {"accuracy": 0.1, "order": {"accuracy": 0.9, "classes": [0, 7], "is_seen": [True, True]}},
        {"accuracy": 0.1, "order": {"accuracy": 0.9, "classes": [0, 1], "is_seen": [True]}},
        {"order": {"accuracy": 0.9, "classes": [1, 0], "is_seen": [True, True]}},
        {"is_at_chance": True, "chance": 0.1},
        {"is_at_chance": True, "accuracy": 0.1},
    ],
)
def test_an_evaluation_lacks_nothing_that_remarks_say(grid, found):
    store = Store.open(grid)
    store.write_artefact("evaluation", "e" * 32, json.dumps(found).encode())
    [damaged] = store.check().damage
    assert damaged.file.startswith("artefacts/evaluation/")


@pytest.fixture(scope="module")
def compacted(made, tmp_path_factory):
    """Return a compacted store of two sweeps, to copy."""
    grid = shutil.copytree(made / "grid", tmp_path_factory.mktemp("compacted") / "grid")
    Store.open(grid).compact()
    shutil.copytree(grid / f"sweeps/{SWEEP}", grid / "sweeps/other")
    return grid


TOGETHER = (*BESIDE[:3], "artefacts/network", "artefacts/evaluation")
PLACES = [folder for folder in FOLDERS if folder != "set-aside" and not folder.endswith((SWEEP, "launch-1", UNIT))]
PLACES = [[folder] for folder in (*PLACES, "snapshots/v1/extracts") if folder not in TOGETHER]


@pytest.mark.parametrize("what", ["file", "pipe"])
@pytest.mark.parametrize("folders", [*PLACES, TOGETHER], ids=",".join)
def test_what_is_no_folder_in_the_place_of_one_is_damage_and_set_aside(compacted, tmp_path, folders, what, monkeypatch):
    grid = shutil.copytree(compacted, tmp_path / "grid")
    for path in (grid / folder for folder in folders):
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("?") if what == "file" else os.mkfifo(path)
    how = {"file": "a file in the place of a folder", "pipe": "it is a pipe, and no regular file"}[what]
    found = run(grid, "check", codes=[1]).output
    assert [folder for folder in folders if f"DAMAGED  {folder}\n    {how}\n" not in found] == []
    monkeypatch.chdir(tmp_path)
    is_of_sweep = SWEEP in folders[0]
    readers = [command for command in READERS if command[0] != "atlas" or not (is_of_sweep or what == "pipe")]
    run(grid, "compact", codes=[0, 1])  # it says so where it cannot write
    for command in (*readers, ["sql", "from results"], ["check", "--repair"]):
        run(grid, *command, codes=[0, 1, 2] if "logs" in command or folders == ["sweeps"] else [0])
    for folder in folders:
        assert not (grid / folder).exists() or (grid / folder).is_dir()
        assert os.path.lexists(grid / "set-aside" / folder)
    assert run(grid, "check", codes=[0]).output.count("DAMAGED") == 0
    run(grid, "status", codes=[0])


def test_a_damaged_snapshot_of_the_highest_number_is_set_aside(place, grid):
    before = values(grid)
    (grid / "snapshots/v1").mkdir(parents=True)
    (grid / f"snapshots/v1/{HIGHEST}.json").write_text("{}")
    assert f"no snapshot can follow snapshots/v1/{HIGHEST}.json" in run(grid, "compact", codes=[1]).output
    assert f"set aside as set-aside/snapshots/v1/{HIGHEST}.json" in run(grid, "check", "--repair", codes=[0]).output
    run(grid, "compact", codes=[0])
    assert values(grid) == before
    assert Store.open(grid).check().damage == ()


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_a_name_that_is_taken_among_what_was_set_aside_is_not_used(place, grid, what):
    name = some_part(grid).relative_to(grid)
    (grid / name).write_text("damaged")
    aside = grid / "set-aside" / name
    aside.parent.mkdir(parents=True)
    os.mkfifo(aside) if what == "pipe" else aside.symlink_to(place / "outside" / "a.parquet")
    assert f"set aside as set-aside/{name}.2" in run(grid, "check", "--repair", codes=[0]).output
    assert Path(f"{aside}.2").read_text() == "damaged"


@pytest.mark.parametrize("names", [*([name] for name in FILES[1:5]), APART, ["part"]], ids=",".join)
def test_a_folder_in_the_place_of_a_file_is_damage_and_set_aside(place, grid, names):
    names = [str(some_part(grid).relative_to(grid)) if name == "part" else name for name in names]
    for name in names:
        (grid / name).unlink(missing_ok=True)
        (grid / name / "inside").mkdir(parents=True)
    found = run(grid, "check", codes=[1]).output
    for name in names:
        _, said = found.split(f"DAMAGED  {name}\n")
        reason = said.split("\n")[0]
        assert "a folder in the place of a file" in reason or "it is a folder" in reason
    run(grid, "status", codes=[0, 1])
    run(grid, "check", "--repair", codes=[0])
    assert [name for name in names if not (grid / "set-aside" / name / "inside").is_dir()] == []
    assert Store.open(grid).check().damage == ()


@pytest.mark.parametrize("what", ["a round", "a snapshot"])
def test_json_that_would_take_much_memory_is_not_read(grid, what):
    name, text, most = {
        "a round": (f"sweeps/{SWEEP}/journal/launch-1/000001.json", '{"unit":"u"},', 8 * 2**20),
        "a snapshot": ("snapshots/v1/000001.json", f'"{NO_PART[9:]}",', 32 * 2**20),
    }[what]
    (grid / name).parent.mkdir(parents=True, exist_ok=True)
    (grid / name).write_text('{"at": "", "attempts": [' + text * (most // len(text)) + "]}")
    found = run(grid, "check", codes=[1]).output
    assert f"no such file has more than {most}" in found
    run(grid, "status", codes=[0])
