"""Pickles that ask for more than their file has, and those of sound checkpoints, which load as before."""

import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

from stitchgrid.datasets.array_files import open_arrays
from stitchgrid.datasets.pickle_walk import EMPTY, MOST_NUMBERS, PLAIN
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


def stored(key="0", num=4):
    return b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu") + number(num) + b"tQ"


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


V2 = named("torch._utils._rebuild_tensor_v2")
REST = b"K\x00(K\x04t(K\x01t\x89" + HOOKS + b"t"
REFUSED = {
    "hash": (b"}" + shared_halves() + b"Ns", "a tuple of more than a few names as a key"),
    "hash of a set": (named("builtins.set") + b"](" + shared_halves() + b"e\x85R", "a tuple of more than a few"),
    "hash of pairs": (named("collections.OrderedDict") + b"]" + shared_halves() + b"N\x86a\x85R", "a tuple of more"),
    "hash of a counter": (named("collections.Counter") + b"]" + shared_halves() + b"a\x85R", "a tuple of more"),
    "hash of a state": (HOOKS + b"]" + shared_halves() + b"N\x86ab", "a state that is no dictionary"),
    "hash of a storage": (stored().replace(text("0"), shared_halves()), "a tuple of more than a few names as a key"),
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
        "by something else than torch's functions",
    ),
    "of nothing": (V2 + b"(" + named("torch.Tensor") + b")R" + REST + b"R", "of something else than numbers of the"),
    "encoding": (named("_codecs.encode") + text("x" * 9) + text("idna") + b"\x86R", "encodes a text by other than"),
    "copies": (
        b"]("
        + text("y" * 9000)
        + b"q\x000"[:2]
        + (named("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R") * 9
        + b"e",
        "copies what it holds again and again",
    ),
    "methods": (HOOKS + b"}" + text("items") + b"Nsb", "replaces what dictionaries or tensors do"),
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


@pytest.mark.parametrize(
    ("key", "keys", "said"),
    [
        ("x", b"](" + text("y") + b"e", "has 1 tensors without their numbers"),
        ("x", b"]" + shared_halves() + b"a", "a tuple of more than a few names as a key"),
    ],
)
def test_before_archives_all_storages_are_in_the_file(tmp_path, monkeypatch, key, keys, said):
    torch.save({}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    head = tmp_path.joinpath("w.pt").read_bytes().removesuffix(pickle.dumps({}, 2) + pickle.dumps([], 2))
    content = b"\x80\x02" + V2 + b"(" + stored(key, 10**9) + REST + b"R."
    (tmp_path / "w.pt").write_bytes(head + content + b"\x80\x02" + keys + b".")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match=said):
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
        },
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


def test_every_function_that_torch_allows_is_known():
    known = {*PLAIN, *EMPTY, "builtins.bytearray"}
    refused = {"nested_tensor", "wrapper_subclass", "device_tensor_from_cpu_tensor", "device_tensor_from_numpy"}
    known |= {f"torch._utils._rebuild_{name}" for name in refused}
    allowed = {name for name, value in _get_allowed_globals().items() if callable(value)}
    assert {name for name in allowed - known if not name.endswith(("Storage", "Tensor"))} == set()
