"""Files for answers in folders that other users can write, too: nothing is taken over from them, nor led by them."""

import itertools
import os
import stat

import pytest
from helpers_flow import run
from helpers_store import make_synthetic_store

from stitchgrid.cli.files_out import write_file
from stitchgrid.errors import InputError
from stitchgrid.paths import write_whole

SOMEBODY = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


@pytest.fixture
def usual_umask():
    """Let new files be what they are for most people."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def folder_of(path, owner, mode):
    path.mkdir()
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("before", "after"), [(0o6777, 0o666), (0o1755, 0o644), (0o640, 0o640), (0o600, 0o600)])
def test_a_file_of_ones_own_keeps_its_readers_and_nothing_that_makes_a_program_of_it(tmp_path, before, after):
    page = tmp_path / "page.html"
    page.write_bytes(b"old")
    page.chmod(before)
    write_whole(page, b"new")
    assert (page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (b"new", after)


@as_root
def test_a_file_for_another_group_is_open_to_no_more_than_new_ones_are(tmp_path, usual_umask):
    page = tmp_path / "page.html"
    page.write_bytes(b"old")
    os.chown(page, -1, SOMEBODY)
    page.chmod(0o664)
    write_whole(page, b"new")
    assert stat.S_IMODE(page.stat().st_mode) == 0o644


@as_root
@pytest.mark.parametrize("mode", [0o1777, 0o2770])
def test_nothing_is_taken_over_from_a_file_that_somebody_else_has_put_there(tmp_path, usual_umask, mode):
    page = folder_of(tmp_path / "shared", SOMEBODY, mode) / "page.html"
    page.write_bytes(b"old")
    os.chown(page, SOMEBODY, SOMEBODY)
    page.chmod(0o6777)
    write_whole(page, b"new")
    found = page.stat()
    assert (page.read_bytes(), stat.S_IMODE(found.st_mode), found.st_uid) == (b"new", 0o644, 0)


def put_link(path, target, owner):
    path.symlink_to(target)
    os.lchown(path, owner, owner)


def put_link_to_folder(path, target, owner):
    path.parent.rmdir()
    put_link(path.parent, target.parent, owner)


def put_link_behind_a_link(path, target, owner):
    put_link(path.with_name("theirs"), target, owner)
    path.symlink_to("theirs")


def put_pipe(path, _, owner):
    os.mkfifo(path)
    os.chown(path, owner, owner)


@as_root
@pytest.mark.parametrize("put", [put_link, put_link_to_folder, put_link_behind_a_link, put_pipe])
def test_no_link_or_pipe_of_another_user_leads_the_writing_elsewhere(tmp_path, put):
    shared = folder_of(tmp_path / "shared", 0, 0o1777)
    (mine := tmp_path / "mine").mkdir()
    precious = mine / "page.html"
    precious.write_bytes(b"precious")
    path = folder_of(shared / "there", SOMEBODY, 0o1777) / "page.html"
    put(path, precious, SOMEBODY)
    kind = "pipe" if put is put_pipe else "link"
    told = f"a {kind} of another user, user {SOMEBODY}, and might lead the writing elsewhere; name another file"
    with pytest.raises(InputError, match=f"cannot write {path}: .* is {told}"):
        write_file(path, b"new")
    assert precious.read_bytes() == b"precious"
    assert list(mine.iterdir()) == [precious]


def put_file(path, _, owner):
    path.touch()
    os.chown(path, owner, owner)


@as_root
@pytest.mark.parametrize(
    ("kind", "put"),
    [
        *itertools.product(["duckdb", "parquet"], [put_link, put_link_to_folder, put_link_behind_a_link]),
        ("duckdb", put_pipe),
        ("duckdb", put_file),
    ],
)
def test_no_export_goes_where_another_user_leads_it(tmp_path, kind, put):
    store = make_synthetic_store(tmp_path / "grid").store
    shared = folder_of(tmp_path / "shared", 0, 0o1777)
    (mine := tmp_path / "mine").mkdir()
    path = folder_of(shared / "there", SOMEBODY, 0o1777) / "out"
    put(path, mine / "out", SOMEBODY)
    what = {put_pipe: "pipe", put_file: "file"}.get(put, "link")
    shown = run("export", f"--{kind}", path, "--store", store.uri, code=2).output
    assert f"cannot write {path}: " in shown
    assert f" is a {what} of another user, user {SOMEBODY}, and might lead the writing elsewhere" in shown
    assert not list(mine.iterdir())


@as_root
@pytest.mark.parametrize("is_last", [True, False])
def test_no_figures_go_where_another_user_leads_them(tmp_path, is_last):
    store = make_synthetic_store(tmp_path / "grid").store
    shared = folder_of(tmp_path / "shared", 0, 0o1777)
    (mine := tmp_path / "mine").mkdir()
    put_link(shared / "way", mine, SOMEBODY)
    figures = shared / "way" if is_last else shared / "way/figures"
    page = tmp_path / "atlas.html"
    shown = run("atlas", "--out", page, "--figures", figures, "--store", store.uri, code=2).output
    assert "is a link of another user" in shown
    assert not list(mine.iterdir())


def test_a_pipe_of_ones_own_is_no_export_and_not_waited_for(tmp_path):
    store = make_synthetic_store(tmp_path / "grid").store
    os.mkfifo(tmp_path / "out.duckdb")
    shown = run("export", "--duckdb", tmp_path / "out.duckdb", "--store", store.uri, code=2).output
    assert "out.duckdb exists and is not an export of stitchgrid; name another file" in shown


def test_an_export_through_a_link_of_ones_own_leaves_the_link(tmp_path):
    store = make_synthetic_store(tmp_path / "grid").store
    (tmp_path / "out.duckdb").symlink_to("new/there.duckdb")
    for _ in range(2):
        run("export", "--duckdb", tmp_path / "out.duckdb", "--store", store.uri)
        assert (tmp_path / "out.duckdb").is_symlink()
        assert (tmp_path / "new/there.duckdb").is_file()


@as_root
def test_links_of_ones_own_of_root_and_of_a_folders_owner_are_followed(tmp_path):
    theirs = folder_of(tmp_path / "theirs", SOMEBODY, 0o755)
    (tmp_path / "there").mkdir()
    put_link(theirs / "way", tmp_path / "there", SOMEBODY)
    (tmp_path / "there/page").symlink_to("../last")
    write_whole(theirs / "way/page", b"1")
    assert (tmp_path / "last").read_bytes() == b"1"
    assert (tmp_path / "there/page").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_whole(tmp_path / "loop", b"1")


@pytest.mark.parametrize("has_reader", [True, False])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.write_bytes(b"theirs")])
def test_what_takes_the_place_of_a_file_while_it_is_opened_is_not_written(tmp_path, monkeypatch, put, has_reader):
    """In a folder in which only its owner can make files, who can also replace those of others."""
    page, opened = tmp_path / "page", os.open
    page.write_bytes(b"old")
    held = []

    def swap(path, flags, mode=0o777, *, dir_fd=None):
        if str(path).endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        if path == "page" and flags & os.O_WRONLY and not held:
            page.unlink()
            put(page)
            held.append(opened(page, os.O_RDONLY | os.O_NONBLOCK))
            if not has_reader:
                os.close(held[0])
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match=r"was replaced while it was being written|No such device or address"):
        write_whole(page, b"new")
    assert stat.S_ISFIFO(page.stat().st_mode) or page.read_bytes() == b"theirs"
    if has_reader:
        assert os.read(held[0], 10) != b"new"
        os.close(held[0])
