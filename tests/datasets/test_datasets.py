import io
import tarfile
import warnings

import numpy as np
import pytest
import torch
from helpers_images import CLASSES, pack, pixels_of, spec_of, whole_digest, write_folder
from PIL import Image

from stitchgrid.datasets import Images, Split, open_images
from stitchgrid.datasets.decoding import to_rgb
from stitchgrid.datasets.device_images import ResidentImages, near
from stitchgrid.datasets.sources import permutation
from stitchgrid.errors import InputError


def everything(split: Split) -> list[torch.Tensor]:
    return list(split.batch(0, split.num))


def test_every_image_comes_out_once_with_its_own_pixels_and_label(root, cache):
    images = open_images(spec_of(root), cache=cache)
    assert images.class_names == CLASSES
    assert images.num_classes == 3
    assert (images.fit.num, images.eval.num) == (18, 12)
    expected = {
        (pixels_of("train", name, i).transpose(2, 0, 1).tobytes(), label)
        for label, name in enumerate(CLASSES)
        for i in range(6)
    }
    drawn = {
        (pixels.numpy().tobytes(), int(label))
        for pixels, label in zip(everything(images.fit), images.fit.labels, strict=True)
    }
    assert drawn == expected


def test_samples_nest_and_are_shuffled(root, cache):
    whole = open_images(spec_of(root), cache=cache)
    few = open_images(spec_of(root, eval_samples=5), cache=cache, need_fit=7)
    assert (few.fit.num, few.eval.num) == (7, 5)
    assert few.num_fit_listed == whole.fit.num == 18
    assert few.fit.digest(7) == whole.fit.digest(7)
    assert few.eval.digest(5) == whole.eval.digest(5)
    assert torch.equal(few.fit.labels, whole.fit.labels[:7])
    assert whole.fit.labels.tolist() != sorted(whole.fit.labels.tolist())


def test_the_order_depends_on_the_seed_and_the_name_of_the_split(root, cache):
    digests = {whole_digest(open_images(spec_of(root, seed=seed), cache=cache)) for seed in (0, 1, 2)}
    assert len(digests) == 3
    assert permutation("train", 0, 50).tolist() != permutation("test", 0, 50).tolist()


def test_the_order_of_drawing_is_pinned():
    # Cells are addressed by the digest of what is drawn: another order would orphan every stored value.
    assert permutation("train", 0, 10).tolist() == [0, 2, 1, 8, 7, 4, 9, 6, 3, 5]


def test_one_split_for_both_is_divided_with_eval_first(root, cache):
    one = spec_of(root, fit_split="train", eval_split="train", eval_samples=5)
    images = open_images(one, cache=cache)
    whole = open_images(spec_of(root), cache=cache).fit
    assert (images.eval.num, images.fit.num, images.num_fit_listed) == (5, 13, 13)
    assert images.eval.digest(5) == whole.digest(5)
    assert all(map(torch.equal, everything(images.fit), whole.batch(5, 18)))
    few = open_images(one, cache=cache, need_fit=3)
    assert few.fit.digest(3) == images.fit.digest(3)


def test_one_split_for_both_needs_eval_samples(root, cache):
    with pytest.raises(InputError, match=r"both split 'train', and eval takes all.*`samples`"):
        open_images(spec_of(root, fit_split="train", eval_split="train"), cache=cache)


def test_nothing_to_fit_needs_no_fit_split(root, cache):
    images = open_images(spec_of(root, fit_split="none"), cache=cache, need_fit=0)
    assert (images.fit.num, images.eval.num) == (0, 12)
    assert images.fit.batch(0, 0).shape == (0, 3, 0, 0)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"])
def test_an_archive_gives_the_same_images_as_the_folder(root, cache, tmp_path, suffix):
    archive = pack(root, tmp_path / f"images{suffix}")
    assert whole_digest(open_images(spec_of(archive), cache=cache)) == whole_digest(
        open_images(spec_of(root), cache=cache)
    )


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_an_archive_may_have_one_folder_around_its_splits(root, cache, tmp_path, suffix):
    archive = pack(tmp_path, tmp_path / f"around{suffix}", [str(p.relative_to(tmp_path)) for p in root.rglob("*.png")])
    assert whole_digest(open_images(spec_of(archive), cache=cache)) == whole_digest(
        open_images(spec_of(root), cache=cache)
    )


def test_files_below_a_class_folder_count_and_other_files_do_not(root, cache):
    (root / "train/cat/more").mkdir()
    Image.fromarray(pixels_of("x", "y", 0)).save(root / "train/cat/more/1.png")
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/._001.png").write_text("no image")
    (root / "train/.hidden").mkdir()
    (root / "train/readme.png").write_text("lies in no class")
    images = open_images(spec_of(root), cache=cache)
    assert images.fit.num == 19
    assert images.class_names == CLASSES


def test_a_hostile_archive_reaches_no_file(root, cache, tmp_path):
    outside = tmp_path / "secret.png"
    Image.fromarray(pixels_of("secret", "", 0)).save(outside)
    archive = pack(root, tmp_path / "hostile.tar")
    before = sorted(path for path in tmp_path.rglob("*") if cache not in path.parents)
    with tarfile.open(archive, "a") as tar:
        for name in (
            "../train/cat/up.png",
            "/train/cat/absolute.png",
            "train/../../cat/in.png",
            "train/cat/../../x.png",
        ):
            member = tarfile.TarInfo(name)
            member.size = outside.stat().st_size
            tar.addfile(member, io.BytesIO(outside.read_bytes()))
        link = tarfile.TarInfo("train/cat/zlink.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
    with pytest.raises(InputError, match=r"1 unreadable image: train/cat/zlink.png \(cannot be read, or is a link\)"):
        open_images(spec_of(archive), cache=cache)
    images = open_images(spec_of(archive, on_bad_image="skip"), cache=cache)
    assert (images.fit.num, images.num_bad) == (18, 1)
    assert sorted(path for path in tmp_path.rglob("*") if cache not in [path, *path.parents]) == before


# ---- pixels


def test_batches_by_range_and_by_indices_agree(root, cache):
    split = open_images(spec_of(root), cache=cache).fit
    assert split.size == (5, 4)
    assert split.labels.dtype == torch.int64
    batch = split.batch(2, 6)
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, 3, 5, 4)
    for indices in ([5, 2, 2], torch.tensor([5, 2, 2]), np.array([5, 2, 2])):
        assert torch.equal(split.batch(indices), batch[[3, 0, 0]])
    assert len(split.batch(16, 99)) == 2


def test_writing_into_a_batch_does_not_reach_the_images(root, cache):
    split = open_images(spec_of(root), cache=cache).fit
    before = split.batch(0, 2).clone()
    split.batch(0, 2).zero_()
    assert torch.equal(split.batch(0, 2), before)


def test_images_of_different_sizes_come_as_a_list(tmp_path, cache):
    root = write_folder(tmp_path / "ragged", sizes=lambda index: (4 + index, 7 - index))
    split = open_images(spec_of(root), cache=cache).fit
    assert split.size is None
    batch = split.batch(0, split.num)
    assert isinstance(batch, list)
    expected = {
        pixels_of("train", name, i, (4 + i, 7 - i)).transpose(2, 0, 1).tobytes() for name in CLASSES for i in range(6)
    }
    assert {image.numpy().tobytes() for image in batch} == expected
    assert {tuple(image.shape) for image in batch} == {(3, 4 + i, 7 - i) for i in range(6)}


def test_a_digest_depends_on_pixels_sizes_labels_and_number(cache):
    pixels = np.arange(2 * 3 * 2 * 3, dtype=np.uint8)
    offsets, sizes, labels = np.array([0, 18]), np.array([[2, 3], [2, 3]]), np.array([0, 1])
    original = Split(pixels, offsets, sizes, labels)
    changed = pixels.copy()
    changed[20] += 1
    others = [
        Split(changed, offsets, sizes, labels),
        Split(pixels, offsets, sizes[:, ::-1], labels),
        Split(pixels, offsets, sizes, labels + 1),
        Split(pixels, offsets[::-1], sizes, labels),
    ]
    digests = [split.digest(2) for split in (original, *others)] + [original.digest(1), original.digest(0)]
    assert len(set(digests)) == len(digests)
    assert original.digest(1) == Split(changed, offsets, sizes, labels).digest(1)
    with pytest.raises(ValueError, match="wanted at most 2 images, the size of the split, got 3"):
        original.digest(3)


def test_a_digest_is_computed_once(root, cache, monkeypatch):
    split = open_images(spec_of(root), cache=cache).fit
    first = split.digest(9)
    monkeypatch.setattr(Split, "_gather", None)
    assert split.digest(9) == first


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(mode):
    grey = np.full((2, 3), 255, dtype=np.uint8)
    image = Image.fromarray(np.stack([grey] * 3, axis=2)).convert(mode)
    rgb = to_rgb(image).pixels
    assert rgb.shape == (3, 2, 3)
    assert rgb.dtype == np.uint8
    assert rgb.min() >= 254


def test_reading_images_warns_of_nothing(root, cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything(open_images(spec_of(root), cache=cache).fit)


def test_images_on_a_device_are_those_on_disk(root, cache):
    images = open_images(spec_of(root), cache=cache)
    resident = ResidentImages(images, torch.device("cpu"))
    chosen = torch.tensor([3, 0, 3, 1])
    for near_split, split in ((resident.fit, images.fit), (resident.eval, images.eval)):
        assert near_split.num == split.num
        assert torch.equal(near_split.batch(chosen), split.batch(chosen))
        assert torch.equal(near_split.labels, split.labels)
    assert near(images, torch.device("cpu")) is images


def a_gpu_with(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return a GPU with so many bytes free, where there is none: what is moved there stays here."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (num_bytes, 1 << 40))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(("spare", "is_near"), [(0, True), (-1, False)])
def test_images_lie_on_a_gpu_when_they_take_a_quarter_of_its_free_memory_at_most(
    root, cache, monkeypatch, spare, is_near
):
    images = open_images(spec_of(root), cache=cache)
    num_bytes = (images.fit.num + images.eval.num) * 3 * 5 * 4
    found = near(images, a_gpu_with(4 * num_bytes + spare, monkeypatch))
    assert isinstance(found, ResidentImages) == is_near
    assert is_near or found is images
    assert torch.equal(found.eval.batch(torch.arange(4)), images.eval.batch(torch.arange(4)))


@pytest.mark.parametrize(("spare", "is_near"), [(0, True), (-1, False)])
def test_floating_point_images_take_four_bytes_a_number_on_a_gpu(monkeypatch, spare, is_near):
    split = Split(
        np.zeros(4 * 2 * 5 * 6 * 7, np.uint8),
        np.arange(7) * 4 * 2 * 5 * 6,
        np.full((7, 2), (5, 6)),
        np.zeros(7, np.int64),
        channels=2,
        is_float=True,
    )
    images = Images(fit=split, eval=split, class_names=(), num_bad=0, num_fit_listed=7)
    found = near(images, a_gpu_with(4 * 2 * split.num_bytes + spare, monkeypatch))
    assert split.num_bytes == split.batch(0, 7).nbytes
    assert isinstance(found, ResidentImages) == is_near


def test_workers_that_share_a_gpu_share_the_room_for_images(root, cache, monkeypatch):
    images = open_images(spec_of(root), cache=cache)
    num_bytes = (images.fit.num + images.eval.num) * 3 * 5 * 4
    device = a_gpu_with(1 << 30, monkeypatch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 12 * num_bytes))
    found = [near(images, device, sharing=sharing) is images for sharing in (1, 3, 4)]
    assert found == [False, False, True]


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_differing_sizes_lie_on_no_gpu(cache, tmp_path, monkeypatch, split):
    write_folder(tmp_path / "images", num={"train": 6, "test": 4})
    write_folder(tmp_path / "others", num={split: 2}, sizes=lambda index: (5, 4 + index))
    for path in (tmp_path / "others" / split).rglob("*.png"):
        path.rename(tmp_path / "images" / path.relative_to(tmp_path / "others"))
    images = open_images(spec_of(tmp_path / "images"), cache=cache)
    assert [images.fit.size, images.eval.size].count(None) == 1
    assert near(images, a_gpu_with(1 << 40, monkeypatch)) is images


def test_images_of_which_none_are_fitted_on_lie_on_a_gpu(root, cache, monkeypatch):
    images = open_images(spec_of(root), cache=cache, need_fit=0)
    found = near(images, a_gpu_with(1 << 40, monkeypatch))
    assert isinstance(found, ResidentImages)
    assert (found.fit.num, len(found.fit.labels), found.eval.num) == (0, 0, images.eval.num)
