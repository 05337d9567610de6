"""What every place for stores promises: a folder, and a bucket with and without boto3."""

import pickle
import sys
import threading
from pathlib import Path

import pytest
from helpers_flow import at_once
from helpers_objects import make_bucket, moto_server, store_uri
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stitchgrid.errors import StoreError
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.object_address import parse_address
from stitchgrid.store.object_files import ObjectFiles

PLACES = ("folder", "bucket", "bucket without boto3")
PLACES_WITHOUT_RACES = PLACES[:2]


@pytest.fixture(scope="module")
def endpoint():
    with moto_server() as found:
        yield found


@pytest.fixture(scope="module")
def bucket(endpoint):
    return make_bucket(endpoint)


@pytest.fixture
def files(request, tmp_path, monkeypatch):
    place = request.param
    if place == "folder":
        return LocalFiles(tmp_path)
    if place == "bucket without boto3":
        monkeypatch.setitem(sys.modules, "boto3", None)
    endpoint, bucket = request.getfixturevalue("endpoint"), request.getfixturevalue("bucket")
    return ObjectFiles(parse_address(store_uri(endpoint, bucket, f"{tmp_path.name}/grid")))


everywhere = pytest.mark.parametrize("files", PLACES, indirect=True)


@everywhere
def test_what_is_written_is_read(files):
    assert not files.exists("a/b/x")
    files.replace("a/b/x", b"first")
    assert files.exists("a/b/x")
    assert files.read("a/b/x") == b"first"
    files.replace("a/b/x", b"")
    assert files.read("a/b/x") == b""
    assert not files.exists("a/b")  # a folder is no file
    assert not files.exists("a/b/x/y" if isinstance(files, ObjectFiles) else "a/b/y")


@everywhere
def test_the_first_writer_wins(files):
    assert files.write_once("a/x", b"first")
    assert not files.write_once("a/x", b"second")
    assert not files.write_once("a/x", b"first")
    assert files.read("a/x") == b"first"


@pytest.mark.parametrize("files", PLACES_WITHOUT_RACES, indirect=True)
def test_of_twenty_writers_at_once_one_wins(files, monkeypatch):
    monkeypatch.setattr(type(files), "exists", lambda *_: False)  # all are past the first look
    won = []

    def write(number):
        if files.write_once("x", b"%d" % number):
            won.append(number)

    at_once(20, write)
    assert len(won) == 1
    assert files.read("x") == b"%d" % won[0]


@everywhere
def test_names_are_sorted_and_tell_files_from_folders(files):
    for name in ("b/2", "b/10", "b/c/3", "b/d/e/4", "b/.hidden", "bb/5", "top"):
        files.replace(name, b"x")
    assert files.names("b") == ["10", "2"]
    assert files.folders("b") == ["c", "d"]
    assert files.names("") == ["top"]
    assert files.folders("") == ["b", "bb"]
    assert files.names("nowhere") == files.folders("nowhere") == []


@everywhere
def test_deleting_is_for_good_and_may_be_repeated(files):
    files.replace("a/x", b"1")
    files.replace("a/y", b"2")
    for _ in range(2):
        files.delete("a/x")
    files.delete("never/there")
    assert not files.exists("a/x")
    assert files.names("a") == ["y"]
    assert files.write_once("a/x", b"3")


@everywhere
def test_many_files_come_in_order_and_errors_stand_in_their_place(files):
    names = [f"parts/{number}" for number in range(80)]
    for number, name in enumerate(names):
        if number != 40:
            files.replace(name, b"%d" % number)
    found = list(files.read_many(iter(names)))
    assert isinstance(found.pop(40), StoreError)
    assert found == [b"%d" % number for number in range(80) if number != 40]
    assert next(iter(files.read_many(names))) == b"0"  # whoever stops early may
    assert list(files.read_many([])) == []


@everywhere
def test_a_missing_file_is_named_with_its_store(files):
    with pytest.raises(StoreError, match=r"cannot read a/x in the store .*(No such file|there is no such object)"):
        files.read("a/x")


@everywhere
def test_a_place_is_made_once_and_can_be_written(files):
    assert files.absence("store.json") != ""
    files.create("store.json", b"first")
    files.create("store.json", b"second")
    files.check_writable()
    assert files.read("store.json") == b"first"
    assert files.names("") == ["store.json"]
    assert files.folders("") == []


@everywhere
def test_facts_are_known_without_reading(files):
    assert files.facts("a/x") is None
    files.replace("a/x", b"12345")
    facts = files.facts("a/x")
    assert facts.num_bytes == 5
    assert -60 < facts.age_seconds < 60  # of clocks of two machines


def test_empty_folders_can_be_pruned_and_others_stay(tmp_path):
    files = LocalFiles(tmp_path)
    for name in ("a/b/c/x", "a/d/y", "a/z"):
        files.replace(name, b"1")
    files.delete("a/b/c/x")
    files.prune("a")
    assert files.folders("a") == ["d"]
    for name in ("a/d/y", "a/z"):
        files.delete(name)
    files.prune("a")
    files.prune("never")
    assert files.folders("") == []


@everywhere
def test_files_travel_without_their_connections(files):
    files.replace("x", b"1")
    there = pickle.loads(pickle.dumps(files))
    assert there.read("x") == b"1"
    assert there.uri == files.uri
    assert there.where("a/x") == files.where("a/x")
    assert files.where("a/x").endswith("grid/a/x" if isinstance(files, ObjectFiles) else f"{files.root}/a/x")


@everywhere
def test_names_may_hold_what_the_names_of_models_hold(files):
    for name in ("a b", "a%20b", "a+b", "é", "a=b&c"):
        files.replace(f"f/{name}", name.encode())
        assert files.read(f"f/{name}") == name.encode()
    assert files.names("f") == sorted(["a b", "a%20b", "a+b", "é", "a=b&c"])


@everywhere
@settings(deadline=None, max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["replace", "write_once", "delete"]), st.sampled_from("abc"), st.binary(max_size=3)),
        max_size=8,
    )
)
def test_any_steps_leave_what_a_dictionary_would_hold(files, steps):
    for name in "abc":
        files.delete(f"f/{name}")
    model = {}
    for step, name, data in steps:
        if step == "delete":
            files.delete(f"f/{name}")
            model.pop(name, None)
        elif step == "replace":
            files.replace(f"f/{name}", data)
            model[name] = data
        else:
            assert files.write_once(f"f/{name}", data) == (name not in model)
            model.setdefault(name, data)
    assert {name: files.read(f"f/{name}") for name in files.names("f")} == model


@pytest.mark.slow
@pytest.mark.parametrize("files", ["bucket"], indirect=True)
def test_a_listing_is_longer_than_a_page(files):
    names = [f"{number:04d}" for number in range(1_050)]
    threads = [threading.Thread(target=put_all, args=(files, names[first::8])) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.names("many") == names


def put_all(files, names):
    for name in names:
        files.replace(f"many/{name}", b"")


@pytest.mark.parametrize("files", PLACES[1:], indirect=True)
def test_a_large_object_comes_back_whole(files):
    data = bytes(range(256)) * 50_000  # 12.8 MB: pyarrow alone sends it in pieces
    files.replace("large", data)
    assert files.read("large") == data


def test_a_file_below_a_file_is_an_error(tmp_path):
    files = LocalFiles(tmp_path)
    files.replace("x", b"1")
    with pytest.raises(StoreError, match=r"cannot delete x/y in the store .*Not a directory"):
        files.delete("x/y")
    assert Path(files.where("x")).read_bytes() == b"1"
