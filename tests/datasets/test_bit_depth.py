"""Pixels of any depth come out at the brightness they were taken at, or are refused: never crushed, never clipped."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers_images import CLASSES, png16, spec_of, tiff, whole_digest, write_folder
from PIL import Image

from stitchgrid.datasets import open_images
from stitchgrid.datasets.decoding import FRAMES, ROTATED, decode, to_rgb
from stitchgrid.datasets.pixels import NeedsRangeError, from_array, spread
from stitchgrid.datasets.sources import Decoded, Unscaled
from stitchgrid.errors import InputError

TWELVE = np.array([[0, 1, 2048], [4095, 100, 7]])
TWELVE_IN_EIGHT = [[0, 0, 128], [255, 6, 0]]
RGB = np.stack([TWELVE, TWELVE // 2, TWELVE[::-1]], axis=2)


def grey_of(raw: bytes, bounds=None):
    found = decode(raw, "a.png", 0, bounds)
    assert isinstance(found, Decoded), found
    assert (found.pixels == found.pixels[:1]).all()
    return found.pixels[0].tolist()


def reason_of(raw: bytes, bounds=None) -> str:
    found = decode(raw, "a.png", 0, bounds)
    assert not isinstance(found, Decoded)
    return found.reason


# ---- the range comes from the job


def test_a_range_of_sixteen_bits_gives_the_upper_eight():
    values = np.arange(65_536).reshape(256, 256)
    assert grey_of(png16(values), (0, 65_535)) == (values >> 8).tolist()
    big_endian = tiff(values.astype(">u2"), bits=16, order=">")
    assert grey_of(big_endian, (0, 65_535)) == (values >> 8).tolist()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("values", "bits", "bounds"),
    [
        (TWELVE.astype("u2"), 16, (0, 4095)),
        ((TWELVE - 100).astype("i2"), 16, (-100, 3995)),
        ((TWELVE - 100).astype("i4"), 32, (-100, 3995)),
        ((TWELVE / 4095).astype("f4"), 32, (0, 1)),
    ],
)
def test_a_tiff_of_any_numbers_is_read_in_the_range_of_the_job(values, bits, bounds, order):
    raw = tiff(values.astype(values.dtype.newbyteorder(order)), bits=bits, order=order)
    assert grey_of(raw, bounds) == TWELVE_IN_EIGHT
    assert isinstance(decode(raw, "a.tif", 0), Unscaled)


def test_unsigned_numbers_of_32_bits_are_not_taken_for_negative_ones():
    values = TWELVE.astype("<u4") * 1_000_000
    assert grey_of(tiff(values, bits=32), (0, 4_095_000_000)) == TWELVE_IN_EIGHT


def test_eight_bits_with_a_sign_need_a_range_and_those_without_are_as_they_are():
    signed = tiff(np.array([[-128, 0, 127]], "i1"), bits=8)
    assert isinstance(decode(signed, "a.tif", 0), Unscaled)
    assert grey_of(signed, (-128, 127)) == [[0, 128, 255]]
    plain = tiff(np.array([[0, 7, 255]], "u1"), bits=8)
    assert grey_of(plain) == grey_of(plain, (0, 7)) == [[0, 7, 255]]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_a_compressed_tiff_is_read_as_well(compression):
    file = io.BytesIO()
    Image.fromarray(TWELVE.astype(np.uint16)).save(file, "TIFF", compression=compression)
    assert grey_of(file.getvalue(), (0, 4095)) == TWELVE_IN_EIGHT


def test_sixteen_bit_colours_of_a_png_keep_all_their_bits():
    for image in (RGB, np.concatenate([RGB, np.full((2, 3, 1), 65_535)], axis=2)):
        found = decode(png16(image), "a.png", 0, (0, 4095))
        assert np.array_equal(found.pixels, RGB.transpose(2, 0, 1) >> 4)
        whole = decode(png16(image * 16), "a.png", 0, (0, 65_535))
        assert np.array_equal(whole.pixels, RGB.transpose(2, 0, 1) >> 4)
        assert isinstance(decode(png16(image), "a.png", 0), Unscaled)
    assert grey_of(png16(np.stack([TWELVE, TWELVE * 0 + 65_535], axis=2)), (0, 4095)) == TWELVE_IN_EIGHT


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_colours_of_a_tiff_keep_all_their_bits(order):
    whole = tiff((RGB * 16).astype(f"{order}u2"), bits=16, order=order)
    assert np.array_equal(decode(whole, "a.tif", 0, (0, 65_535)).pixels, RGB.transpose(2, 0, 1) >> 4)
    raw = tiff(RGB.astype(f"{order}u2"), bits=16, order=order)
    assert np.array_equal(decode(raw, "a.tif", 0, (0, 4095)).pixels, RGB.transpose(2, 0, 1) >> 4)
    assert isinstance(decode(raw, "a.tif", 0), Unscaled)


def test_sixteen_bits_that_cannot_all_be_read_are_read_in_their_whole_range_or_not_at_all():
    for bounds in (None, (0, 4095)):
        image = Image.open(io.BytesIO(png16(RGB * 16)))  # as a data set of one's own may hand it over
        with pytest.raises(ValueError, match=r"only the upper eight bits can be read: set `range = \[0, 65535\]`"):
            to_rgb(image, bounds)
    with Image.open(io.BytesIO(png16(RGB * 16))) as image:
        assert np.array_equal(to_rgb(image, (0, 65_535)).pixels, RGB.transpose(2, 0, 1) >> 4)
    planes = tiff(RGB.astype("<u2"), bits=16, tags={284: 2})
    assert "with a separate plane for each colour; save it as PNG" in reason_of(planes, (0, 65_535))
    cmyk = tiff(np.concatenate([RGB, TWELVE[..., None]], axis=2).astype("<u2"), bits=16, tags={262: 5})
    assert "only the upper eight bits can be read" in reason_of(cmyk, (0, 4095))
    assert isinstance(decode(cmyk, "a.tif", 0, (0, 65_535)), Decoded)


def test_values_outside_of_the_range_make_an_image_unreadable():
    message = r"values from 0 to 4095, outside of the range [0, 4000]"
    assert reason_of(png16(TWELVE), (0, 4000)) == message
    assert "outside of the range [1, 4095]" in reason_of(png16(TWELVE), (1, 4095))
    assert reason_of(tiff(np.array([[np.nan, 0.5]], "<f4"), bits=32), (0, 1)) == "NaN among the values"


def test_whole_numbers_of_few_levels_reach_white():
    assert spread(np.arange(16), (0, 15)).tolist() == [17 * level for level in range(16)]
    assert spread(np.arange(256), (0, 255)).tolist() == list(range(256))
    assert spread(np.arange(256) / 255, (0, 1)).tolist() == list(range(256))
    assert spread((np.arange(256) / 255).astype(np.float32), (0, 1)).tolist() == list(range(256))
    assert spread(np.array([-(2**62), 2**62]), (-(2.0**62), 2.0**62)).tolist() == [0, 255]


def test_arrays_of_no_numbers_have_no_pixels():
    with pytest.raises(ValueError, match="pixels of type complex128; uint8, whole or floating-point"):
        from_array(np.zeros((2, 2), complex), (0, 1))
    with pytest.raises(NeedsRangeError, match="int64 pixels from 0 to 3, whose range is unknown"):
        from_array(np.arange(4).reshape(2, 2), None)
    assert from_array(np.array([[True, False]]), None).pixels[0].tolist() == [[255, 0]]


# ---- the range comes from the file


def test_significant_bits_of_a_png_are_its_range_whether_they_were_scaled_or_not():
    replicated, shifted = TWELVE * 16 + (TWELVE >> 8), TWELVE * 16
    rounded = np.rint(TWELVE * (65_535 / 4095)).astype(int)
    for values in (TWELVE, replicated, shifted, rounded):
        assert grey_of(png16(values, significant=12)) == TWELVE_IN_EIGHT
    assert grey_of(png16(TWELVE * 16, significant=16)) == TWELVE_IN_EIGHT
    colour = decode(png16(RGB, significant=12), "a.png", 0)
    assert np.array_equal(colour.pixels, RGB.transpose(2, 0, 1) >> 4)
    assert grey_of(png16(TWELVE, significant=12), (0, 65_535)) == (TWELVE >> 8).tolist()  # the job's word


def test_a_png_whose_values_do_not_tell_what_its_bits_mean_needs_a_range():
    dark = np.full((2, 2), 2048)  # 2048 of 4095, or 128 of 4095 scaled to sixteen bits
    assert isinstance(decode(png16(dark, significant=12), "a.png", 0), Unscaled)
    assert isinstance(decode(png16(TWELVE * 3, significant=12), "a.png", 0), Unscaled)
    assert grey_of(png16(dark * 0, significant=12)) == [[0, 0], [0, 0]]


def test_tiffs_say_their_range_by_bits_or_tags():
    packed = np.frombuffer(bytes([0xFF, 0xF0, 0x01, 0x80, 0x00, 0x07]), np.uint8)
    twelve = tiff(packed.reshape(2, 3), bits=12, tags={256: 2})
    assert grey_of(twelve) == [[255, 0], [128, 0]]
    for tag in (281, 341):
        assert grey_of(tiff(TWELVE.astype("<u2"), bits=16, tags={tag: 4095})) == TWELVE_IN_EIGHT
    assert grey_of(tiff((TWELVE + 7).astype("<u2"), bits=16, tags={280: 7, 281: 4102})) == TWELVE_IN_EIGHT
    assert grey_of(tiff(TWELVE.astype("<u2"), bits=16, tags={281: 65_535})) == (TWELVE >> 8).tolist()


def test_a_tiff_whose_zero_is_white_is_turned_over():
    raw = tiff(TWELVE.astype("<u2"), bits=16, tags={262: 0})
    assert grey_of(raw, (0, 4095)) == (255 - np.array(TWELVE_IN_EIGHT)).tolist()


def test_formats_that_state_their_depth_need_no_range():
    grey = TWELVE.astype(">u2").tobytes()
    assert grey_of(b"P5\n3 2\n4095\n" + grey) == TWELVE_IN_EIGHT
    assert grey_of(b"P5\n3 2\n4095\n" + grey, (0, 9)) == TWELVE_IN_EIGHT  # its values are no longer those of the file
    assert grey_of(b"P5\n# made by hand\n3 2\n65535\n" + grey) == (TWELVE >> 8).tolist()
    assert grey_of(b"P5\n3 2\n65535\n" + grey, (0, 4095)) == TWELVE_IN_EIGHT
    file = io.BytesIO()
    Image.fromarray(TWELVE.astype(np.uint16)).save(file, "JPEG2000")
    assert grey_of(file.getvalue()) == (TWELVE >> 8).tolist()
    assert grey_of(file.getvalue(), (0, 4095)) == TWELVE_IN_EIGHT
    assert isinstance(decode(b"Pf\n3 2\n-1.0\n" + TWELVE.astype("<f4").tobytes(), "a.pfm", 0), Unscaled)


def test_a_tiff_that_pillow_cannot_read_is_not_called_no_image():
    assert reason_of(tiff(TWELVE.astype("<f8"), bits=64)) == "a TIFF of a kind that Pillow cannot read"
    assert reason_of(b"something else") == "not an image"


# ---- data sets


def write_deep(root: Path, make) -> Path:
    """Write two images of each class and split; `make` gets a number that no other image has."""
    for number, (split, name, index) in enumerate(
        (s, c, i) for s in ("train", "test") for c in CLASSES for i in (0, 1)
    ):
        path = root / split / name / f"{index}.{'tif' if make(number)[:2] == b'II' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(number))
    return root


def test_the_job_is_asked_for_the_range_with_what_was_seen(tmp_path, cache):
    root = write_deep(tmp_path / "deep", lambda number: png16(TWELVE[:, :2] // 2 + number))
    for skip in ("error", "skip"):  # a range is missing: that is no broken image
        with pytest.raises(InputError) as caught:
            open_images(spec_of(root, on_bad_image=skip), cache=cache)
        assert "/0.png and 11 more: 16-bit pixels, and no word on which values are black and white" in str(caught.value)
        assert "the smallest value seen is 0, the largest 2058. Set `range = [0, 4095]` under [data]" in str(
            caught.value
        )
    images = open_images(spec_of(root, range=(0, 4095)), cache=cache)
    assert (images.fit.num, images.eval.num, images.notices) == (6, 6, ())
    assert whole_digest(images) != whole_digest(open_images(spec_of(root, range=(0, 8191)), cache=cache))


def test_values_outside_of_the_range_are_named_or_skipped_and_counted(tmp_path, cache):
    root = write_deep(tmp_path / "deep", lambda number: png16(TWELVE[:, :2] // 2 + number))
    with pytest.raises(InputError, match=r"1 unreadable image: test/eel/1.png \(values from 11 to 2058, outside"):
        open_images(spec_of(root, range=(0, 2057)), cache=cache)
    assert open_images(spec_of(root, range=(0, 2057), on_bad_image="skip"), cache=cache).num_bad == 1


def test_images_that_are_each_stretched_by_itself_are_refused(tmp_path, cache):
    def make(number: int) -> bytes:
        return tiff(TWELVE.astype("<u2"), bits=16, tags={281: 4095 + 100 * (number > 5)})

    root = write_deep(tmp_path / "deep", make)
    with pytest.raises(InputError, match=r"white are \[0, 4095\], those of others \[0, 4195\].*give one range"):
        open_images(spec_of(root), cache=cache)
    with pytest.raises(InputError, match="give one range"):  # from the cache, too
        open_images(spec_of(root), cache=cache)
    assert open_images(spec_of(root, range=(0, 4195)), cache=cache).fit.num == 6


def test_a_range_that_changes_nothing_or_leaves_few_levels_is_said(tmp_path, cache):
    plain = open_images(spec_of(write_folder(tmp_path / "plain"), range=(0, 4095)), cache=cache)
    assert "split 'test': `range` = [0, 4095] was not used: none of the 12 images drawn needs it" in plain.notices
    root = write_deep(tmp_path / "deep", lambda number: png16(TWELVE + number))
    for _ in range(2):  # decoded, and from the cache
        wide = open_images(spec_of(root, range=(0, 65_535)), cache=cache)
        said = "split 'train': pixels run only from 0 to 4100 of [0, 65535]: few levels of grey are left"
        assert any(notice.startswith(said) for notice in wide.notices)


def test_rotations_and_further_frames_that_are_passed_over_are_counted(tmp_path, cache):
    root = write_folder(tmp_path / "images")
    one, other = (Image.fromarray(np.full((5, 4, 3), level, np.uint8)) for level in (10, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    one.save(root / "train/cat/000.jpg", exif=exif)
    one.save(root / "train/cat/001.gif", save_all=True, append_images=[other])
    one.save(root / "train/dog/001.webp", save_all=True, append_images=[other], lossless=True)
    images = open_images(spec_of(root), cache=cache)
    assert images.notices == (f"split 'train': 1 image {ROTATED}", f"split 'train': 2 images {FRAMES}")
    assert images.fit.size == (5, 4)
    assert sum(int(image.float().mean()) == 10 for image in images.fit.batch(0, images.fit.num)) == 3
