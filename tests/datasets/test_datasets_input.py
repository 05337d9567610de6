import multiprocessing
import os
import zipfile
from pathlib import Path

import pytest
from helpers_images import open_in_process, pack, pixels_of, spec_of, whole_digest, write_folder
from PIL import Image

from stitchgrid.cache import default_cache
from stitchgrid.datasets import open_images
from stitchgrid.errors import InputError
from stitchgrid.records import DataSpec


def decoding_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("stitchgrid.datasets.encoded.decode", refuse)


# ---- bad input


def test_a_missing_root_is_named(tmp_path, cache):
    with pytest.raises(InputError, match=r"no folder or archive .*nowhere; set `root`"):
        open_images(spec_of(tmp_path / "nowhere"), cache=cache)


def test_a_data_set_without_root_is_refused(cache):
    with pytest.raises(InputError, match="'imagefolder' needs a root"):
        open_images(DataSpec(dataset="imagefolder"), cache=cache)


def test_an_unknown_data_set_is_refused(cache):
    with pytest.raises(InputError, match="no data set 'CIFAR11'; did you mean 'CIFAR10'"):
        open_images(DataSpec(dataset="CIFAR11", root="."), cache=cache)


@pytest.mark.parametrize("suffix", ["", ".tar.xz", ".zip"])
def test_a_missing_split_is_named_with_those_there_are(root, cache, tmp_path, suffix):
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    with pytest.raises(InputError, match=r"no split 'tets'.*did you mean 'test'\? known: test, train"):
        open_images(spec_of(where, eval_split="tets"), cache=cache)


@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
def test_an_empty_class_folder_is_named(root, cache, tmp_path, suffix):
    (root / "train/fox").mkdir()
    (root / "train/fox/notes.txt").write_text("no image")
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    with pytest.raises(InputError, match=r"no image in 1 of 4 class folders, in split 'test' or 'train': fox\. Remove"):
        open_images(spec_of(where), cache=cache)


def test_a_split_without_classes_is_refused(root, cache):
    (root / "val").mkdir()
    with pytest.raises(InputError, match="split 'val' has no class folder"):
        open_images(spec_of(root, eval_split="val"), cache=cache)


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.xz", ".zip"])
def test_unreadable_images_are_all_named_or_skipped_and_counted(root, cache, tmp_path, suffix):
    good = (root / "train/dog/000.png").read_bytes()
    (root / "train/cat/003.png").write_bytes(b"not an image at all")
    (root / "train/dog/000.png").write_bytes(good[: len(good) // 2])
    (root / "test/eel/001.png").write_bytes(b"")
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    with pytest.raises(InputError, match=r'3 unreadable images: .*on_bad_image = "skip"') as caught:
        open_images(spec_of(where), cache=cache)
    for name in ("train/cat/003.png (not an image)", "train/dog/000.png (", "test/eel/001.png (empty file)"):
        assert name in str(caught.value)
    for _ in range(2):  # decoded, and from the cache
        images = open_images(spec_of(where, on_bad_image="skip"), cache=cache)
        assert (images.fit.num, images.eval.num, images.num_bad) == (16, 11, 3)
    with pytest.raises(InputError, match="3 unreadable images"):  # what was skipped once is not forgotten
        open_images(spec_of(where), cache=cache)


def test_the_next_images_move_up_for_skipped_ones_so_that_samples_still_nest(root, cache):
    for index in range(4):
        (root / f"train/cat/{index:03}.png").write_bytes(b"broken")
    spec = spec_of(root, on_bad_image="skip")
    whole = open_images(spec, cache=cache)
    assert whole.fit.num == 14
    for num in (1, 5, 13, 14):
        few = open_images(spec, cache=cache, need_fit=num)
        assert few.fit.num == num
        assert few.fit.digest(num) == whole.fit.digest(num)
    with pytest.raises(
        InputError, match=r"only 14 of 18 images can be read, but at least 15 are needed\. 4 unreadable"
    ):
        open_images(spec, cache=cache, need_fit=15)


def test_a_split_of_unreadable_images_is_refused_even_when_they_may_be_skipped(root, cache):
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(
        InputError, match=r"only 0 of 12 images can be read, but at least 1 are needed. 12 unreadable.*7 more"
    ):
        open_images(spec_of(root, on_bad_image="skip"), cache=cache)


@pytest.mark.parametrize(
    ("changes", "need_fit", "message"),
    [
        ({"eval_samples": 13}, None, "eval asks for 13 samples, but split 'test' has 12 images; lower `samples`"),
        ({"fit_samples": 19}, None, "fit asks for 19 samples, but split 'train' has 18 images"),
        ({}, 20, "fit asks for 20 samples, but split 'train' has 18 images"),
        (
            {"eval_split": "train", "eval_samples": 10, "fit_samples": 9},
            9,
            "fit asks for 9 samples, but split 'train' has 18 images, of which eval takes 10 first and 8 are left",
        ),
    ],
)
def test_more_samples_than_there_are_is_refused(root, cache, changes, need_fit, message):
    with pytest.raises(InputError, match=message):
        open_images(spec_of(root, **changes), cache=cache, need_fit=need_fit)
    if not changes.get("eval_samples"):
        open_images(spec_of(root), cache=cache)
        with pytest.raises(InputError, match=message):  # also when the images are in the cache
            open_images(spec_of(root, **changes), cache=cache, need_fit=need_fit)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_a_truncated_archive_is_refused(root, cache, tmp_path, suffix):
    archive = pack(root, tmp_path / f"images{suffix}")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3 + 11])
    with pytest.raises(InputError, match=r"cannot read .* as a tar archive .*complete"):
        open_images(spec_of(archive), cache=cache)


def test_a_truncated_zip_is_refused(root, cache, tmp_path):
    archive = pack(root, tmp_path / "images.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"cannot read .*images\.zip as a zip archive \(BadZipFile.*give a complete"):
        open_images(spec_of(archive), cache=cache)


def test_a_file_that_is_no_archive_is_refused(tmp_path, cache):
    (tmp_path / "images.zip").write_bytes(b"PK" * 1_000)
    with pytest.raises(InputError, match=r"cannot read .*images\.zip as a tar archive"):
        open_images(spec_of(tmp_path / "images.zip"), cache=cache)


# ---- the cache


@pytest.mark.parametrize("suffix", ["", ".tar.xz", ".zip"])
def test_a_second_look_decodes_nothing(root, cache, tmp_path, suffix, monkeypatch):
    where = pack(root, tmp_path / f"images{suffix}") if suffix else root
    first = whole_digest(open_images(spec_of(where), cache=cache))
    decoding_forbidden(monkeypatch)
    assert whole_digest(open_images(spec_of(where), cache=cache)) == first


def test_changed_files_are_decoded_again(root, cache):
    before = open_images(spec_of(root), cache=cache)
    Image.fromarray(pixels_of("other", "", 0)).save(root / "train/cat/000.png")
    after = open_images(spec_of(root), cache=cache)
    assert before.fit.digest(18) != after.fit.digest(18)
    assert before.eval.digest(12) == after.eval.digest(12)


def replace_keeping_the_time(path: Path, content: bytes, how: str) -> None:
    """Put other content of the same size in a file's place, as cp -p (over it) or rsync -t (beside it) do."""
    before = path.stat()
    target = path if how == "over" else path.with_name("beside")
    target.write_bytes(content)
    target.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("how", ["over", "beside"])
@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
def test_replaced_files_are_noticed_though_size_and_time_are_kept(cache, tmp_path, suffix, how):
    root = write_folder(tmp_path / "images")
    for path in sorted(root.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))  # whose size does not depend on its content
        path.unlink()
    where = tmp_path / f"images{suffix}"
    if suffix:
        with_names(root, where)
    before = open_images(spec_of(where), cache=cache)
    other = root / "train/cat/000.bmp"
    Image.fromarray(pixels_of("other", "", 0)).save(tmp_path / "other.bmp")
    replace_keeping_the_time(other, (tmp_path / "other.bmp").read_bytes(), how)
    if suffix:
        again = tmp_path / f"again{suffix}"
        with_names(root, again)
        replace_keeping_the_time(where, again.read_bytes(), how)
    after = open_images(spec_of(where), cache=cache)
    assert before.fit.digest(18) != after.fit.digest(18)
    assert before.eval.digest(12) == after.eval.digest(12)


def with_names(root: Path, archive: Path) -> None:
    """Pack a folder without compression, so that the size does not depend on the content."""
    if archive.suffix == ".tar":
        pack(root, archive)
        return
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(root.rglob("*.bmp")):
            file.write(path, path.relative_to(root))


def test_a_damaged_entry_is_replaced(root, cache):
    first = whole_digest(open_images(spec_of(root), cache=cache))
    entries = sorted((cache / "images").glob("*/pixels.bin"))
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])
    assert whole_digest(open_images(spec_of(root), cache=cache)) == first
    assert all(entry.stat().st_size % 60 == 0 for entry in entries)


def test_an_unwritable_cache_only_costs_speed(root, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert whole_digest(open_images(spec_of(root), cache=blocked)) == whole_digest(
        open_images(spec_of(root), cache=tmp_path / "cache")
    )


def test_a_full_disk_only_costs_speed(root, cache, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    first = whole_digest(open_images(spec_of(root), cache=cache / "other"))
    monkeypatch.setattr("stitchgrid.datasets.cache.sync", full)
    assert whole_digest(open_images(spec_of(root), cache=cache)) == first
    assert not list((cache / "images").glob("*/"))  # no draft is left behind


def test_processes_may_open_the_same_images_at_once(root, cache):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        found = set(pool.map(open_in_process, [(str(root), str(cache))] * 3))
    assert found == {whole_digest(open_images(spec_of(root), cache=cache))}
    assert len(list((cache / "images").glob("*/"))) == 2


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("STITCHGRID_CACHE", raising=False)
    assert default_cache() == tmp_path / "xdg/stitchgrid"
    monkeypatch.setenv("STITCHGRID_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


@pytest.mark.parametrize("changes", [{}, {"eval_split": "train", "eval_samples": 10}])
def test_images_that_are_only_wished_for_are_as_many_as_there_are(root, cache, changes):
    spec, left = spec_of(root, **changes), 18 - changes.get("eval_samples", 0)
    whole = open_images(spec, cache=cache)
    for wish, num in ((2, 5), (left - 1, left - 1), (left, left), (1000, left)):
        found = open_images(spec, cache=cache, need_fit=5, wish_fit=wish)
        assert found.fit.num == num
        assert found.fit.digest(num) == whole.fit.digest(num)
        assert found.eval.digest(found.eval.num) == whole.eval.digest(found.eval.num)


def test_unreadable_images_do_not_count_as_lacking_where_images_are_only_wished_for(root, cache):
    for path in sorted((root / "train").rglob("*.png"))[:4]:
        path.write_bytes(b"broken")
    spec = spec_of(root, on_bad_image="skip")
    assert open_images(spec, cache=cache, need_fit=5, wish_fit=1000).fit.num == 14
