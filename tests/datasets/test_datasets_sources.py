"""The same pixels give the same images from every kind of source; what a source cannot be trusted with is refused."""

import io
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers_images import CLASSES, pack, png16, spec_of, whole_digest
from PIL import Image

from stitchgrid.datasets import open_images
from stitchgrid.datasets.user_dataset import own_data_digest
from stitchgrid.errors import InputError
from stitchgrid.records import DataSpec, Limits

OWN = """
import numpy as np
import torch
from pathlib import Path
from PIL import Image
from torch.utils.data import Dataset

print("loading")


class Files(Dataset):
    def __init__(self, split, root, kind="pil"):
        self.classes = ["cat", "dog", "eel"]
        self.paths = sorted(Path(root, split).rglob("*.png"))
        self.kind = kind

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        print("reading")
        path = self.paths[index]
        label = self.classes.index(path.parent.name)
        image = Image.open(path)
        if self.kind == "pil":
            return image, label
        array = np.array(image)
        if self.kind == "array":
            return array, np.int64(label)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        return (tensor if self.kind == "tensor" else tensor / 255), torch.tensor(label)
"""


def arrays_of(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split as NHWC and their labels, in the order of the folder's listing."""
    paths = sorted((root / split).rglob("*.png"))
    return np.stack([np.array(Image.open(path)) for path in paths]), np.array(
        [CLASSES.index(path.parent.name) for path in paths]
    )


def arrays_spec(root: Path, **changes) -> DataSpec:
    return spec_of(root, dataset="arrays", **changes)


def own_spec(tmp_path: Path, code: str, name: str = "Files", **changes) -> DataSpec:
    (tmp_path / "own.py").write_text(code)
    return DataSpec(dataset=f"{tmp_path / 'own.py'}:{name}", **changes)


# ---- arrays


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "float", "RGBA", "int", "column"])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_arrays_give_the_same_images_as_the_folder(root, cache, tmp_path, layout, place):
    wanted = whole_digest(open_images(spec_of(root), cache=cache))
    written = {}
    for split in ("train", "test"):
        images, labels = arrays_of(root, split)
        if layout == "NCHW":
            images = images.transpose(0, 3, 1, 2)
        elif layout == "float":
            images = images.astype(np.float32) / 255
        elif layout == "int":
            images = images.astype(np.int64)
        elif layout == "RGBA":
            images = np.concatenate([images, np.full((*images.shape[:3], 1), 9, np.uint8)], axis=3)
        written[split] = images, labels[:, None].astype(np.uint8) if layout == "column" else labels
    if place == "folder":
        where = tmp_path / "arrays"
        where.mkdir()
        for split, (images, labels) in written.items():
            np.savez(where / f"{split}.npz", images=images, labels=labels)
    else:
        where = tmp_path / "arrays.npz"
        named = {f"{split}_images": images for split, (images, _) in written.items()}
        np.savez(where, **named, **{f"{split}_labels": labels for split, (_, labels) in written.items()})
    bounds = {"float": (0.0, 1.0), "int": (0.0, 255.0)}.get(layout)
    for _ in range(2):  # decoded, and from the cache
        images = open_images(arrays_spec(where, range=bounds), cache=cache)
        assert whole_digest(images) == wanted
        assert images.class_names == ("0", "1", "2")
    assert len(list((cache / "images").glob("*/pixels.bin"))) == 4


def test_grey_arrays_and_one_npz_for_a_single_split(cache, tmp_path):
    images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.arange(5), class_names=np.array(list("abcde")))
    spec = arrays_spec(tmp_path / "a.npz", fit_split="all", eval_split="all", eval_samples=2)
    found = open_images(spec, cache=cache)
    assert (found.fit.num, found.eval.num, found.class_names) == (3, 2, tuple("abcde"))
    everyone = [*found.fit.batch(0, 3), *found.eval.batch(0, 2)]
    assert {image[2].numpy().tobytes() for image in everyone} == {image.tobytes() for image in images}
    with pytest.raises(InputError, match=r"has no array 'test_images'; it has class_names, images, labels\. A folder"):
        open_images(arrays_spec(tmp_path / "a.npz"), cache=cache)


def test_numbered_classes_can_be_named_or_put_in_order(cache, tmp_path):
    np.savez(tmp_path / "all.npz", images=np.zeros((3, 4, 4), np.uint8), labels=[0, 2, 0])
    one = {"fit_split": "all", "eval_split": "all", "eval_samples": 2}

    def labels(**changes):
        found = open_images(arrays_spec(tmp_path, **one, **changes), cache=cache)
        return sorted([*found.fit.labels.tolist(), *found.eval.labels.tolist()]), found.class_names

    assert labels() == ([0, 0, 2], ("0", "1", "2"))
    assert labels(classes=("no", "maybe", "yes", "never")) == ([0, 0, 2], ("no", "maybe", "yes", "never"))
    assert labels(classes=("2", "0", "1")) == ([0, 1, 1], ("2", "0", "1"))
    with pytest.raises(InputError, match=r"label 2 at position 1 is outside of the 2 classes 0 to 1"):
        labels(classes=("no", "yes"))
    found = open_images(arrays_spec(tmp_path, **one), cache=cache)
    assert found.notices == ("split 'all' has no images of 1 of 3 classes: 1",)


ZEROS = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"images": ZEROS}, r"has no array 'labels'; it has images\. A folder holds SPLIT\.npz with `images` and"),
        ({"images": ZEROS, "labels": [0, 1]}, "3 images and 2 labels in split 'test'"),
        ({"images": ZEROS, "labels": [0, -1, 1]}, "labels start at 0, got -1 at position 1"),
        ({"images": ZEROS, "labels": [0.0, 1.0, 2.0]}, r"labels are whole numbers, .*got float64 of shape \(3,\)"),
        ({"images": ZEROS, "labels": np.eye(3, dtype=int)}, r"labels are whole numbers, .*got int64 of shape \(3, 3\)"),
        ({"images": np.zeros((3, 3, 9, 3), np.uint8), "labels": [0, 1, 2]}, r"\(3, 3, 9, 3\): its second and its last"),
        ({"images": np.zeros((3, 5, 5, 2), np.uint8), "labels": [0, 1, 2]}, r"1, 3 or 4 channels, got \(3, 5, 5, 2\)"),
        ({"images": ZEROS, "labels": [0, 1, 9], "class_names": ["a", "b"]}, "label 9 at position 2 is outside of"),
        ({"images": ZEROS.astype(np.uint16) + 4000, "labels": [0, 1, 2]}, r"uint16 pixels.*largest 4000.*\[0, 4095\]"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_and_labels_are_refused(cache, tmp_path, written, message):
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", **written)
    with pytest.raises(InputError, match=message):
        open_images(arrays_spec(tmp_path), cache=cache)


def test_arrays_of_python_objects_are_not_unpickled(cache, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    for name in ("images", "labels"):
        held = {"images": ZEROS, "labels": np.arange(3), name: np.array([Evil()] * 3, dtype=object)}
        for split in ("train", "test"):
            np.savez(tmp_path / f"{split}.npz", **held)
        with pytest.raises(InputError, match=r"images of\s+different sizes"):
            open_images(arrays_spec(tmp_path), cache=cache)
    assert not (tmp_path / "evil").exists()


def test_what_is_no_npz_or_not_there_is_refused(cache, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder or file .*nowhere\.npz; set `root`"):
        open_images(arrays_spec(tmp_path / "nowhere.npz"), cache=cache)
    np.savez(tmp_path / "val.npz", images=ZEROS, labels=np.arange(3))
    with pytest.raises(InputError, match=r"has no test\.npz; .*known: val"):
        open_images(arrays_spec(tmp_path), cache=cache)
    (tmp_path / "a.npz").write_bytes(b"no archive at all")
    with pytest.raises(InputError, match=r"cannot read .*a\.npz as an \.npz"):
        open_images(arrays_spec(tmp_path / "a.npz"), cache=cache)
    np.save(tmp_path / "b.npy", ZEROS)
    with pytest.raises(InputError, match=r"b\.npy has no array 'test_images'; it has b\."):
        open_images(arrays_spec(tmp_path / "b.npy"), cache=cache)


def test_bytes_with_another_range_and_values_outside_of_it_are_refused(cache, tmp_path):
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=ZEROS + 3, labels=np.arange(3))
    with pytest.raises(InputError, match="uint8 pixels always range from 0 to 255, so `range`"):
        open_images(arrays_spec(tmp_path, range=(0, 16)), cache=cache)
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"{split}.npz", images=np.array([0.0, 1.0, 1.5]).repeat(16).reshape(3, 4, 4), labels=[0, 1, 2]
        )
    with pytest.raises(
        InputError, match=r"2 unreadable images: t.*\[2\] \(values from 1.5 to 1.5, outside of the range"
    ):
        open_images(arrays_spec(tmp_path, range=(0, 1)), cache=cache)


def test_replaced_arrays_are_noticed_though_size_and_time_are_kept(cache, tmp_path):
    for level in (3, 4):
        for split in ("train", "test"):
            path = tmp_path / f"{split}.npz"
            old = path.stat() if path.exists() else None
            np.savez(path, images=ZEROS + level, labels=np.arange(3))
            if old is not None:
                os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
                assert path.stat().st_size == old.st_size
        assert int(open_images(arrays_spec(tmp_path), cache=cache).fit.batch(0, 1).max()) == level


# ---- data sets of one's own


@pytest.mark.parametrize("kind", ["pil", "array", "tensor", "float"])
def test_a_data_set_of_ones_own_gives_the_same_images_as_the_folder(root, cache, tmp_path, kind, capsys):
    wanted = whole_digest(open_images(spec_of(root), cache=cache / "other"))
    bounds = (0, 1) if kind == "float" else None
    spec = own_spec(tmp_path, OWN, root=str(root), args=f'{{"kind":"{kind}"}}', range=bounds)
    images = open_images(spec, cache=cache)
    assert whole_digest(images) == wanted
    assert images.class_names == CLASSES
    assert not cache.exists() or not list((cache / "images").glob("*"))  # what decides them is not known
    assert capsys.readouterr().out == ""


def test_a_data_set_may_be_any_sequence_and_its_classes_may_have_no_names(cache, tmp_path):
    code = "import torch\nfrom torch.utils.data import TensorDataset\n" + (
        "def make(split):\n"
        "    images = torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).view(6, 3, 4, 4)\n"
        "    labels = torch.tensor([0, 1, 4, 1, 0, 1])\n"
        "    return TensorDataset(images, labels) if split == 'train' else [(images[k], k) for k in range(3)]\n"
    )
    images = open_images(own_spec(tmp_path, code, "make"), cache=cache)
    assert images.class_names == ("0", "1", "2", "3", "4")
    assert sorted(images.fit.labels.tolist()) == [0, 0, 1, 1, 1, 4]
    assert images.notices == (
        "split 'test' has no images of 2 of 5 classes: 3, 4",
        "split 'train' has no images of 2 of 5 classes: 2, 3",
    )
    named = open_images(own_spec(tmp_path, code, "make", classes=tuple("abcde")), cache=cache)
    assert named.class_names == tuple("abcde")


def test_a_changed_file_of_ones_own_is_run_again(cache, tmp_path):
    code = "import numpy as np\ndef make(split):\n    return [(np.full((4, 4), 7, np.uint8), 0)]\n"
    levels = []
    for level in (7, 8):
        spec = own_spec(tmp_path, code.replace("7", str(level)), "make")
        os.utime(tmp_path / "own.py", (1_000_000_000, 1_000_000_000))
        levels.append(int(open_images(spec, cache=cache).fit.batch(0, 1).max()))
    assert levels == [7, 8]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def makes(split): pass", r"own\.py has no function 'make'; did you mean 'makes'"),
        ("import nowhere_at_all", "own.py does not run: ModuleNotFoundError.*self-contained, or import what is"),
        ("raise SystemExit(3)", "own.py does not run: SystemExit: 3"),
        ("def make(): pass", "cannot open split '.*': TypeError: make.. takes 0 positional arguments but 1 was given"),
        ("def make(split): raise SystemExit('no')", "cannot open split '.*': SystemExit: no"),
        ("def make(split): return iter([])", "has to return a data set with a length and items .* got list_iterator"),
        ("def make(split): return [{'image': 1}]", r"an item is \(image, label\), got dict"),
        ("def make(split): return [(0, 'cat')]", "labels are whole numbers"),
        ("def make(split): return [(0, [0, 1])]", r"a label is one whole number, got shape \(2,\)"),
        ("import numpy as np\ndef make(split): return [(np.zeros((4, 4)), 0)]", r"float64 pixels.*`range = \[0, 1\]`"),
        ("import numpy as np\ndef make(split): return [(np.zeros(4, np.uint8), 0)]", r"wanted shape \(H, W\).*got \(4"),
        (
            "import numpy as np\nrng = np.random.default_rng(0)\nclass make(list):\n"
            "    def __init__(self, split): super().__init__(range(4))\n"
            "    def __getitem__(self, k): return rng.integers(0, 255, (4, 4), dtype=np.uint8), 0",
            "is another one when it is read again; leave random augmentation out",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_data_set_of_ones_own_is_said(cache, tmp_path, code, message):
    with pytest.raises(InputError, match=message):
        open_images(own_spec(tmp_path, code, "make"), cache=cache)


def test_a_missing_file_of_ones_own_is_named(cache, tmp_path):
    spec = DataSpec(dataset=f"{tmp_path}/none.py:make")
    with pytest.raises(InputError, match=r"there is no file .*none\.py; paths start at the job file"):
        open_images(spec, cache=cache)
    assert own_data_digest(spec) is None
    assert own_data_digest(DataSpec(dataset="digits")) is None
    one = own_data_digest(own_spec(tmp_path, "a = 1", "make"))
    assert one != own_data_digest(own_spec(tmp_path, "a = 2", "make"))


def test_all_bits_of_a_picture_that_is_not_decoded_yet_are_read(cache, tmp_path):
    (tmp_path / "a.png").write_bytes(png16(np.full((4, 4, 3), 2048)))
    code = f"from PIL import Image\ndef make(split): return [(Image.open({str(tmp_path / 'a.png')!r}), 0)]"
    images = open_images(own_spec(tmp_path, code, "make", range=(0, 4095)), cache=cache)
    assert images.fit.batch(0, 1).unique().tolist() == [128]


# ---- archives that are not to be trusted


def test_a_hostile_zip_reaches_no_file(root, cache, tmp_path):
    outside = tmp_path / "secret.png"
    Image.new("RGB", (5, 4)).save(outside)
    archive = pack(root, tmp_path / "hostile.zip")
    before = sorted(path for path in tmp_path.rglob("*") if cache not in path.parents)
    with zipfile.ZipFile(archive, "a") as file:
        for name in (
            "../train/cat/up.png",
            "/train/cat/absolute.png",
            "train/../../cat/in.png",
            "__MACOSX/x/cat/a.png",
        ):
            file.writestr(name, outside.read_bytes())
        link = zipfile.ZipInfo("train/cat/zlink.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(outside))
    with pytest.raises(InputError, match=r"1 unreadable image: train/cat/zlink.png \(cannot be read, or is a link\)"):
        open_images(spec_of(archive), cache=cache)
    images = open_images(spec_of(archive, on_bad_image="skip"), cache=cache)
    assert (images.fit.num, images.num_bad) == (18, 1)
    assert sorted(path for path in tmp_path.rglob("*") if cache not in [path, *path.parents]) == before


@pytest.mark.parametrize("suffix", [".tar", ".zip", ""])
def test_members_that_would_fill_the_memory_are_unreadable(root, cache, tmp_path, suffix):
    (root / "train/cat/huge.png").write_bytes(bytes(1_001))
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    with pytest.raises(
        InputError, match=r"1 unreadable image: train/cat/huge.png \(larger than 0.001 MB; if it is sound"
    ):
        open_images(spec_of(where, limits=Limits(file_bytes=1_000)), cache=cache)


def test_damaged_and_encrypted_members_of_a_zip_are_named(root, cache, tmp_path):
    archive = pack(root, tmp_path / "images.zip")
    with zipfile.ZipFile(archive) as file:
        places = {info.filename: info.header_offset for info in file.infolist()}
    content = bytearray(archive.read_bytes())
    content[places["train/cat/000.png"] + 60] ^= 0xFF
    entry = content.rfind(b"train/dog/000.png") - 46  # in the directory at the end
    for place in (places["train/dog/000.png"] + 6, entry + 8):
        content[place] |= 1  # encrypted
    archive.write_bytes(content)
    with pytest.raises(InputError, match="2 unreadable images") as caught:
        open_images(spec_of(archive), cache=cache)
    assert "train/cat/000.png (BadZipFile: Bad CRC-32" in str(caught.value) or "zlib" in str(caught.value)
    assert "train/dog/000.png (RuntimeError: " in str(caught.value)
    assert "is encrypted" in str(caught.value)


def test_a_picture_that_would_fill_the_memory_is_unreadable(root, cache):
    file = io.BytesIO()
    Image.new("L", (20, 11)).save(file, "PNG")
    (root / "train/cat/bomb.png").write_bytes(file.getvalue())
    with pytest.raises(InputError, match=r"1 unreadable image: train/cat/bomb.png \(20 x 11 pixels, more than the 200"):
        open_images(spec_of(root, limits=Limits(pixels=200)), cache=cache)
    assert open_images(spec_of(root, limits=Limits(pixels=220)), cache=cache).num_bad == 0
