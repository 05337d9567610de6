"""What a label means: classes are those of all splits in use, in the order that the job asks for."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from helpers_images import pack, pixels_of, spec_of, whole_digest
from PIL import Image

from stitchgrid.datasets import natural_order, open_images
from stitchgrid.errors import InputError
from stitchgrid.records import DataSpec


def write_classes(root: Path, names: list[str], splits=("train", "test")) -> Path:
    """Write an image per class and split, all of its pixels the position of the class in `names`."""
    for split in splits:
        for level, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), level, np.uint8)).save(root / split / name / "0.png")
    return root


def levels_by_label(split) -> dict[int, int]:
    return {
        label: int(image[0, 0, 0])
        for label, image in zip(split.labels.tolist(), split.batch(0, split.num), strict=True)
    }


# ---- classes without images


@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
@pytest.mark.parametrize("how", ["missing", "empty", "other files"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_in_one_split_keeps_its_label(root, cache, tmp_path, split, how, suffix):
    before = open_images(spec_of(root), cache=cache)
    for path in (root / split / "dog").iterdir():
        path.unlink()
    if how == "missing":
        (root / split / "dog").rmdir()
    elif how == "other files":
        (root / split / "dog/notes.txt").write_text("no image")
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    for _ in range(2):  # decoded, and from the cache
        images = open_images(spec_of(where), cache=cache)
        assert images.class_names == before.class_names == ("cat", "dog", "eel")
        assert f"split {split!r} has no images of 1 of 3 classes: dog" in images.notices
        lacking, other = (images.fit, images.eval) if split == "train" else (images.eval, images.fit)
        assert set(lacking.labels.tolist()) == {0, 2}
        assert set(other.labels.tolist()) == {0, 1, 2}
    same = (images.eval, before.eval) if split == "train" else (images.fit, before.fit)
    assert same[0].digest(same[0].num) == same[1].digest(same[1].num)


def test_splits_may_each_lack_a_class_of_the_other(root, cache):
    (root / "test/eel").rename(root / "test/wolf")
    images = open_images(spec_of(root), cache=cache)
    assert images.class_names == ("cat", "dog", "eel", "wolf")
    assert set(images.fit.labels.tolist()) == {0, 1, 2}
    assert set(images.eval.labels.tolist()) == {0, 1, 3}
    assert images.notices == (
        "split 'test' has no images of 1 of 4 classes: eel",
        "split 'train' has no images of 1 of 4 classes: wolf",
    )


@pytest.mark.parametrize(("old", "new"), [("eel", "Eel"), ("eel", "e_el")])
def test_one_class_spelt_in_two_ways_is_refused(root, cache, old, new):
    (root / "test" / old).rename(root / "test" / new)
    with pytest.raises(InputError, match=f"different classes, such as 'eel' and '{new}': only in 'train': eel;"):
        open_images(spec_of(root), cache=cache)
    images = open_images(spec_of(root, classes=("cat", "dog", "eel", new)), cache=cache)
    assert images.num_classes == 4


def test_splits_without_a_class_in_common_are_refused(root, cache):
    for index, name in enumerate(("cat", "dog", "eel")):
        (root / "test" / name).rename(root / f"test/n{index}")
    with pytest.raises(InputError, match=r"none in common: only in 'train': cat, dog, eel; only in 'test': n0, n1, n2"):
        open_images(spec_of(root), cache=cache)


def test_a_split_of_empty_class_folders_is_refused(root, cache):
    for path in (root / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"split 'test' holds no image; images end in \.apng"):
        open_images(spec_of(root), cache=cache)


def test_a_named_class_may_be_empty_in_every_split(root, cache):
    (root / "train/fox").mkdir()
    with pytest.raises(InputError, match=r"no image in 1 of 4 class folders.*name it in `classes` under \[data\]"):
        open_images(spec_of(root), cache=cache)
    images = open_images(spec_of(root, classes=("fox", "cat", "dog", "eel")), cache=cache)
    assert images.num_classes == 4
    assert set(images.fit.labels.tolist()) == {1, 2, 3}


def test_classes_that_are_the_same_in_both_splits_have_the_digests_they_always_had(root, cache):
    # Stored values are addressed by them.
    assert whole_digest(open_images(spec_of(root), cache=cache)) == (
        "dec169d4d2c9f373e389863e622f28b7",
        "89e352b77b248760259edce8bef1b01c",
    )
    assert whole_digest(open_images(DataSpec(dataset="digits"), cache=cache)) == (
        "a54ebb1bd780051df51ec651803cb2b6",
        "1a1de6faac208b61d4ba9005ffd328df",
    )


# ---- the order


def test_names_in_natural_order_count_numbers_by_their_value():
    names = ["1", "2", "10", "a1", "a2b10", "a2b9", "a10", "b", "x" + "9" * 5_000]
    wanted = ["1", "2", "10", "a1", "a2b9", "a2b10", "a10", "b", "x" + "9" * 5_000]
    assert [names[position] for position in natural_order(names)] == wanted
    shuffled = random.Random(0).sample(names, len(names))
    assert [shuffled[position] for position in natural_order(shuffled)] == wanted
    assert natural_order(["01", "1", "1a", "1"]) == (0, 1, 3, 2)
    assert natural_order([]) == ()


def test_classes_are_sorted_or_in_natural_order(tmp_path, cache):
    root = write_classes(tmp_path / "numbers", [str(number) for number in range(1, 13)])
    as_sorted = open_images(spec_of(root), cache=cache)
    assert as_sorted.class_names[:4] == ("1", "10", "11", "12")
    order = natural_order(as_sorted.class_names)
    assert [as_sorted.class_names[k] for k in order] == [str(number) for number in range(1, 13)]
    natural = open_images(spec_of(root, class_order="natural"), cache=cache)
    assert natural.class_names == tuple(str(number) for number in range(1, 13))
    for split in (natural.fit, natural.eval):
        assert levels_by_label(split) == {label: label for label in range(12)}
    assert natural_order(natural.class_names) == tuple(range(12))
    assert natural.fit.digest(12) != as_sorted.fit.digest(12)
    assert as_sorted.fit.batch(0, 12).equal(natural.fit.batch(0, 12))


def test_classes_come_in_the_order_of_the_job(root, cache):
    before = open_images(spec_of(root), cache=cache)
    images = open_images(spec_of(root, classes=("eel", "cat", "dog")), cache=cache)
    assert images.class_names == ("eel", "cat", "dog")
    assert images.fit.labels.tolist() == [(label + 1) % 3 for label in before.fit.labels.tolist()]
    assert images.eval.labels.tolist() == [(label + 1) % 3 for label in before.eval.labels.tolist()]
    in_order = open_images(spec_of(root, classes=("cat", "dog", "eel")), cache=cache)
    assert whole_digest(in_order) == whole_digest(before)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("cat", "dgo", "eel"),
            "'dgo' is not a class of the images; did you mean 'dog'.*class 'dog' of the images",
        ),
        (("cat", "dog", "eel", "fox"), "'fox' is not a class of the images; known: cat, dog, eel"),
        (("cat", "eel"), "class 'dog' of the images is not named"),
    ],
)
def test_classes_that_are_not_those_of_the_images_are_refused(root, cache, classes, message):
    with pytest.raises(InputError, match=f"`classes` under .data. must name every class of the images once: {message}"):
        open_images(spec_of(root, classes=classes), cache=cache)


# ---- files that are no images


@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
def test_files_that_are_left_out_are_counted_by_suffix(root, cache, tmp_path, suffix):
    for name in ("cat/a.txt", "cat/more/b.TXT", "dog/c.heic", "eel/LICENSE", ".hidden", "cat/.DS_Store", "x.png"):
        path = root / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"something")
    (root / "other").mkdir()
    (root / "other/a.txt").write_text("of no split in use")
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    for _ in range(2):
        images = open_images(spec_of(where), cache=cache)
        assert images.fit.num == 18
        [notice] = images.notices
        assert notice.startswith("split 'train': 5 files left out: 2 .txt, ")
        assert set(notice.partition("out: ")[2].split(", ")) == {
            "2 .txt", "1 .heic", "1 without suffix", "1 image outside of the class folders"
        }  # fmt: skip
    if not suffix:
        (root / "train/cat/d.txt").write_text("one more, that no image shows")
        assert "3 .txt" in open_images(spec_of(root), cache=cache).notices[0]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "jp2", "tga", "avif", "dib", "pcx", "qoi", "apng"])
def test_images_of_many_suffixes_are_read(root, cache, suffix):
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "jpg": "JPEG", "jp2": "JPEG2000", "apng": "PNG"}
    kind = kinds.get(suffix.lower(), suffix.upper())
    Image.fromarray(pixels_of("more", "", 0, (32, 32))).save(root / f"train/cat/more.{suffix}", kind)
    assert open_images(spec_of(root), cache=cache).fit.num == 19


def test_a_folder_that_links_to_one_around_it_is_not_followed_and_no_pipe_is_waited_for(root, cache):
    (root / "train/cat/loop").symlink_to(root / "train/cat")
    (root / "train/cat/more").symlink_to(root / "test/cat")
    os.mkfifo(root / "train/dog/pipe.png")
    with pytest.raises(InputError, match=r"1 unreadable image: train/dog/pipe\.png \(not a regular file\)"):
        open_images(spec_of(root), cache=cache)
    images = open_images(spec_of(root, on_bad_image="skip"), cache=cache)
    assert (images.fit.num, images.num_bad) == (18 + 4, 1)
