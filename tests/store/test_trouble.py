"""What a folder refuses: no quota, no inodes, no rights for root, no shared memory; each is one clear line."""

import errno
import os
from pathlib import Path

import pytest
from helpers_flow import TINY_JOB, run
from helpers_store import SWEEP, make_row, make_synthetic_store, planned_cells

from stitchgrid.cluster import connection, shared_memory
from stitchgrid.errors import ClusterError, StoreError, UnseenError
from stitchgrid.store import Store
from stitchgrid.store import folder as below

CELL = next(planned_cells())


def refusing(monkeypatch, number, *, function="write_beside"):
    """Have every new file, or every file that is opened, refused with an error of this number."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(below, function, refuse)


def with_space(monkeypatch, **changes):
    """Have every file system say this of itself."""
    found = {"f_bavail": 1_000_000, "f_frsize": 4096, "f_files": 1000, "f_favail": 500, **changes}
    monkeypatch.setattr(os, "statvfs", lambda _: type("Found", (), found)())


WRITES = (
    lambda store: store.write_part("more", [make_row(CELL, "loss", 0.5)]),
    lambda store: store.write_artefact("network", "k", b"weights"),
    lambda store: store.compact(),
    lambda store: store.leases.claim("other", "launch-1"),
)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("number", "space", "said"),
    [
        (errno.EDQUOT, {}, r"the quota of .* is used up, whatever space the disk has; delete files of yours there"),
        (errno.ENOSPC, {"f_favail": 0}, r"no free inodes: .* can hold no more files, .*; delete files there, or have"),
        (errno.ENOSPC, {"f_bavail": 0}, r"No space left on device; check free space and permissions there"),
        (errno.ENOSPC, {"f_files": 0, "f_favail": 0}, r"No space left on device; check free space"),
    ],
)
def test_no_room_is_told_for_what_it_is_and_nothing_is_lost(tmp_path, monkeypatch, write, number, space, said):
    store = make_synthetic_store(tmp_path).store
    before = store.read_parts().table
    with monkeypatch.context() as patched:
        refusing(patched, number)
        with_space(patched, **space)
        with pytest.raises(StoreError, match=rf"^cannot write .* in the store .*: .*{said}[^\n]*$"):
            write(store)
    assert store.read_parts().table.equals(before)
    assert store.check().findings == ()


def test_a_store_that_cannot_be_made_for_want_of_inodes_says_so(tmp_path, monkeypatch):
    refusing(monkeypatch, errno.ENOSPC)
    with_space(monkeypatch, f_favail=0)
    with pytest.raises(StoreError, match=r"no free inodes: .*, or name another store with --store"):
        Store.open(tmp_path / "new", create=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("is_root", [True, False])
def test_root_without_rights_is_told_to_be_somebody_else(tmp_path, monkeypatch, number, is_root):
    store = make_synthetic_store(tmp_path).store
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 54321)
    told = r"this process is root, and the file server gives root no rights there \(root_squash\): run stitchgrid as "
    with monkeypatch.context() as patched:
        refusing(patched, number)
        with pytest.raises(StoreError, match=r"^cannot write parts/v1/more.*; ") as caught:
            store.write_part("more", [make_row(CELL, "loss", 0.5)])
    assert (told.replace("\\", "") in str(caught.value)) == is_root
    refusing(monkeypatch, number, function="open_file")
    with pytest.raises(UnseenError, match=r"^no permission to read sweeps/[^\n]*$") as caught:
        store.read_job(SWEEP)
    assert (told.replace("\\", "") in str(caught.value)) == is_root


def test_a_command_says_it_in_one_line(tmp_path, monkeypatch):
    make_synthetic_store(tmp_path)
    refusing(monkeypatch, errno.EDQUOT)
    found = run("compact", "--store", tmp_path, code=1)
    [line] = found.stderr.splitlines()
    assert line.startswith("Error: cannot write snapshots/v1/data/")


# Shared memory --------------------------------------------------------------------------------------------------------


def with_free(monkeypatch, shared, disk):
    free = {shared_memory.SHARED_MEMORY: shared}
    monkeypatch.setattr(shared_memory, "free_bytes", lambda folder: free.get(folder, disk))


def test_the_object_store_goes_where_there_is_room_and_that_is_said(tmp_path, monkeypatch):
    with_free(monkeypatch, 10**9, 0)
    assert shared_memory.object_store_folder(tmp_path, 10**8) == (Path("/dev/shm"), None)
    assert connection.require_place() is None
    with_free(monkeypatch, 64 * 10**6, 10**9)
    folder, said = shared_memory.object_store_folder(tmp_path, 10**8)
    assert folder == tmp_path
    assert said.startswith(
        "/dev/shm has 64 MB free, fewer than the 100 MB of Ray's object store, so the object store is kept in "
    )
    assert "object store" in connection.require_place()


def test_without_room_for_the_object_store_nothing_is_started(tmp_path, monkeypatch):
    with_free(monkeypatch, 64 * 10**6, 10**7)
    said = r"Ray needs 100 MB .*; /dev/shm has 64 MB free, and .* 10 MB\. Give .* --shm-size=256m.*--address none"
    with pytest.raises(ClusterError, match=said):
        shared_memory.object_store_folder(tmp_path, 10**8)
    job = tmp_path / "job.toml"
    job.write_text(TINY_JOB)
    found = run("launch", job, "--store", tmp_path / "grid", "--address", "local", code=1)
    assert "Ray needs 100 MB for its object store" in found.stderr
    assert not list((tmp_path / "grid").rglob("claims/*"))


def test_what_is_no_folder_has_no_room(tmp_path):
    assert shared_memory.free_bytes(tmp_path / "none") == 0
    assert shared_memory.free_bytes(tmp_path) > 0
