"""Images with any number of channels, from arrays and from one's own data sets: kept as they are, on the axis told."""

import json

import numpy as np
import pytest
import torch
from helpers_images import whole_digest

from stitchgrid.datasets import open_images
from stitchgrid.datasets.images import Split
from stitchgrid.driver.preview import image_bytes
from stitchgrid.errors import InputError
from stitchgrid.records import DataSpec

SPLITS = {"train": 5, "test": 4}


def drawn(channels, dtype=np.uint8, most=256, height=6, width=7):
    """Return split -> images (N, C, H, W)."""
    rng = np.random.default_rng(channels)
    return {split: rng.integers(0, most, (num, channels, height, width)).astype(dtype) for split, num in SPLITS.items()}


def saved(folder, images, form="npz", axes="NCHW"):
    """Write images and labels, a file a split."""
    folder.mkdir(exist_ok=True)
    for split, values in images.items():
        given = values if axes == "NCHW" else np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        labels = np.arange(len(values)) % 2
        if form == "npz":
            np.savez(folder / f"{split}.npz", images=given, labels=labels)
        elif form == "npy":
            (folder / split).mkdir()
            np.save(folder / split / "images.npy", given)
            np.save(folder / split / "labels.npy", labels)
        else:
            torch.save({"images": torch.from_numpy(given), "labels": torch.from_numpy(labels)}, folder / f"{split}.pt")
    return folder


def spec_of(folder, **changes):
    return DataSpec(dataset="arrays", root=str(folder), **changes)


def in_order(split):
    """Return the images of a split in the order of its listing, (N, C, H, W)."""
    return torch.as_tensor(split.batch(np.argsort(split.places))).numpy()


@pytest.mark.parametrize("channels", [2, 4, 12])
@pytest.mark.parametrize(("form", "axes"), [("npz", "NCHW"), ("npz", "NHWC"), ("npy", "NHWC"), ("pt", "NCHW")])
def test_all_channels_are_kept_whatever_file_and_axis_they_lie_on(tmp_path, cache, channels, form, axes):
    images = drawn(channels)
    spec = spec_of(saved(tmp_path / "a", images, form, axes), channels=channels)
    for _ in range(2):  # decoded, and from the cache
        found = open_images(spec, cache=cache)
        assert found.fit.channels == found.eval.channels == channels
        assert np.array_equal(in_order(found.fit), images["train"])
        assert np.array_equal(in_order(found.eval), images["test"])
        assert found.eval.num_bytes == images["test"].nbytes
        assert image_bytes(found) == sum(values.nbytes for values in images.values())
    assert len(list((cache / "images").glob("*/pixels.bin"))) == 2


def test_the_same_pixels_have_the_same_digests_and_their_channels_are_part_of_them(tmp_path, cache):
    images = drawn(12)
    wanted = whole_digest(open_images(spec_of(saved(tmp_path / "a", images), channels=12), cache=cache))
    for axes in ("NCHW", "NHWC"):
        root = saved(tmp_path / axes, images, axes=axes)
        assert whole_digest(open_images(spec_of(root, channels=12, axes=axes), cache=cache)) == wanted
    wide = drawn(6, height=12)  # as many bytes
    other = {split: values.reshape(len(values), 12, 6, 7) for split, values in wide.items()}
    one = open_images(spec_of(saved(tmp_path / "wide", wide), channels=6), cache=cache).eval
    two = open_images(spec_of(saved(tmp_path / "other", other), channels=12), cache=cache).eval
    assert one.digest(4) != two.digest(4)
    arrays = np.zeros(24, np.uint8), np.zeros(1, np.int64), np.ones((1, 2), np.int64), np.zeros(1, np.int64)
    kinds = ((6, True), (6, False), (5, False), (3, False))
    seen = [Split(*arrays, channels=channels, is_float=is_float) for channels, is_float in kinds]
    assert len({split.digest(1) for split in seen}) == len(seen)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_rgb_are_what_they_are_without_a_number(tmp_path, cache, channels):
    root = saved(tmp_path / "a", drawn(channels))
    plain = open_images(spec_of(root), cache=cache)
    told = open_images(spec_of(root, channels=channels, axes="NCHW"), cache=cache)
    assert whole_digest(told) == whole_digest(plain)
    assert told.eval.channels == 3


def test_a_fourth_channel_is_alpha_unless_the_job_says_four(tmp_path, cache):
    images = drawn(4)
    root = saved(tmp_path / "a", images)
    plain = open_images(spec_of(root), cache=cache)
    assert np.array_equal(in_order(plain.eval), images["test"][:, :3])
    said = "with a fourth channel, taken for alpha and left out (`channels = 4` under [data] keeps it)"
    assert f"split 'test': 4 images {said}" in plain.notices
    kept = open_images(spec_of(root, channels=4), cache=cache)
    assert np.array_equal(in_order(kept.eval), images["test"])
    assert not kept.notices


@pytest.mark.parametrize(("dtype", "most", "bounds"), [(np.uint16, 65536, (0, 65535)), (np.float32, 101, (0.0, 100.0))])
def test_deep_channels_are_scaled_by_the_range(tmp_path, cache, dtype, most, bounds):
    images = drawn(5, dtype, most)
    root = saved(tmp_path / "a", images)
    with pytest.raises(InputError, match=r"pixels, and no word on which values are black and white.*Set `range = \[0"):
        open_images(spec_of(root, channels=5), cache=cache)
    found = in_order(open_images(spec_of(root, channels=5, range=bounds), cache=cache).eval)
    wanted = images["test"] // 256 if dtype == np.uint16 else np.rint(images["test"].astype(np.float64) * 2.55)
    assert np.array_equal(found, wanted.astype(np.uint8))
    low = {
        split: np.where(np.arange(5)[:, None, None] == 4, -1, values.astype(np.float32))
        for split, values in images.items()
    }
    with pytest.raises(InputError, match=r"values from -1 to .*, outside of the range"):
        open_images(spec_of(saved(tmp_path / "low", low), channels=5, range=bounds), cache=cache)


AXES = 'say which, axes = "NCHW" or "NHWC" under [data]'


WANTED = "wanted shape (N, H, W), (N, H, W, C) or (N, C, H, W) with"
KEPT = "all channels are taken as they are with channels ="


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((12, 6, 7), {}, f"{WANTED} 1, 3 or 4 channels, got (4, 12, 6, 7); {KEPT} 7 or 12 under [data]."),
        ((6, 7, 2), {"axes": "NHWC"}, f"got (4, 6, 7, 2); {KEPT} 2 under [data]."),
        ((12, 6, 12), {"channels": 12}, f"(4, 12, 6, 12): its second and its last axis may be channels; {AXES}"),
        ((3, 6, 3), {}, f"(4, 3, 6, 3): its second and its last axis may be channels; {AXES}"),
        (
            (12, 6, 7),
            {"channels": 5},
            "(N, H, W, C) or (N, C, H, W) with the 5 `channels` of [data], got (4, 12,",
        ),
        ((12, 6, 7), {"channels": 12, "axes": "NHWC"}, "wanted shape (N, H, W, C) with the 12 `channels` of [data],"),
        ((6, 7), {"channels": 12}, "with the 12 `channels` of [data], got (4, 6, 7)."),
        ((3, 6, 7), {"channels": 1}, f"{WANTED} the 1 `channels` of [data], got (4, 3, 6, 7)."),
    ],
)
def test_a_shape_that_does_not_show_its_channels_is_asked_for(tmp_path, cache, shape, how, message):
    root = saved(tmp_path / "a", {split: np.zeros((4, *shape), np.uint8) for split in SPLITS})
    with pytest.raises(InputError) as refused:
        open_images(spec_of(root, **how), cache=cache)
    assert message in str(refused.value)


def test_axes_decide_where_both_may_hold_channels(tmp_path, cache):
    images = drawn(3, height=6, width=3)
    root = saved(tmp_path / "a", images)
    first, last = (open_images(spec_of(root, axes=axes), cache=cache).eval for axes in ("NCHW", "NHWC"))
    assert np.array_equal(in_order(first), images["test"])
    assert np.array_equal(in_order(last), images["test"].transpose(0, 3, 1, 2))


OWN = """
import numpy as np, torch
from PIL import Image

def make(split, kind="array"):
    rng = np.random.default_rng(len(split))
    items = [rng.integers(0, 256, (5, 6, 7 + k % 2), dtype=np.uint8) for k in range(4)]
    if kind == "tensor":
        items = [torch.from_numpy(item) for item in items]
    if kind == "last":
        items = [item.transpose(1, 2, 0) for item in items]
    if kind == "pil":
        items = [Image.fromarray(item[:3].transpose(1, 2, 0)) for item in items]
    if kind == "other":
        items[2] = items[2][:2]
    return [(item, k % 2) for k, item in enumerate(items)]
"""


def own(tmp_path, kind, **changes):
    (tmp_path / "own.py").write_text(OWN)
    return DataSpec(dataset=f"{tmp_path / 'own.py'}:make", args=json.dumps({"kind": kind}), **changes)


def test_a_data_set_of_ones_own_may_have_other_channels_and_sizes(tmp_path, cache):
    found = open_images(own(tmp_path, "array", channels=5), cache=cache)
    assert {tuple(image.shape) for image in found.eval.batch(0, 4)} == {(5, 6, 7), (5, 6, 8)}
    for kind in ("tensor", "last"):
        assert whole_digest(open_images(own(tmp_path, kind, channels=5), cache=cache)) == whole_digest(found)


@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        ("array", {}, r"with 1, 3 or 4 channels, got \(5, 6, 7\); all channels are taken as they are"),
        ("pil", {"channels": 5}, r"a PIL image, where `channels` = 5 under \[data\]; give arrays or tensors"),
        ("other", {"channels": 5}, r"\[2\] \(wanted shape .*with the 5 `channels` of \[data\], got \(2, 6, 7\)\)"),
    ],
)  # fmt: skip
def test_other_channels_of_a_data_set_of_ones_own_are_unreadable(tmp_path, cache, kind, how, message):
    with pytest.raises(InputError, match=message):
        open_images(own(tmp_path, kind, **how), cache=cache)


def test_an_entry_of_the_cache_whose_channels_do_not_fit_its_pixels_is_not_used(tmp_path, cache):
    images = drawn(2)
    spec = spec_of(saved(tmp_path / "a", images), channels=2)
    open_images(spec, cache=cache)
    for path in (cache / "images").glob("*/meta.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "channels": 3}))
    assert np.array_equal(in_order(open_images(spec, cache=cache).eval), images["test"])
