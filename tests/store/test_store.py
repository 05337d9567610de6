"""A store as a folder: opening, names, files that are complete or not there, artefacts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_flow import at_once
from helpers_store import make_synthetic_store

from stitchgrid.errors import StoreError
from stitchgrid.store import Store
from stitchgrid.store.files import LocalFiles

BAD_NAMES = ["", ".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "a\n", "a b", "ü"]


def test_a_store_that_is_not_there_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(StoreError, match=r"no store at .*grid: there is no such folder; .*--store.*stitchgrid launch"):
        Store.open(tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path):
    with pytest.raises(StoreError, match="the folder is not a store"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_made_once_and_opened_by_any_spelling_of_its_place(tmp_path, monkeypatch):
    made = Store.open(tmp_path / "a" / "grid", create=True)
    made.write_job("s", {"x": 1})
    monkeypatch.chdir(tmp_path)
    for uri in ("a/grid", str(tmp_path / "a" / "grid"), f"file://{tmp_path}/a/grid", made.uri):
        assert Store.open(uri).sweep_names() == ["s"]
        assert Store.open(uri, create=True).sweep_names() == ["s"]


@pytest.mark.parametrize("uri", ["gs://bucket", "hdfs://name/grid", "file://host/grid"])
def test_places_this_version_cannot_use_are_refused(uri):
    with pytest.raises(StoreError, match=r"not supported by this version.*folder"):
        Store.open(uri, create=True)


def test_a_place_below_a_file_cannot_become_a_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot make a store at .*file/grid: .*--store"):
        Store.open(tmp_path / "file" / "grid", create=True)


def test_a_store_that_cannot_be_written_leaves_no_half_made_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .* No space left on device; check free space"):
        Store.open(tmp_path / "a" / "b" / "grid", create=True)
    assert list(tmp_path.iterdir()) == []


def test_creating_checks_that_an_old_store_can_still_be_written(tmp_path, monkeypatch):
    Store.open(tmp_path / "grid", create=True)

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    Store.open(tmp_path / "grid")  # reading is fine
    with pytest.raises(StoreError, match="Read-only file system"):
        Store.open(tmp_path / "grid", create=True)
    assert (tmp_path / "grid" / "store.json").exists()


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    Store.open(tmp_path, create=True)
    (tmp_path / "store.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match=r"format 99.*reads up to 2; upgrade"):
        Store.open(tmp_path)


def test_a_damaged_marker_is_explained(tmp_path):
    Store.open(tmp_path, create=True)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(StoreError, match=r"store\.json .* is damaged .*replace the file"):
        Store.open(tmp_path)


def test_a_store_that_vanishes_is_not_silently_made_again(tmp_path):
    store = Store.open(tmp_path / "grid", create=True)
    (tmp_path / "grid" / "store.json").unlink()
    (tmp_path / "grid").rmdir()
    with pytest.raises(StoreError, match="the store's folder is gone"):
        store.write_job("s", {})
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_escapes_the_store(tmp_path, name):
    store = Store.open(tmp_path / "grid", create=True)
    calls = [
        lambda: store.write_job(name, {}),
        lambda: store.read_plan(name),
        lambda: store.latest_revision(name),
        lambda: store.journal(name, "launch", []),
        lambda: store.journal("sweep", name, []),
        lambda: store.write_heartbeat(name, {}),
        lambda: store.write_artefact("network", name, b"x"),
        lambda: store.read_artefact("network", name),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="cannot be a name in a store"):
            call()
    assert [path.name for path in tmp_path.rglob("*")] == ["grid", "store.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    seen = []

    def interrupt(_):
        seen.extend(path.name for path in tmp_path.rglob("*") if path.is_file())
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    for write in (files.write_once, files.replace):
        with pytest.raises(KeyboardInterrupt):
            write("parts/x.parquet", b"data")
    assert len(seen) == 2
    assert not any(name.endswith(".parquet") for name in seen)  # DuckDB's globs match hidden files too
    assert [path.name for path in tmp_path.rglob("*")] == ["parts"]


def test_the_first_of_many_writers_wins(tmp_path):
    store = Store.open(tmp_path, create=True)
    won = []

    def write(number):
        if store.write_artefact("network", "key", b"%d" % number, ".safetensors"):
            won.append(number)

    at_once(8, write)
    assert len(won) == 1
    assert store.read_artefact("network", "key") == b"%d" % won[0]


def test_the_first_writer_wins_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    files = LocalFiles(tmp_path)
    assert files.write_once("a", b"first")
    assert not files.write_once("a", b"second")
    assert files.read("a") == b"first"
    assert files.names("") == ["a"]


def test_replacing_is_for_good(tmp_path):
    files = LocalFiles(tmp_path)
    files.replace("folder/a", b"first")
    files.replace("folder/a", b"second")
    assert files.read("folder/a") == b"second"
    assert files.names("folder") == ["a"]
    assert files.names("nowhere") == []
    with pytest.raises(StoreError, match=r"cannot read b in the store .*: No such file"):
        files.read("b")


def test_an_artefact_comes_back_as_it_went_in(tmp_path):
    store = Store.open(tmp_path, create=True)
    assert not store.has_artefact("evaluation", "k")
    assert store.write_artefact("evaluation", "k", b"{}", ".json")
    assert not store.write_artefact("evaluation", "k", b"other", ".json")
    assert store.has_artefact("evaluation", "k")
    assert not store.has_artefact("network", "k")
    assert Store.open(tmp_path).read_artefact("evaluation", "k") == b"{}"


def test_a_missing_artefact_is_an_error_that_says_so(tmp_path):
    store = Store.open(tmp_path, create=True)
    with pytest.raises(StoreError, match="has no network k; launch the sweep"):
        store.read_artefact("network", "k")


@pytest.mark.parametrize("damage", [b"", b"weight", b"weightz"])
def test_damaged_weights_are_never_handed_out(tmp_path, damage):
    store = Store.open(tmp_path, create=True)
    store.write_artefact("network", "k", b"weights")
    [data] = tmp_path.rglob("*.safetensors")
    data.write_bytes(damage)
    with pytest.raises(StoreError, match=r"network k .* is damaged: .*digest in its manifest; delete .*k\.manifest"):
        store.read_artefact("network", "k")
    next(tmp_path.rglob("k.manifest")).unlink()  # as the message says
    assert store.write_artefact("network", "k", b"weights")
    assert store.read_artefact("network", "k") == b"weights"


def test_a_manifest_without_its_data_is_damage(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_artefact("network", "k", b"weights")
    next(tmp_path.rglob("*.safetensors")).unlink()
    with pytest.raises(StoreError, match=r"network k .* is damaged"):
        store.read_artefact("network", "k")


def test_a_process_that_read_a_store_ends_well(tmp_path):
    make_synthetic_store(tmp_path)
    code = f"from stitchgrid.store import Store; o = Store.open({str(tmp_path)!r}).cell_status(); print(len(o.damaged))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
