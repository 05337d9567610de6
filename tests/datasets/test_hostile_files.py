"""Images, arrays and checkpoints that look like others, or name what cannot be: they start no program and are named."""

import ast
import io
import json
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_images import pack, spec_of, whole_digest, write_folder
from PIL import EpsImagePlugin, Image
from torch import nn

import stitchgrid
from stitchgrid.datasets import open_images
from stitchgrid.datasets.array_files import open_arrays
from stitchgrid.datasets.decoding import decode, is_large
from stitchgrid.datasets.image_files import IMAGE_SUFFIXES, PILLOW_FORMATS
from stitchgrid.datasets.numeric_labels import MOST_CLASSES, as_labels
from stitchgrid.datasets.sources import Unreadable
from stitchgrid.errors import InputError
from stitchgrid.models.weights import load_checkpoint, load_into, load_weights
from stitchgrid.printable import is_text
from stitchgrid.records import DataSpec

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n"


# Programs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Return the file that a program called gs makes wherever it is started."""
    folder, marker = tmp_path / "bin", tmp_path / "it-ran"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\n/bin/touch {marker}\nexit 1\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow has not looked for it yet
    return marker


def test_pillow_by_itself_starts_the_program(ran):
    with pytest.raises(Exception, match="gs"), Image.open(io.BytesIO(EPS)) as image:
        image.load()
    assert ran.exists()


def test_postscript_that_is_called_png_is_no_image_and_starts_no_program(root, cache, ran):
    assert decode(EPS, "0.png", 0) == Unreadable(name="0.png", reason="not an image")
    assert not is_large(EPS)
    (root / "train/cat/000.png").write_bytes(EPS)
    with pytest.raises(InputError, match=r"1 unreadable image: train/cat/000\.png \(not an image\)"):
        open_images(spec_of(root), cache=cache)
    assert not ran.exists()


@pytest.mark.parametrize("how", ["", ".convert('RGB')"])
def test_postscript_in_a_data_set_of_ones_own_starts_no_program(tmp_path, cache, ran, how):
    (tmp_path / "0.png").write_bytes(EPS)
    made = f"[(Image.open({str(tmp_path / '0.png')!r}){how}, 0)]"
    (tmp_path / "data.py").write_text(
        f"from PIL import Image\nclass D(list):\n    targets = [0]\n"
        f"    def __len__(self): return 1\n    def __getitem__(self, i): return {made}[i]\n"
        "def make(split): return D()\n"
    )
    with pytest.raises(InputError, match=r"\[0\] \((an image of the format EPS|OSError: Unable to locate Ghostscript)"):
        open_images(DataSpec(dataset=f"{tmp_path / 'data.py'}:make"), cache=cache)
    assert not ran.exists()


@pytest.mark.parametrize("form", ["ICO", "SGI", "PDF"])
def test_other_formats_are_no_images_whatever_they_are_called(form):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, form)
    assert decode(file.getvalue(), "0.png", 0) == Unreadable(name="0.png", reason="not an image")


def test_each_suffix_stands_for_a_format_that_is_read():
    Image.init()
    known = {**Image.EXTENSION, ".mpo": "JPEG"}
    assert {suffix: known[suffix] for suffix in IMAGE_SUFFIXES} == {
        suffix: form for form, some in PILLOW_FORMATS.items() for suffix in some.split()
    }
    assert PILLOW_FORMATS.keys() <= Image.OPEN.keys()


def opening_calls(source):
    """Yield where a file opens images with Pillow itself."""
    names = {"Image"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
            names |= {one.asname for one in node.names if one.name == "Image" and one.asname}
            yield from (one.name for one in node.names if one.name == "open")
        if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).split(".")[-1] in names:
            yield ast.unparse(node)
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).endswith(("default_loader", "pil_loader")):
            yield ast.unparse(node)


def test_images_are_opened_in_one_place():
    sources = list(Path(stitchgrid.__file__).parent.rglob("*.py"))
    found = {path.name: calls for path in sources if (calls := [*opening_calls(path.read_text())])}
    assert found == {"image_files.py": ["Image.open"]}
    for source in ("Image.open(f)", "PIL.Image.open(f)", "from PIL import Image as I\nI.open(f)"):
        assert [*opening_calls(source)]


# Arrays ---------------------------------------------------------------------------------------------------------------


def arrays_spec(path, **arrays):
    np.savez(path, images=np.zeros((30, 4, 4, 3), np.uint8), **arrays)
    return DataSpec(dataset="arrays", root=str(path), fit_split="all", eval_split="all", eval_samples=10)


@pytest.mark.parametrize(
    ("labels", "largest"),
    [
        (np.full(30, 2**62), "4,611,686,018,427,387,904 at position 0"),
        (np.full(30, 2**64 - 1, np.uint64), "18,446,744,073,709,551,615 at position 0"),
        (np.arange(30) * 10**6, "29,000,000 at position 29"),
        (np.arange(30) + MOST_CLASSES - 29, "1,000,000 at position 29"),
    ],
)
@pytest.mark.parametrize("names", [{}, {"class_names": np.array(["a", "b"])}])
def test_labels_of_more_classes_than_there_can_be_are_refused(tmp_path, cache, labels, largest, names):
    spec = arrays_spec(tmp_path / "a.npz", labels=labels, **names)
    with pytest.raises(InputError, match=rf"a\.npz, labels: label {largest} is more than 1,000,000 classes"):
        open_images(spec, cache=cache)


def test_the_largest_label_that_there_can_be_is_taken_in_any_type():
    for kind in (np.uint64, np.int32):
        assert as_labels(np.array([MOST_CLASSES - 1], kind), "x").tolist() == [MOST_CLASSES - 1]


# Names that are no text -----------------------------------------------------------------------------------------------


def add(root, name, content):
    path = root / "train" / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def opened_as(root, tmp_path, kind):
    return spec_of(root if kind == "folder" else pack(root, tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_files_whose_names_are_no_text_are_read_and_left_out_like_others(root, cache, tmp_path, kind):
    before = open_images(opened_as(root, tmp_path, kind), cache=cache)
    add(root, b"cat/\xff.png", (root / "train/cat/000.png").read_bytes())
    add(root, b"cat/a.\xff", b"x")
    after = open_images(opened_as(root, tmp_path, kind), cache=cache)
    assert after.num_fit_listed == before.num_fit_listed + 1
    assert after.notices == ("split 'train': 1 file left out: 1 .\N{REPLACEMENT CHARACTER}",)


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (b"cat/\xff.png", b"x", r"train/cat/\ufffd\.png \(not an image\)"),
        (b"\xffcat/a.png", None, r"the name of a class is no text in UTF-8: '\ufffdcat'; give it"),
        (b"\xffcat/a.txt", b"x", r"no image in 1 of 4 class folders, in split .*: \ufffdcat\. Remove"),
    ],
)
def test_what_is_refused_of_a_name_that_is_no_text_is_named(root, cache, tmp_path, kind, name, content, said):
    add(root, name, content or (root / "train/cat/000.png").read_bytes())
    with pytest.raises(InputError, match=said) as refused:
        open_images(opened_as(root, tmp_path, kind), cache=cache)
    assert is_text(str(refused.value))


def test_names_of_images_forge_no_lines(root, cache, tmp_path):
    for name in ("a\n  - forged.png", "b.x\nforged"):
        (root / "train" / "cat" / name).write_bytes(b"no image")
    for place in (root, pack(root, tmp_path / "a.tar")):
        with pytest.raises(InputError, match=r"cat/a\\n  - forged\.png \(not an image\)"):
            open_images(spec_of(place), cache=cache)
        assert any(
            r"1 .x\nforged" in line for line in open_images(spec_of(place, on_bad_image="skip"), cache=cache).notices
        )


def test_images_may_lie_below_a_folder_whose_name_is_no_text(tmp_path, cache):
    root = write_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    images = open_images(spec_of(root), cache=cache)
    assert whole_digest(images) == whole_digest(open_images(spec_of(write_folder(tmp_path / "b")), cache=cache))


@pytest.mark.parametrize(
    ("characters", "said"),
    [
        (b"\xff\xff\xff\x7f", r"a\.npz, class_names: a name has invalid characters"),
        (b"\x00\xd8\x00\x00", "the name of a class is no text in UTF-8"),
    ],
)
def test_class_names_of_characters_that_do_not_exist_are_refused(tmp_path, cache, characters, said):
    names = np.frombuffer(characters + b"a\0\0\0", "<U1")
    with pytest.raises(InputError, match=said):
        open_images(arrays_spec(tmp_path / "a.npz", labels=np.arange(30) % 2, class_names=names), cache=cache)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def quantized(value):
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"a": state, "b": nn.Linear(3, 2).state_dict()}])
def test_quantized_tensors_are_refused_in_one_line(tmp_path, wrap):
    state = {name: quantized(value) for name, value in nn.Linear(3, 2).state_dict().items()}
    torch.save(wrap(state), tmp_path / "w.pt")
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    with pytest.raises(InputError, match=r"w\.pt holds 2 quantized tensors, such as weight; save") as refused:
        load_weights(module, tmp_path / "w.pt", key=None if "weight" in wrap(state) else "a")
    assert "\n" not in str(refused.value)
    assert torch.equal(module.weight, before)


def test_complex_tensors_are_refused_where_the_network_has_real_ones(tmp_path):
    state = nn.Linear(3, 2).state_dict()
    torch.save({**state, "bias": state["bias"] + 1j}, tmp_path / "w.pt")
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    with pytest.raises(
        InputError, match=r"1 complex tensors, such as bias \(torch.complex64\), where the network has real"
    ):
        load_weights(module, tmp_path / "w.pt")
    assert torch.equal(module.weight, before)
    complex_one = nn.Linear(3, 2, dtype=torch.complex64)
    load_into(complex_one, {**state, "bias": state["bias"] + 1j}, origin="x")
    assert torch.equal(complex_one.bias, state["bias"] + 1j)
    assert torch.equal(complex_one.weight.real, state["weight"])


def test_types_that_torch_cannot_copy_are_refused_in_one_line():
    value = torch.zeros(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(
        InputError, match=r"the file cannot be copied into Linear \(.*weight.*\); save it as float32"
    ) as refused:
        load_into(nn.Linear(3, 2), {"weight": value, "bias": torch.zeros(2)}, origin="the file")
    assert "\n" not in str(refused.value)


def with_pickle(path, content, kind):
    """Write a checkpoint around a pickle, as torch.save has written them before 1.6 and since."""
    torch.save({}, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "legacy":
        plain = pickle.dumps({}, 2)
        path.write_bytes(path.read_bytes().replace(plain, content, 1))
        return
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in members:
            is_it = name.endswith("/data.pkl")
            archive.writestr(
                name.replace("data.pkl", "DATA.pkl") if kind == "case" else name, content if is_it else old
            )


@pytest.mark.parametrize("kind", ["legacy", "archive", "case"])
@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
        b"\x80\x02c__builtin__\nbytearray\nq\x00\x8a\x05\x00\x00\x00\x00\x01\x85R.",
        b"\x80\x02}q\x00K\x01J\x00\x00\x00\x7fq\x01scbuiltins\nbytearray\nh\x01\x85R.",
    ],
)
def test_a_bytearray_of_any_number_of_bytes_is_not_made(tmp_path, monkeypatch, content, kind):
    with_pickle(tmp_path / "w.pt", content, kind)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match=r"w\.pt makes a bytearray, which may take any amount of memory"):
        load_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["legacy", "archive", "case"])
def test_other_pickles_are_read_as_before(tmp_path, kind):
    held = {"step": 2**31 - 1, "bytearray ": [1.5, "bytearrays"], "seen": {1, 2}, "raw": b"x"}
    with_pickle(tmp_path / "w.pt", pickle.dumps(held, 2), kind)
    assert load_checkpoint(tmp_path / "w.pt") == held


def test_an_archive_that_torch_may_read_differently_is_refused(tmp_path):
    with_pickle(tmp_path / "w.pt", pickle.dumps({}, 2), "archive")
    raw = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(
        raw.replace(b"/data.pkl", b"/xxxx.pkl", 1)
    )  # in front of the content, not at the end
    with pytest.raises(InputError, match=r"w\.pt \(\d+ bytes\) is damaged, truncated or no checkpoint \(BadZipFile"):
        load_checkpoint(tmp_path / "w.pt")


def with_two_directories(path):
    """Write an archive with a second directory in front of the one that zipfile finds; torch finds the first."""
    torch.save({"w": torch.ones(4)}, path.with_name("shown.pt"))
    shown = zipfile.ZipFile(path.with_name("shown.pt"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for info in shown.infolist():
            archive.writestr(info.filename, shown.read(info))
    raw = content.getvalue()
    directory = raw[int.from_bytes(raw[-6:-2], "little") : -22]
    path.write_bytes(raw[:-22] + directory + raw[-22:])


def test_an_archive_of_two_directories_is_not_read(tmp_path, monkeypatch):
    with_two_directories(tmp_path / "w.pt")
    assert zipfile.ZipFile(tmp_path / "w.pt").infolist()  # zipfile takes it
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    for read in (load_checkpoint, open_arrays):
        with pytest.raises(InputError, match=r"w\.pt is damaged: a zip archive whose directory does not end where"):
            read(tmp_path / "w.pt")


@pytest.mark.parametrize("behind", [b"", b"x", b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("by", ["torch", "zipfile", "zip64"])
def test_only_an_archive_that_ends_with_its_directory_is_read(tmp_path, monkeypatch, by, behind):
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt")
    if by == "zipfile":
        with_pickle(tmp_path / "w.pt", pickle.dumps({}, 2), "archive")
    raw = (tmp_path / "w.pt").read_bytes()
    if by == "zip64":  # the record that torch follows lies elsewhere
        place = raw.rindex(b"PK\x06\x07") + 8
        raw = (
            raw[:place]
            + (int.from_bytes(raw[place : place + 8], "little") - 1).to_bytes(8, "little")
            + raw[place + 8 :]
        )
    (tmp_path / "w.pt").write_bytes(raw + behind)
    if behind or by == "zip64":
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
        with pytest.raises(InputError, match=r"w\.pt .*damaged"):
            load_checkpoint(tmp_path / "w.pt")
    else:
        assert set(load_checkpoint(tmp_path / "w.pt")) == ({"w"} if by == "torch" else set())


def test_views_that_repeat_a_few_numbers_are_no_arrays(tmp_path):
    torch.save({"x": torch.ones(1).expand(4, 5)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt, x: a tensor of shape \(4, 5\), but the file holds fewer numbers"):
        open_arrays(tmp_path / "w.pt")
    torch.save(
        {"x": torch.ones(6, 5)[::2].T, "y": torch.ones(2, 1).expand(2, 1), "z": torch.ones(0)}, tmp_path / "w.pt"
    )
    assert open_arrays(tmp_path / "w.pt").read("x").shape == (5, 3)


def test_views_that_stand_for_far_more_than_their_file_are_no_checkpoint(tmp_path):
    torch.save({"a": [{"x": torch.ones(1).expand(3, 10**7)}]}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt .*to 120 MB, more than 20 times its size.*call .contiguous"):
        load_checkpoint(tmp_path / "w.pt")
    torch.save({"x": torch.ones(1).expand(3, 10)}, tmp_path / "w.pt")  # as some networks keep constants
    assert load_checkpoint(tmp_path / "w.pt")["x"].shape == (3, 10)


def test_tensors_without_values_are_no_arrays(tmp_path):
    torch.save({"x": torch.ones(10**9, device="meta")}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt, x: wanted a dense array of real numbers, got .* without values"):
        open_arrays(tmp_path / "w.pt").read("x")


def test_an_npz_whose_array_says_more_numbers_than_it_has_is_not_made_room_for(tmp_path, monkeypatch):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue() + bytes(8))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("room is made"))
    with pytest.raises(InputError, match=r"a\.npz .*x holds fewer bytes than its shape \(1000000000,\) needs"):
        open_arrays(tmp_path / "a.npz").read("x")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff", "is damaged"), (b"\x80\x02cos\nsystem\n.", "makes a bytearray")]
)
def test_a_broken_pickle_hides_no_other(tmp_path, monkeypatch, content, said):
    with_pickle(tmp_path / "w.pt", b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.", "archive")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        members = [("w/a.pkl", content), *((info.filename, archive.read(info)) for info in archive.infolist())]
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for member in members:
            archive.writestr(*member)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InputError, match=said):
        load_checkpoint(tmp_path / "w.pt")


def require_refused_array(content, path):
    """Write an array as .npy, or into an .npz, and look how it is refused."""
    path.write_bytes(content)
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    with pytest.raises(InputError, match=rf"cannot read .*x{path.suffix} as an {path.suffix} \(\w+Error: "):
        open_arrays(path).read("x")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy's, before it refuses
@pytest.mark.parametrize("shape", ["(0,99999999999999999999999)", "(0,9223372036854775808)", "(-1,0)", "(2**70,)"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_impossible_shapes_are_refused(tmp_path, shape, suffix):
    header = f"{{'descr':'<f4','fortran_order':False,'shape':{shape}}}\n".encode()
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header
    require_refused_array(content, tmp_path / f"x{suffix}")


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize(
    "header",
    [
        b"((((",
        b"  x\n y\n  z",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), '''",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}",
        b"{'descr': ',,', 'fortran_order': False, 'shape': (3, 4)}",
        b"{5: '<f4', 'fortran_order': False, 'shape': (3,)}",
        b"{[]: 1}",
        b"-" * 9_000 + b"1",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_whose_headers_are_no_python_are_refused(tmp_path, header, version, suffix):
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    content = b"\x93NUMPY" + bytes([version, 0]) + size + header + b"\0" * 48
    require_refused_array(content, tmp_path / f"x{suffix}")


def test_an_archive_that_is_called_npy_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    require_refused_array((tmp_path / "a.npz").read_bytes(), tmp_path / "x.npy")
    require_refused_array(pickle.dumps([1]), tmp_path / "x.npy")


def test_tensors_that_are_kept_with_the_other_sign_are_read_with_theirs(tmp_path):
    torch.save({"x": torch.tensor([1 + 2j, 3 - 4j]).conj().imag}, tmp_path / "x.pt")
    assert open_arrays(tmp_path / "x.pt").read("x").tolist() == [-2, 4]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images_of_no_pixels_cannot_be_read(tmp_path, cache, kind):
    np.savez(tmp_path / "train.npz", images=np.zeros((4, 0, 8), kind), labels=[0, 1, 0, 1])
    bounds = None if kind is np.uint8 else (0, 1)
    spec = DataSpec(
        dataset="arrays", root=str(tmp_path), fit_split="train", eval_split="train", eval_samples=2, range=bounds
    )
    with pytest.raises(InputError, match=r"train\[0\] \(no pixels: its shape is \(0, 8\)\)"):
        open_images(spec, cache=cache)


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**62, 2**62], [0] + [1] * 100])
def test_tensors_of_impossible_shapes_are_refused(tmp_path, shape):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match=r"x\.safetensors(, x: no array has the shape| as safetensors \(TypeError)"):
        open_arrays(tmp_path / "x.safetensors").read("x")
    with suppress(InputError):  # nothing else; torch takes more shapes than numpy
        load_checkpoint(tmp_path / "x.safetensors")
