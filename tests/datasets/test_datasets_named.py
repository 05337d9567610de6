import inspect
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stitchgrid.datasets import open_images
from stitchgrid.datasets.registry import TORCHVISION, known_datasets, known_splits
from stitchgrid.errors import InputError
from stitchgrid.records import DataSpec


def test_digits_have_a_fixed_split_of_all_images(tmp_path):
    from sklearn.datasets import load_digits

    images = open_images(DataSpec(dataset="digits"), cache=tmp_path)
    other = open_images(DataSpec(dataset="digits", seed=1), cache=tmp_path)
    assert (images.fit.num, images.eval.num, images.num_classes) == (1_297, 500, 10)
    assert images.fit.size == (8, 8)
    everyone = torch.cat([images.fit.batch(0, 1_297), images.eval.batch(0, 500)])
    assert everyone.max() == 255
    assert (everyone == everyone[:, :1]).all()
    raw = {(np.rint(image * (255 / 16)).astype(np.uint8).tobytes()) for image in load_digits().images}
    assert {image[0].numpy().tobytes() for image in everyone} == raw
    as_set = [{image.numpy().tobytes() for image in one.eval.batch(0, 500)} for one in (images, other)]
    assert as_set[0] == as_set[1]
    assert images.eval.digest(500) != other.eval.digest(500)
    assert not list(tmp_path.iterdir())


def test_digits_can_be_learned_from_their_labels(tmp_path):
    from sklearn.linear_model import RidgeClassifier

    images = open_images(DataSpec(dataset="digits"), cache=tmp_path)
    sides = [
        (split.batch(0, split.num).flatten(1).numpy() / 255, split.labels.numpy())
        for split in (images.fit, images.eval)
    ]
    assert RidgeClassifier().fit(*sides[0]).score(*sides[1]) > 0.9


def test_digits_refuse_an_unknown_split(tmp_path):
    with pytest.raises(InputError, match="digits has no split 'val'"):
        open_images(DataSpec(dataset="digits", eval_split="val"), cache=tmp_path)


def write_usps(root: Path, name: str, labels: list[int]) -> None:
    import bz2

    lines = []
    for row, label in enumerate(labels):
        values = np.random.default_rng(row).uniform(-1, 1, 256)
        lines.append(f"{label + 1} " + " ".join(f"{i + 1}:{value:.3f}" for i, value in enumerate(values)))
    (root / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))


def test_a_torchvision_set_is_read_by_its_name(tmp_path, cache):
    write_usps(tmp_path, "usps.bz2", [3, 1, 4, 1, 5])
    write_usps(tmp_path, "usps.t.bz2", [9, 2])
    for _ in range(2):  # decoded, and from the cache
        images = open_images(DataSpec(dataset="USPS", root=str(tmp_path)), cache=cache)
        assert (images.fit.num, images.eval.num, images.num_classes) == (5, 2, 10)
        assert sorted(images.fit.labels.tolist()) == [1, 1, 3, 4, 5]
        assert sorted(images.eval.labels.tolist()) == [2, 9]
        assert images.fit.size == (16, 16)


def write_mnist(root: Path, labels: list[int]) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    num = len(labels)
    for part in ("train", "t10k"):
        pixels = np.random.default_rng(num).integers(0, 256, (num, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, num, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, num) + bytes(labels))


def test_replaced_files_of_a_torchvision_set_are_noticed_though_size_and_time_are_kept(tmp_path, cache):
    write_mnist(tmp_path, [3, 1, 4])
    spec = DataSpec(dataset="MNIST", root=str(tmp_path))
    assert sorted(open_images(spec, cache=cache).fit.labels.tolist()) == [1, 3, 4]
    files = {path: path.stat() for path in tmp_path.rglob("*-ubyte")}
    write_mnist(tmp_path, [2, 7, 8])
    for path, old in files.items():
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert path.stat().st_size == old.st_size
    assert sorted(open_images(spec, cache=cache).fit.labels.tolist()) == [2, 7, 8]


def test_labels_that_are_none_of_the_classes_are_refused(tmp_path, cache):
    write_mnist(tmp_path, [2, 12, 8])
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(InputError, match=r"split 't.*': labels run from 2 to 12, but there are 10 classes"):
            open_images(DataSpec(dataset="MNIST", root=str(tmp_path)), cache=cache)


def test_missing_files_of_a_torchvision_set_are_an_input_error(tmp_path, cache):
    with pytest.raises(InputError, match=r"cannot open CIFAR10, split '(train|test)', under .*download = true"):
        open_images(DataSpec(dataset="CIFAR10", root=str(tmp_path)), cache=cache)
    with pytest.raises(InputError, match=r"cannot open ImageNet.*torchvision cannot download it"):
        open_images(DataSpec(dataset="ImageNet", root=str(tmp_path), eval_split="val"), cache=cache)
    with pytest.raises(InputError, match="ImageNet has no split 'test'; known: train, val"):
        open_images(DataSpec(dataset="ImageNet", root=str(tmp_path)), cache=cache)


def test_every_known_torchvision_set_exists_and_takes_its_arguments():
    import torchvision.datasets

    for name, known in TORCHVISION.items():
        parameters = inspect.signature(getattr(torchvision.datasets, name).__init__).parameters
        takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        options = {key for split in known.splits.values() for key in split} | {"root"}
        assert takes_more or options <= set(parameters), name
        if known.can_download:
            assert takes_more or "download" in parameters, name


def test_known_names_and_splits():
    assert {"digits", "imagefolder", "CIFAR10", "CIFAR100", "SVHN", "MNIST", "ImageNet"} <= set(known_datasets())
    assert known_splits("imagefolder") is None
    assert known_splits("SVHN") == ("train", "test", "extra")


def test_importing_and_listing_loads_no_torch():
    code = "import stitchgrid.datasets, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "sklearn"} & set(loaded)
