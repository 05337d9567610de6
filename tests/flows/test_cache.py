"""What the processes of a machine share on its disk: drafts that become entries."""

import os
import stat
import sys
from time import time

import pytest
from helpers_flow import TINY_JOB, run

from stitchgrid.cache import ABANDONED_SECONDS, UNUSED_SECONDS, default_cache, draft, free, unused
from stitchgrid.store import Store


@pytest.fixture
def entries(tmp_path):
    return tmp_path / "cache" / "entries"


def publish(entries, name):
    with draft(entries) as folder:
        (folder / "file").write_text("content")
        folder.replace(entries / name)


def test_a_draft_becomes_an_entry_or_nothing(entries):
    publish(entries, "one")
    with pytest.raises(ValueError, match="gave up"), draft(entries) as folder:  # noqa: PT012  # in the middle of it
        (folder / "file").write_text("half")
        raise ValueError("gave up")
    assert [path.name for path in entries.iterdir()] == ["one"]
    assert (entries / "one" / "file").read_text() == "content"


@pytest.mark.skipif(sys.platform == "win32", reason="no modes of files")
@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_an_entry_is_as_readable_as_the_files_of_its_writer_are(umask, folder_mode, file_mode, entries):
    before = os.umask(umask)
    try:
        publish(entries, "one")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (entries / "one", entries / "one" / "file")]
    assert modes == [folder_mode, file_mode]


def test_what_a_killed_writer_left_goes_after_a_week_and_a_draft_at_work_stays(entries):
    publish(entries, "one")
    with draft(entries) as at_work, draft(entries) as old:
        (at_work / "file").write_text("half")
        abandoned = time() - ABANDONED_SECONDS - 60
        for path in (old, old.parent, at_work, at_work.parent, entries / "one"):
            os.utime(path, (abandoned, abandoned))
        publish(entries, "two")
        assert at_work.exists()  # its file is new
        assert not old.exists()
    assert sorted(path.name for path in entries.iterdir()) == ["one", "two"]


# What nobody uses -----------------------------------------------------------------------------------------------------


def test_what_nobody_has_used_for_long_is_freed_and_nothing_else(tmp_path):
    folders = {kind: tmp_path / kind for kind in ("images", "weights", "mine")}
    for folder in folders.values():
        for name in ("old", "new"):
            publish(folder, name)
        (folder / "old.lock").touch()
        for name in ("old/file", "old", "old.lock"):
            os.utime(folder / name, (1, time() - UNUSED_SECONDS - 10))
    (folders["weights"] / "link").symlink_to(tmp_path / "mine/old")
    found = unused(tmp_path)
    assert [entry.relative_to(tmp_path).as_posix() for entry in found.entries] == ["images/old", "weights/old"]
    assert found.num_bytes == 2 * len("content")
    free(found)
    free(found)  # somebody was faster
    assert unused(tmp_path).entries == ()
    for kind, names in (("images", ["new", "old.lock"]), ("mine", ["new", "old", "old.lock"])):
        assert sorted(path.name for path in folders[kind].iterdir()) == names


def test_gc_frees_the_cache_that_no_launch_has_used_for_long(tmp_path, monkeypatch):
    (tmp_path / "job.toml").write_text(TINY_JOB)
    cache, grid = tmp_path / "cache", tmp_path / "grid"
    monkeypatch.setenv("STITCHGRID_CACHE", str(cache))
    monkeypatch.setattr("stitchgrid.models.held.MOST_PARAMETERS", 0)  # networks are built again, as elsewhere
    run("launch", tmp_path / "job.toml", "--store", grid, "--address", "none")
    weights = [path for path in (cache / "weights").iterdir() if path.suffix != ".lock"]
    assert weights
    assert run("gc", "--store", grid).stdout == "nothing to free\n"
    for path in weights:
        os.utime(path, (1, 1))
    run("launch", tmp_path / "job.toml", "--store", grid, "--address", "none", "--recompute", "all")
    assert all(path.stat().st_mtime > 1 for path in weights), "a launch notes what it uses"
    Store.open(grid).collect()
    for path in weights:
        os.utime(path, (1, 1))
    size = sum(path.stat().st_size for path in weights)
    said = run("gc", "--dry-run", "--store", grid).stdout
    assert f"would free {len(weights)} entries of the cache, unused for 30 days: {size} bytes\n" in said
    assert all(path.exists() for path in weights)
    assert run("gc", "--store", grid).stdout == said.replace("would free", "freed")
    assert not any(path.exists() for path in weights)
    run("launch", tmp_path / "job.toml", "--store", grid, "--address", "none", "--recompute", "cka")
    assert all(path.exists() for path in weights)


def test_the_named_cache_is_where_a_shell_would_look_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("~/cache", "$HOME/cache"):
        monkeypatch.setenv("STITCHGRID_CACHE", text)
        assert default_cache() == tmp_path / "cache"
