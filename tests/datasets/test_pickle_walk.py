"""Pickles that ask for more than their file has, and those of sound checkpoints, which load as before."""

import argparse
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

from stitchgrid.datasets import pickle_calls, pickle_walk
from stitchgrid.datasets.array_files import open_arrays
from stitchgrid.datasets.pickle_calls import CALLS
from stitchgrid.datasets.pickle_keys import MOST_NUMBERS
from stitchgrid.datasets.pickle_values import ITEM_BYTES
from stitchgrid.errors import InputError
from stitchgrid.models.weights import load_checkpoint
from stitchgrid.records import Limits

HOOKS = b"ccollections\nOrderedDict\n)R"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(name):
    return b"c" + name.rpartition(".")[0].encode() + b"\n" + name.rpartition(".")[2].encode() + b"\n"


def stored(key="0", num=4, part=b""):
    start = b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu")
    return start + number(num) + part + b"tQ"


def size(*counts):
    return b"(" + b"".join(number(count) for count in counts) + b"t"


def tensor(storage=None, shape=(4,), strides=(1,)):
    start = V2 + b"(" + (storage or stored()) + b"K\x00"
    return start + size(*shape) + size(*strides) + b"\x89" + HOOKS + b"tR"


def attributes(name, value):
    """Return a tensor with an attribute."""
    start = named("torch._tensor._rebuild_from_type_v2") + b"(" + V2 + named("torch.Tensor")
    return start + b"(" + stored() + REST + b"}" + text(name) + value + b"stR"


def quantized(quantizer, shape=(4,), strides=(1,)):
    start = named("torch._utils._rebuild_qtensor") + b"(" + stored().replace(b"Float", b"QInt32") + b"K\x00"
    return start + size(*shape) + size(*strides) + quantizer + b"\x89" + HOOKS + b"tR"


def sparse(indices, layout="torch.sparse_coo"):
    start = named("torch._utils._rebuild_sparse_tensor") + b"(" + LAYOUT + text(layout) + b"\x85R("
    return start + indices + tensor() + size(9) + b"\x88ttR"


def shared_halves(depth=40):
    """Return a tuple of two, both of which are the same tuple of two, and so on."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


def write(path, content, *, is_archive=True):
    """Write a file of torch.save's with four numbers and another pickle."""
    torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=is_archive)
    if not is_archive:
        start, stop = path.read_bytes().index(b"}q\x00X\x01\x00\x00\x00w") - 2, None
        stop = path.read_bytes().index(b"]q\x00") - 2
        path.write_bytes(path.read_bytes()[:start] + content + path.read_bytes()[stop:])
        return
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in members:
            archive.writestr(name, content if name.endswith("/data.pkl") else old)


LAYOUT = named("torch.serialization._get_layout")
V2 = named("torch._utils._rebuild_tensor_v2")
NEVER = "with what torch.save never writes"
REST = b"K\x00(K\x04t(K\x01t\x89" + HOOKS + b"t"
REFUSED = {
    "hash": (b"}" + shared_halves() + b"Ns", "a tuple of more than a few names as a key"),
    "hash of a set": (named("builtins.set") + b"](" + shared_halves() + b"e\x85R", "a tuple of more than a few"),
    "hash of pairs": (named("collections.OrderedDict") + b"]" + shared_halves() + b"N\x86a\x85R", "a tuple of more"),
    "hash of a counter": (named("collections.Counter") + b"]" + shared_halves() + b"a\x85R", NEVER),
    "hash of a state": (HOOKS + b"]" + shared_halves() + b"N\x86ab", "a state that is no dictionary"),
    "hash of a storage": (stored().replace(text("0"), shared_halves()), "has numbers of no key or count"),
    "hash of a layout": (LAYOUT + shared_halves() + b"\x85R", NEVER),
    "hash of a sparse layout": (
        sparse(tensor()).replace(LAYOUT + text("torch.sparse_coo") + b"\x85R", shared_halves()),
        NEVER,
    ),
    "text of a scheme": (quantized(shared_halves() + b"\x85"), NEVER),
    "text of a state": (
        attributes("x", b"N")
        .replace(text("x") + b"Ns", text("x") + shared_halves() + b"s")
        .replace(b"stR", b"sNN\x87tR"),
        NEVER,
    ),
    "collisions": (
        b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, MOST_NUMBERS + 2)) + b"u",
        "more than 10,000 numbers as keys",
    ),
    "long key": (b"}" + text("x" * 5000) + b"Ns", "a key of 5,000 characters"),
    "typed storage": (named("torch.storage.TypedStorage") + number(10**9) + b"\x85R", "calls torch.storage.TypedSt"),
    "storage": (named("torch.storage.UntypedStorage") + number(10**9) + b"\x85R", "calls torch.storage.UntypedSt"),
    "new storage": (named("torch.storage.UntypedStorage") + number(10**9) + b"\x85\x81", "calls torch.storage.Unt"),
    "tensor": (named("torch.Tensor") + number(10**9) + b"\x85R", r"calls torch\.Tensor, which may take memory"),
    "typed tensor": (named("torch.FloatTensor") + number(10**9) + b"\x85\x81", r"calls torch\.FloatTensor"),
    "parameter": (named("torch.nn.parameter.Parameter") + number(10**9) + b"\x85\x81", r"calls torch\.nn\.param"),
    "through another": (
        named("torch._tensor._rebuild_from_type_v2") + b"(" + named("torch.Tensor") * 2 + number(10**9) + b"\x85}tR",
        NEVER,
    ),
    "of nothing": (V2 + b"(" + named("torch.Tensor") + b")R" + REST + b"R", NEVER),
    "encoding": (named("_codecs.encode") + text("x" * 9) + text("idna") + b"\x86R", NEVER),
    "copies": (
        b"]("
        + text("y" * 9000)
        + b"q\x000"[:2]
        + (named("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R") * 9
        + b"e",
        "copies what it holds again and again",
    ),
    "copies of sizes": (
        named("torch.Size") + b"(" + b"K\x01" * 50 + b"t\x85Rq\x00" + (named("torch.Size") + b"h\x00\x85R") * 999,
        "copies what it holds again and again",
    ),
    "methods": (HOOKS + b"}" + text("items") + b"Nsb", "replaces what dictionaries or tensors do"),
    "attributes": (attributes("__dict__", b"}"), "replaces what dictionaries or tensors do"),
    "copied numbers": (attributes("real", tensor()), "replaces what dictionaries or tensors do"),
    "state of a storage": (stored() + b"}" + text("_untyped_storage") + named("torch.Tensor") + b")Rsb", "has a state"),
    "state of a tensor": (
        named("torch.FloatTensor") + b")R(" + stored() + b"K\x00" + size(9) + size(1) + b"tb",
        "numbers",
    ),
    "more numbers": (tensor(shape=(10**9,)), "makes a tensor of more numbers than its storage has"),
    "far numbers": (tensor(shape=(2,), strides=(4,)), "makes a tensor of more numbers than its storage has"),
    "wider numbers": (
        tensor().replace(b"_v2", b"_v3").replace(HOOKS + b"tR", HOOKS + named("torch.int64") + b"tR"),
        "makes a tensor of more numbers than its storage has",
    ),
    "quantized numbers": (
        quantized(b"(" + named("torch.per_tensor_affine") + b"K\x01K\x00t", shape=(10**9,), strides=(0,)),
        "makes a tensor of more numbers than its storage has",
    ),
    "nested scales": (quantized(b"(" + named("torch.per_channel_affine") + b"](](K\x01eeK\x00K\x00t"), NEVER),
    "nested indices": (sparse(b"](](K\x01ee"), NEVER),
    "repeated indices": (sparse(tensor(shape=(10**9,), strides=(0,))), NEVER),
    "elements of a size": (named("torch.Size") + tensor() + b"\x85R", NEVER),
    "elements of a set": (named("builtins.set") + tensor() + b"\x85R", NEVER),
    "hooks": (tensor().replace(HOOKS, HOOKS + b"K\x00Ns"), NEVER),
    "items of a tensor": (tensor() + b"K\x00K\x01s", "sets items of what is no dictionary"),
    "items of a set": (b"\x8fK\x01a", "appends to what is no list"),
    "file of the system": (
        named("traceback.FrameSummary") + b"(" + text("/dev/zero") + b"K\x01Nt" + b"R",
        "names traceback.FrameSummary, which is no part of a state dict",
    ),
    "text of an error": (named("exceptions.OSError") + shared_halves() + b"\x85R)R", "names builtins.OSError"),
    "long name": (named("x" * 50_000 + ".y"), "names something by 50,002 characters"),
    "same numbers": (b"](" + tensor() + tensor(stored("0\0")) + b"e", "has 1 tensors without their numbers"),
    "few numbers": (tensor(stored(num=5)), "has 16 bytes of a tensor of 20"),
    "numbers of no count": (tensor(stored().replace(number(4), text("x" * 99))), "has numbers of no key or count"),
    "numbers of no type": (tensor(stored().replace(b"FloatStorage", b"nn")), "has numbers of no type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_in_the_file_is_not_made(tmp_path, monkeypatch, name):
    content, said = REFUSED[name]
    write(tmp_path / "w.pt", b"\x80\x02" + content + b".")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    for read in (load_checkpoint, open_arrays):
        with pytest.raises(InputError, match=rf"w\.pt .*{said}.*so that it is not read; save the model's state_dict"):
            read(tmp_path / "w.pt")


def test_more_tensors_than_allowed_are_not_made(tmp_path):
    write(tmp_path / "w.pt", b"\x80\x02](" + (V2 + b"(" + stored() + REST + b"R") * 4 + b"e.")
    assert len(load_checkpoint(tmp_path / "w.pt", Limits(tensors=10))) == len("four")
    write(tmp_path / "w.pt", b"\x80\x02](" + (V2 + b"(" + stored() + REST + b"R") * 11 + b"e.")
    with pytest.raises(InputError, match=r"makes more than 10 tensors; if it is sound, raise `tensors` under"):
        load_checkpoint(tmp_path / "w.pt", Limits(tensors=10))


HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
NUMBERS = struct.pack("<q4f", 4, 1, 2, 3, 4)
LISTED = b"](" + text("0") + b"e"


def write_stream(path, content, keys):
    """Write a file as torch before 1.6 did, with four numbers of key 0."""
    path.write_bytes(HEAD + b"\x80\x02" + content + b"." + b"\x80\x02" + keys + b"." + NUMBERS)


def part(key, start=b"K\x01", num=2):
    return b"(" + key + start + number(num) + b"t"


def test_before_archives_storages_and_their_parts_load(tmp_path):
    with_part = tensor(stored(part=part(text("part"))), (2,))
    write_stream(tmp_path / "w.pt", b"](" + tensor(stored(part=b"N")) + with_part + b"e", LISTED)
    whole, half = load_checkpoint(tmp_path / "w.pt")
    assert whole.tolist() == [1, 2, 3, 4]
    assert half.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        (tensor(stored("x", part=b"N")), b"](" + text("y") + b"e", "has 1 tensors without their numbers"),
        (tensor(stored("x", part=b"N")), b"}", "has no list of its tensors"),
        (tensor(stored("x", part=b"N")), b"]" + shared_halves() + b"a", "has no list of its tensors"),
        (tensor(stored("x", 10**9, b"N")), b"](" + text("x") + b"e", "has [0-9]+ bytes, and tensors of 4,000,000,000"),
        (tensor(stored(part=part(shared_halves()))), LISTED, "has numbers of no key or count"),
        (
            tensor(stored(part=b"](" + shared_halves() + b"K\x00K\x01e")),
            LISTED,
            "has a part of numbers that is no part",
        ),
        (tensor(stored(part=part(text("part"), num=9))), LISTED, "has a part of numbers that are not in the file"),
        (tensor(stored(part=part(text("part"))), (4,)), LISTED, "makes a tensor of more numbers than its storage has"),
    ],
)
def test_before_archives_all_storages_are_in_the_file(tmp_path, monkeypatch, content, keys, said):
    write_stream(tmp_path / "w.pt", content, keys)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match=said):
        load_checkpoint(tmp_path / "w.pt")


def test_before_archives_what_torch_does_not_allow_is_said(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="is a pickle but not a plain checkpoint"):
        load_checkpoint(tmp_path / "w.pt")


def test_tar_archives_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "pickle").write_bytes(HEAD)
    with tarfile.open(tmp_path / "w.pt", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match="is a tar archive"):
        load_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("change", ["another case", "two places"])
def test_archives_in_which_torch_may_find_other_members_are_not_read(tmp_path, monkeypatch, change):
    torch.save({"w": torch.zeros(4)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        info = zipfile.ZipInfo("w/DATA/0" if change == "another case" else "w/more")
        info.extra = struct.pack("<HHQHHQ", 1, 8, 0, 1, 8, 0) if change == "two places" else b""
        archive.writestr(info, bytes(16))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match="has two members of one name, or a member in two places"):
        load_checkpoint(tmp_path / "w.pt")


def test_archives_without_checksums_load(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(4)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint(tmp_path / "w.pt")["w"], torch.ones(4))


def test_more_values_than_allowed_are_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_walk, "MOST_INSTRUCTIONS", 1000)
    write(tmp_path / "w.pt", b"\x80\x02](" + b"}" * 990 + b"e.")
    assert len(load_checkpoint(tmp_path / "w.pt", Limits(tensors=10))) == 990
    write(tmp_path / "w.pt", b"\x80\x02](" + b"}" * 1000 + b"e.")
    with pytest.raises(InputError, match="has more than 1,000 values; if it is sound, raise `tensors` under"):
        load_checkpoint(tmp_path / "w.pt", Limits(tensors=10))


def test_a_small_archive_does_not_unpack_to_millions_of_values(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02](" + b"N" * 1_100_000 + b"e.")
        archive.writestr("w/version", "3")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match=r"has 1,[0-9]{3} bytes, and more than a million values more"):
        load_checkpoint(tmp_path / "w.pt")


def test_indices_are_not_read_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_calls, "FREE_SCANS", 0)
    monkeypatch.setattr(pickle_calls, "MOST_SCANS", 1)
    indices = tensor(stored().replace(b"Float", b"Int"), (1, 1), (1, 1))
    once = sparse(indices).replace(tensor(), tensor(shape=(1,)))
    write(tmp_path / "w.pt", b"\x80\x02](" + once * 8 + b"e.")
    load_checkpoint(tmp_path / "w.pt")
    write(tmp_path / "w.pt", b"\x80\x02](" + once * 9 + b"e.")
    with pytest.raises(InputError, match="reads the same numbers again and again"):
        load_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"X\xff\xff\xff\xffx", b"c" + b"x" * 50_000, b"S'" + b"x" * 50_000 + b"'"])
def test_a_pickle_that_ends_early_is_said_in_a_few_words(tmp_path, content):
    write(tmp_path / "w.pt", b"\x80\x02" + content)
    with pytest.raises(InputError, match="is damaged, truncated or no checkpoint") as caught:
        load_checkpoint(tmp_path / "w.pt")
    assert len(str(caught.value)) < 600


def test_a_text_that_is_longer_than_memory_is_damage(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x")
    for read in (load_checkpoint, open_arrays):
        with pytest.raises(InputError, match="is damaged"):
            read(tmp_path / "w.pt")


def test_a_damaged_file_does_not_make_the_next_one_damaged(tmp_path):
    indices = tensor(stored().replace(b"Float", b"Int"), (1, 1), (1, 1))
    unsound = sparse(indices).replace(tensor(), tensor(shape=(1,))).replace(size(9), size(0))
    write(tmp_path / "w.pt", b"\x80\x02](" + unsound + named("torch.device") + text("none") + b"\x85Re.")
    torch.save({"w": torch.ones(2)}, tmp_path / "next.pt")
    for read in (load_checkpoint, open_arrays):
        with pytest.raises(InputError, match="is damaged"):
            read(tmp_path / "w.pt")
        read(tmp_path / "next.pt")


def test_what_own_code_allows_is_made_with_quick_keys(tmp_path):
    namespace = named("argparse.Namespace") + b")\x81"
    with torch.serialization.safe_globals([argparse.Namespace]):
        torch.save({"args": argparse.Namespace(rate=0.1)}, tmp_path / "w.pt")
        assert load_checkpoint(tmp_path / "w.pt")["args"].rate == 0.1
        write(tmp_path / "w.pt", b"\x80\x02" + namespace + b"](" + shared_halves() + b"N\x86eb.")
        with pytest.raises(InputError, match="a tuple of more than a few names as a key"):
            load_checkpoint(tmp_path / "w.pt")
        write(tmp_path / "w.pt", b"\x80\x02" + namespace + shared_halves() + b"Ns.")
        with pytest.raises(InputError, match="a tuple of more than a few names as a key"):
            load_checkpoint(tmp_path / "w.pt")
        write(tmp_path / "w.pt", b"\x80\x02" + namespace + b"}" + text("x") + shared_halves() + b"sb)R.")
        with pytest.raises(InputError, match="calls what is no function"):
            load_checkpoint(tmp_path / "w.pt")


def a_checkpoint():
    """Return what training leaves: weights, an optimizer, a scheduler, plain values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].weight.is_sharded = False
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    return {
        "state_dict": model.state_dict(),
        "parameter": model[0].weight,
        "optimizer": optimizer.state_dict(),
        "ids": {id(value): 0 for value in model.parameters()},
        "scheduler": {key: value for key, value in scheduler.state_dict().items() if not callable(value)},
        "hyper_parameters": {
            "betas": (0.9, 0.99),
            ("a", 1): {1.5, "x"},
            None: b"bytes",
            True: 1 + 2j,
            torch.float32: 0,
            torch.Size([1]): 0,
        },
        "merges": {(f"a{number}", "b"): number for number in range(2 * MOST_NUMBERS)},
        "classes": {number: f"class {number}" for number in range(3 * MOST_NUMBERS)},
        "seen": Counter({"a": 2}),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.empty(2, device="meta"),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "uint16": torch.ones(3, dtype=torch.uint16),
        "rng": torch.get_rng_state(),
        "same": (shared := [1, 2], shared),
    }


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_training_saves_loads_as_torch_loads_it(tmp_path, is_archive):
    held = a_checkpoint()
    if not is_archive:
        held.pop("uint16"), held.pop("float8")
    torch.save(held, tmp_path / "w.pt", _use_new_zipfile_serialization=is_archive)
    found = load_checkpoint(tmp_path / "w.pt")
    assert found.keys() == held.keys()
    assert all(map(torch.equal, found["state_dict"].values(), held["state_dict"].values()))
    for key in ("classes", "hyper_parameters", "seen", "ids", "scheduler", "size", "same"):
        assert found[key] == held[key]


def test_dictionaries_as_python_2_wrote_them_load(tmp_path):
    pairs = b"](" + text("w") + V2 + b"(" + stored() + REST + b"R" + b"\x86" + text("b") + b"N\x86e"
    state = b"}" + text("_metadata") + named("collections.OrderedDict") + b"]\x85Rs"
    write(tmp_path / "w.pt", b"\x80\x02" + named("collections.OrderedDict") + pairs + b"\x85R" + state + b"b.")
    found = load_checkpoint(tmp_path / "w.pt")
    assert type(found) is OrderedDict
    assert list(found) == ["w", "b"]
    assert torch.equal(found["w"], torch.zeros(4))


def test_tensors_and_parameters_as_torch_before_0_4_wrote_them_load(tmp_path):
    first = named("torch.FloatTensor") + b")R(" + stored() + b"K\x00" + size(4) + size(1) + b"tb"
    second = named("torch.nn.parameter.Parameter") + tensor() + b"\x85R(\x88\x89" + HOOKS + b"tb"
    third = named("torch.nn.parameter.Parameter") + b")\x81(" + tensor() + b"N" + HOOKS + b"\x89\x89tb"
    write(tmp_path / "w.pt", b"\x80\x02](" + first + second + third + b"e.")
    found = load_checkpoint(tmp_path / "w.pt")
    assert all(value.tolist() == [0, 0, 0, 0] for value in found)
    assert [value.requires_grad for value in found] == [False, True, False]


def test_bytes_of_a_number_are_those_of_torch():
    known = torch.storage._dtype_to_storage_type_map().items()
    assert {"Untyped": 1} | {name.removesuffix("Storage"): kind.itemsize for kind, name in known} == ITEM_BYTES


def test_what_torch_itself_adds_to_the_list_of_own_code_is_refused():
    code = """
import torch
from torch.serialization import get_safe_globals
from stitchgrid.datasets.pickle_calls import RefusedPickleError, named

for one in get_safe_globals():
    try:
        print(named(f"{one.__module__}.{one.__qualname__}"))
    except RefusedPickleError:
        pass
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == ""


def test_every_function_that_torch_allows_is_known():
    known = {*CALLS, "builtins.bytearray"}
    refused = {"nested_tensor", "wrapper_subclass", "device_tensor_from_cpu_tensor", "device_tensor_from_numpy"}
    known |= {f"torch._utils._rebuild_{name}" for name in refused}
    allowed = {name for name, value in _get_allowed_globals().items() if callable(value)}
    assert {name for name in allowed - known if not name.endswith(("Storage", "Tensor"))} == set()
