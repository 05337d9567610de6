"""A store whose folder is moved away, or another put in its place, while somebody is at it."""

import os
import pickle
from pathlib import Path

import pytest
from helpers_store import SWEEP, make_row, make_synthetic_store, planned_cells

from stitchgrid.errors import StoreError, UnseenError
from stitchgrid.store import Store
from stitchgrid.store.files import LocalFiles

STEPS = ("link", "unlink", "rename")  # calls of os that change what is in a folder


@pytest.fixture
def stores(tmp_path):
    """Make two stores of the same sweep, one of them with things to free and to repair."""
    make_synthetic_store(tmp_path / "precious")
    store = make_synthetic_store(tmp_path / "grid").store
    store.write_part("shard", [make_row(next(planned_cells()), "accuracy", 0.5, cell_id="ff" * 16)])
    store.write_artefact("network", "unused", b"1")
    name = store.write_part("shard", [make_row(next(planned_cells()), "accuracy", 0.25)])
    (tmp_path / "grid/parts/v1" / name).write_bytes(b"damaged")
    manifest = tmp_path / "grid/artefacts/network/unused.manifest"
    for path in (manifest, *manifest.parent.glob("*.safetensors")):
        os.utime(path, (0, 0))
    return tmp_path


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def swap(place):
    (place / "grid").rename(place / "old")
    (place / "grid").symlink_to("precious")


@pytest.mark.parametrize(
    "do",
    [
        lambda store: store.remove(SWEEP),
        lambda store: store.collect(),
        lambda store: store.compact(),
        lambda store: store.set_aside(store.check()),
    ],
    ids=["remove", "gc", "compact", "repair"],
)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_nothing_is_changed_in_a_store_that_is_put_in_the_place_of_another(stores, monkeypatch, do, at):
    store, before, steps = Store.open(stores / "grid"), content_of(stores / "precious"), []

    def counting(call):
        def stepping(*args, **options):
            call(*args, **options)
            steps.append(call)
            if len(steps) == at:
                undo.undo()
                swap(stores)

        return stepping

    with monkeypatch.context() as undo:
        for name in STEPS:
            undo.setattr(os, name, counting(getattr(os, name)))
        try:
            done = do(store)
        except StoreError as problem:
            told = str(problem)
        else:
            told = " ".join(getattr(done, "stuck", ()))
    assert (stores / "grid").is_symlink(), "it was swapped"
    assert content_of(stores / "precious") == before
    assert f"the store at {stores / 'grid'} was replaced meanwhile: another folder is in its place" in told


CALLS = [
    lambda files: files.read("store.json"),
    lambda files: files.exists("store.json"),
    lambda files: files.names("parts/v1"),
    lambda files: files.folders(""),
    lambda files: files.facts("store.json"),
    lambda files: files.size("store.json"),
    lambda files: files.kind("store.json"),
    lambda files: files.is_strange("store.json"),
    lambda files: files.is_no_folder("parts"),
    lambda files: files.strangers(),
    lambda files: files.delete("store.json"),
    lambda files: files.write_once("new", b"1"),
    lambda files: files.replace("store.json", b"1"),
    lambda files: files.move("store.json", "new"),
    lambda files: files.prune("sweeps"),
    lambda files: files.check_writable(),
]


def test_every_access_says_that_a_store_was_replaced_or_is_gone(stores):
    files, before = Store.open(stores / "grid").files, content_of(stores / "precious")
    swap(stores)
    for call in CALLS:
        with pytest.raises(
            UnseenError, match="replaced meanwhile: another folder is in its place; nothing more is read"
        ):
            call(files)
    assert content_of(stores / "precious") == before
    (stores / "grid").unlink()
    for call in CALLS:
        with pytest.raises(UnseenError, match="replaced meanwhile: the store's folder is gone"):
            call(files)
    (stores / "old").rename(stores / "grid")
    assert files.names("") == ["store.json"]


def test_a_path_may_lead_to_the_same_folder_along_other_links(stores):
    (stores / "way").symlink_to("grid")
    files = LocalFiles(stores / "way")
    assert files.exists("store.json")
    (stores / "way").unlink()
    (stores / "grid").rename(stores / "moved")
    (stores / "way").symlink_to("moved")
    assert files.exists("store.json")


def test_another_process_opens_the_path_anew(stores):
    files = Store.open(stores / "grid").files
    other = pickle.loads(pickle.dumps(files))
    swap(stores)
    assert other.names("") == ["store.json"]
    with pytest.raises(UnseenError):
        files.names("")


def test_a_store_that_is_not_used_any_more_keeps_nothing_open(stores):
    def num_open():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    held = [LocalFiles(stores / "grid") for _ in range(5)]
    assert all(files.exists("store.json") for files in held)
    assert num_open() == before + 5
    held.clear()
    assert num_open() == before


def test_a_store_that_could_not_be_made_leaves_what_was_put_in_its_place(tmp_path, monkeypatch):
    place, other = tmp_path / "grid", Path(make_synthetic_store(tmp_path / "precious").store.uri)
    before = content_of(other)

    def refuse(_):
        place.rename(tmp_path / "old")
        place.symlink_to(other)
        raise StoreError("no room")

    monkeypatch.setattr(LocalFiles, "check_writable", refuse)
    with pytest.raises(StoreError, match="no room"):
        Store.open(place, create=True)
    assert content_of(other) == before
