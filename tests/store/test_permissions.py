"""Stores that several people share: what others may not see is left out with a word, and new files are for all."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_store import SWEEP, make_row, make_synthetic_store, planned_cells

from stitchgrid.errors import StoreError, UnseenError
from stitchgrid.store import Store
from stitchgrid.store import folder as below
from stitchgrid.store.files import LocalFiles

as_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="gives files to other users")
SOMEBODY = 54321


def as_another(*arguments, code=0):
    """Run a command as one who may not read what others keep for themselves; return stdout and stderr."""
    caps = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={caps}", sys.executable, "-m", "stitchgrid.cli", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == code, ended.stderr
    return ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Make a store with a part and a sweep that belong to somebody else, who keeps them for themselves."""
    root = tmp_path_factory.mktemp("shared")
    make_synthetic_store(root)
    make_synthetic_store(root, sweep="theirs")
    part = next((root / "parts/v1").glob("*.parquet"))
    for path, mode in ((part, 0o600), (root / "sweeps/theirs", 0o700)):
        path.chmod(mode)
        os.chown(path, SOMEBODY, SOMEBODY)
    return root


@as_root
@pytest.mark.parametrize("command", [["status"], ["sql", "select count(*) from cells"], ["query", "progress"]])
def test_what_one_may_not_read_is_left_out_with_one_warning_that_says_whose_it_is(shared, command):
    said, warned = as_another(*command, "--store", shared)
    assert said
    assert warned.count("Warning: left out") == 1
    assert f"which belongs to user {SOMEBODY}, mode 0" in warned
    assert "1 more could not be read." in warned
    assert "damaged" not in warned


@as_root
def test_nothing_is_collected_in_a_store_that_is_not_seen_as_a_whole(shared):
    before = sorted(path for path in shared.rglob("*") if path.is_file())
    _, told = as_another("gc", "--store", shared, code=1)
    assert "no permission to read sweeps/theirs" in told
    assert sorted(path for path in shared.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_does_not_answer_is_no_damage(tmp_path, monkeypatch, number):
    store = make_synthetic_store(tmp_path).store

    def silent(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(below, "open_file", silent)
    with pytest.raises(UnseenError, match=r"no answer about .*; its file system does not answer") as caught:
        store.read_job(SWEEP)
    assert caught.value.why == "no answer"


def test_any_other_trouble_keeps_its_words(tmp_path, monkeypatch):
    store = make_synthetic_store(tmp_path).store
    monkeypatch.setattr(
        below, "open_file", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files"))
    )
    with pytest.raises(StoreError, match="Too many open files; check that the store is complete"):
        store.read_job(SWEEP)


@pytest.mark.parametrize(("mode", "file_mode"), [(0o2775, 0o664), (0o755, 0o644), (0o700, 0o600), (0o777, 0o666)])
def test_new_files_have_the_mode_of_the_folder_whatever_the_umask(tmp_path, mode, file_mode):
    root = tmp_path / "grid"
    root.mkdir()
    root.chmod(mode)
    before = os.umask(0o077)
    try:
        store = Store.open(root, create=True)
        store.write_part("shard", [make_row(next(planned_cells()), "accuracy", 0.5)])
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (mode if path.is_dir() else file_mode), path


@as_root
def test_new_files_have_the_group_of_the_folder(tmp_path):
    root = tmp_path / "grid"
    root.mkdir()
    os.chown(root, -1, SOMEBODY)
    Store.open(root, create=True).write_part("shard", [make_row(next(planned_cells()), "accuracy", 0.5)])
    assert {path.stat().st_gid for path in root.rglob("*")} == {SOMEBODY}


@pytest.mark.parametrize("number", sorted(below.NO_SYNC))
def test_a_folder_that_cannot_be_synchronised_is_written_all_the_same(tmp_path, monkeypatch, number):
    synced = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    files = LocalFiles(Path(tmp_path))
    assert files.write_once("a", b"1")
    files.replace("a", b"2")
    assert files.read("a") == b"2"


@as_root
def test_a_check_tells_what_may_not_be_seen_from_what_is_damaged_and_repair_leaves_it(shared):
    before = sorted(shared.rglob("*"))
    for more in ([], ["--repair"]):
        said, _ = as_another("check", "--store", shared, *more, code=1)
        assert "NOT SEEN  sweeps/theirs" in said
        assert "NOT SEEN  parts/v1/" in said
        assert "ask its owner to let others read it" in said
        assert "DAMAGED" not in said
        assert said.splitlines()[-1].endswith("files verified: 2 not seen")
    assert sorted(shared.rglob("*")) == before
