"""Whoever reads a command, or does not: closed, full, slow and foreign stdout and stderr, and files for answers."""

import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers_flow import TINY_JOB, run

from stitchgrid import display
from stitchgrid.cli import streams
from stitchgrid.cli.streams import Patient
from stitchgrid.display import Display
from stitchgrid.errors import InputError
from stitchgrid.paths import named_path, write_whole
from stitchgrid.store import Store

JOB = TINY_JOB


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield reading, stream
    with suppress(OSError):
        os.close(reading)


def shell(command, **options):
    """Run a command line in a shell, in which `stitchgrid` is the command."""
    name = f"{sys.executable} -m stitchgrid.cli"
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; stitchgrid() {{ {name} "$@"; }}; {command}'],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


# Messages


def test_messages_arrive_in_order(pipe):
    reading, stream = pipe
    patient = Patient(stream)
    for number in range(200):
        patient.write(f"{number}\n")
    patient.settle()
    assert os.read(reading, 10_000).decode() == "".join(f"{number}\n" for number in range(200))


def test_messages_to_nobody_go_nowhere(pipe):
    reading, stream = pipe
    os.close(reading)
    patient = Patient(stream)
    for _ in range(100):
        assert patient.write("gone\n") == 5
        patient.settle()
    assert not patient.isatty()


def test_a_reader_who_does_not_read_is_not_waited_for_and_is_told_what_was_left_out(pipe, monkeypatch):
    monkeypatch.setattr(streams, "MOST_WAITING", 200_000)
    reading, stream = pipe
    patient = Patient(stream)
    for _ in range(1000):
        patient.write("x" * 999 + "\n")  # far more than a pipe and the queue hold
    start = time.monotonic()
    patient.settle(0.1)
    assert time.monotonic() - start < 5
    got = b""
    while b"messages were left out" not in got:
        got += os.read(reading, 1 << 16)
    assert got.count(b"\n") < 1000


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_characters_that_a_terminal_lacks_are_replaced(encoding):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding=encoding) as stream:
        patient = Patient(stream)
        patient.write("a → b\n")
        patient.settle()
    assert os.read(reading, 100) == b"a ? b\n"
    os.close(reading)


def test_a_display_whose_stderr_fails_goes_on(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    shown = Display()
    shown.say("hello")
    with shown.stage("computing", 3, "cells") as stage:
        stage.advance(done=3)
        stage.say("one")
    assert stage.done == 3


def test_what_a_stage_may_take_is_told_until_it_is_known(capsys):
    with Display().stage("computing", 3, "cells", expected=441.0) as stage:
        stage.advance(done=3)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "computing: 0/3 cells, about 0:07:21 in all"
    assert last.startswith("computing: 3/3 cells, ")


def test_a_log_says_where_things_stand_while_one_item_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(display, "SECONDS_PER_LINE", 0.01)
    written = []
    deadline = time.monotonic() + 60
    with Display().stage("training", 2, "networks"):
        while len(written) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            written += capsys.readouterr().err.splitlines()
    assert set(written) == {"training: 0/2 networks"}


# Commands


def test_an_answer_that_cannot_be_written_is_one_clear_line():
    full = shell("stitchgrid query > /dev/full")
    assert (full.returncode, full.stderr) == (1, "Error: cannot write the answer to stdout: No space left on device.\n")
    closed = shell("stitchgrid query >&-")
    assert (closed.returncode, closed.stderr.count("\n")) == (1, 1)
    assert "stdout is closed; name a file with --out" in closed.stderr


def test_a_reader_who_has_seen_enough_is_no_error():
    ended = shell("stitchgrid query | head -1")
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""


def test_names_that_a_terminal_cannot_show_are_shown_as_far_as_it_can(tmp_path):
    ended = shell(f"stitchgrid status --store {tmp_path}/a→b", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert ended.returncode == 1
    assert "a?b" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("how", ["2>&1 | head -1", "> /dev/full 2> /dev/full"])
def test_a_launch_that_nobody_looks_at_does_its_work(tmp_path, how):
    (tmp_path / "job.toml").write_text(JOB)
    ended = shell(f"stitchgrid launch {tmp_path}/job.toml --store {tmp_path}/grid --address none {how}")
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "grid/parts/v1").glob("*.parquet"))) == 1
    assert "Traceback" not in ended.stderr + ended.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_ends_a_launch_in_order_unless_it_is_told_to_stay(tmp_path, ignored):
    """With Ray, whose processes are in the same group and hear the same signal."""
    (tmp_path / "job.toml").write_text(JOB.replace('"cka"', '"task_loss"\nepochs = 600'))
    ray = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))  # whose sockets need a short path
    command = [
        sys.executable,
        "-m",
        "stitchgrid.cli",
        "launch",
        tmp_path / "job.toml",
        "--store",
        tmp_path / "grid",
        "--address",
        "local",
    ]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    with subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_TMPDIR": str(ray)},
    ) as launched:
        signal.signal(signal.SIGHUP, before)
        while len(list((tmp_path / "grid").glob("sweeps/s/journal/*/*.json"))) < 2:  # the network, then a shard
            assert launched.poll() is None
            time.sleep(0.1)
        time.sleep(1)  # the shard is journalled before it is sent, and takes seconds
        os.killpg(launched.pid, signal.SIGHUP)
        _, said = launched.communicate(timeout=120)
    assert launched.returncode == (0 if ignored else 130), said
    assert ("what is in flight has 60 s to finish" in said) != ignored
    assert list((tmp_path / "grid/parts/v1").glob("*.parquet")), "what was in flight is there"
    assert not list(ray.glob("*/ray*/session_*")), "Ray's folder is gone"
    shutil.rmtree(ray)


# Files


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    write_whole(page, b"old")
    page.chmod(0o640)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(page, b"new")
    assert page.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [page]
    write_whole(page, b"new")
    assert (page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (b"new", 0o640)


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/page")
    write_whole(link, b"1")
    assert (link.is_symlink(), (tmp_path / "there/page").read_bytes()) == (True, b"1")
    os.mkfifo(tmp_path / "pipe")
    got = []
    (reader := threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))).start()
    write_whole(tmp_path / "pipe", b"2")
    reader.join(10)
    assert got == [b"2"]


def test_an_answer_that_finds_no_room_leaves_the_old_file(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("old")
    ended = shell(f"(ulimit -f 0; trap '' XFSZ; stitchgrid query failures --store {tmp_path}/none --out {out})")
    assert ended.returncode != 0
    assert out.read_text() == "old"


@pytest.mark.parametrize("text", ["~/x", "$HOME/x", "${HOME}/x"])
def test_what_a_shell_has_left_in_a_path_is_expanded(text, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path(text) == tmp_path / "x"


def test_a_home_that_is_nobodys_is_refused():
    with pytest.raises(InputError, match="no user has the home that '~nobody-of-that-name/x' starts with"):
        named_path("~nobody-of-that-name/x")


# Who is told of the end


def told(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line.startswith("STITCHGRID_"))


def test_a_command_is_run_at_the_end_whatever_came(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    command = f"env | grep -E '^STITCHGRID_(SWEEP|EXIT|DONE|FAILED)=' > {tmp_path}/told"
    how = ["--store", tmp_path / "grid", "--address", "none", "--notify", command]
    run("launch", tmp_path / "job.toml", *how)
    wanted = {"STITCHGRID_SWEEP": "s", "STITCHGRID_EXIT": "0", "STITCHGRID_DONE": "4", "STITCHGRID_FAILED": "0"}
    assert told(tmp_path / "told") == wanted
    run("resume", "s", *how, "--notify", "exit 3")
    Store.open(tmp_path / "grid").leases.claim("s", "another")
    run("resume", "s", *how, code=1)
    assert told(tmp_path / "told") == {**wanted, "STITCHGRID_EXIT": "1", "STITCHGRID_DONE": "", "STITCHGRID_FAILED": ""}


def test_a_notification_that_fails_is_said_and_changes_no_exit_code(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    how = ["--store", tmp_path / "grid", "--address", "none", "--notify", "exit 3"]
    assert "The command of --notify ended with exit code 3." in run("launch", tmp_path / "job.toml", *how).output
