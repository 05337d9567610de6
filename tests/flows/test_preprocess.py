from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from stitchgrid.errors import InputError
from stitchgrid.preprocess import apply_preprocess, augment_crop4_flip, output_size
from stitchgrid.records import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw_pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_without_any_step_pixels_are_scaled_to_unit_range():
    pixels = draw_pixels(2, 3, 4, 5)
    torch.testing.assert_close(apply_preprocess(pixels, Preprocess()), pixels.float() / 255, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_result_has_the_dtype_asked_for_and_is_rounded_once(dtype):
    pixels = draw_pixels(2, 3, 9, 7)
    exact = (pixels.double() / 255 - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD)[:, None, None]
    found = apply_preprocess(pixels, Preprocess(mean=MEAN, std=STD), dtype=dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_the_order_is_resize_crop_normalise():
    pixels = draw_pixels(2, 3, 20, 30)
    wanted = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(16, antialias=True),
            v2.CenterCrop(12),
            v2.Normalize(MEAN, STD),
        ]
    )(pixels)
    found = apply_preprocess(pixels, Preprocess(resize=16, crop=12, mean=MEAN, std=STD))
    torch.testing.assert_close(found, wanted)


def test_resizing_to_a_height_and_width_ignores_the_aspect():
    assert apply_preprocess(draw_pixels(1, 3, 20, 30), Preprocess(resize=(8, 9))).shape == (1, 3, 8, 9)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_every_interpolation_stays_in_range_and_keeps_a_constant(interpolation):
    preprocess = Preprocess(resize=7, interpolation=interpolation)
    flat = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    torch.testing.assert_close(apply_preprocess(flat, preprocess), torch.full((1, 3, 7, 7), 200 / 255))
    edges = (draw_pixels(4, 3, 5, 5) > 127).to(torch.uint8) * 255
    found = apply_preprocess(edges, Preprocess(resize=16, interpolation=interpolation))
    assert found.min() >= 0
    assert found.max() <= 1


def test_nearest_makes_no_new_values():
    pixels = (draw_pixels(2, 3, 5, 5) > 127).to(torch.uint8) * 255
    found = apply_preprocess(pixels, Preprocess(resize=13, interpolation="nearest"))
    assert set(found.unique().tolist()) == {0, 1}


def test_shrinking_is_antialiased():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    found = apply_preprocess(stripes, Preprocess(resize=8))
    torch.testing.assert_close(found, torch.full_like(found, 0.5), rtol=0, atol=0.02)


def test_images_of_different_sizes_come_out_as_one_batch():
    images = [draw_pixels(3, 20, 30), draw_pixels(3, 40, 25, seed=1)]
    preprocess = Preprocess(resize=16, crop=16, mean=MEAN, std=STD)
    found = apply_preprocess(images, preprocess)
    assert found.shape == (2, 3, 16, 16)
    for image, row in zip(images, found, strict=True):
        torch.testing.assert_close(apply_preprocess(image[None], preprocess)[0], row)


def test_images_that_still_differ_in_size_are_refused():
    images = [draw_pixels(3, 20, 30), draw_pixels(3, 30, 20)]
    with pytest.raises(InputError, match=r"differ in size after preprocessing .*\(16, 24\), \(24, 16\).*set `resize`"):
        apply_preprocess(images, Preprocess(resize=16))


def test_a_crop_larger_than_the_image_is_refused_not_padded():
    message = "cannot crop 16x16 out of a 12x30 image; set `resize`"
    with pytest.raises(InputError, match=message):
        apply_preprocess(draw_pixels(1, 3, 12, 30), Preprocess(crop=16))
    with pytest.raises(InputError, match=message):
        output_size(Preprocess(crop=16), 12, 30)


sides = st.integers(8, 40)
sizes = st.one_of(st.none(), st.integers(8, 30), st.tuples(st.integers(8, 30), st.integers(8, 30)))


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, resize=sizes, crop=st.one_of(st.none(), st.integers(1, 8)))
def test_the_output_size_is_known_beforehand(height, width, resize, crop):
    preprocess = Preprocess(resize=resize, crop=crop)
    found = apply_preprocess(torch.zeros(1, 3, height, width, dtype=torch.uint8), preprocess)
    assert tuple(found.shape[-2:]) == output_size(preprocess, height, width)


# ---- channels


def test_one_channel_is_the_luminance_of_pillow_and_grey_stays_what_it_is():
    pixels = draw_pixels(2, 3, 9, 7)
    wanted = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in pixels]
    found = apply_preprocess(pixels, Preprocess(channels=1))
    assert torch.equal(found, torch.from_numpy(np.stack(wanted))[:, None].float() / 255)
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(apply_preprocess(grey, Preprocess(channels=1)), grey[:, :1].float() / 255)


def test_one_channel_is_resized_cropped_and_normalised_like_three():
    preprocess = Preprocess(channels=1, resize=16, crop=8, mean=(0.4,), std=(0.2,))
    grey = draw_pixels(2, 1, 20, 24)
    three = apply_preprocess(
        grey.expand(2, 3, 20, 24), replace(preprocess, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)
    )
    found = apply_preprocess(grey.expand(2, 3, 20, 24), preprocess)
    assert found.shape == (2, 1, 8, 8)
    torch.testing.assert_close(found, three[:, :1])
    as_list = apply_preprocess(list(grey.expand(2, 3, 20, 24)), preprocess)
    assert torch.equal(as_list, found)
    assert apply_preprocess([], preprocess).shape[1] == 1


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_other_channels_are_each_resized_cropped_and_normalised_as_one_of_three(channels):
    mean, std = torch.linspace(0.2, 0.6, channels), torch.linspace(0.1, 0.3, channels)
    how = Preprocess(resize=16, crop=(8, 10), interpolation="bicubic")
    pixels = draw_pixels(2, channels, 20, 24)
    other = replace(how, channels=channels)
    found = apply_preprocess(pixels, replace(other, mean=tuple(mean.tolist()), std=tuple(std.tolist())))
    assert found.shape == (2, channels, 8, 10)
    for k in range(channels):
        alone = apply_preprocess(pixels[:, k : k + 1].expand(2, 3, 20, 24), how)[:, 0]
        torch.testing.assert_close(found[:, k], (alone - mean[k]) / std[k], rtol=1e-6, atol=1e-6)
    assert torch.equal(apply_preprocess(list(pixels), other), apply_preprocess(pixels, other))


@pytest.mark.parametrize(
    ("have", "wanted", "message"),
    [
        (
            12,
            3,
            r"the images have 12 channels, .* wants red, green, blue, which cannot be made of them; set prepro",
        ),
        (12, 1, r"the images have 12 channels, .* wants a luminance, which .* set preprocess = \{ channels = 12 \}"),
        (12, 4, r"the images have 12 channels, .* wants 4 channels, which .*, with 12 numbers in `mean` and `std`"),
        (3, 12, r"the images are red, green, blue, and .* wants 12 channels; set its `channels` to 3, or to 1 for"),
    ],
)
def test_channels_that_images_do_not_have_are_not_made_up(have, wanted, message):
    with pytest.raises(InputError, match=message):
        apply_preprocess(draw_pixels(2, have, 5, 5), Preprocess(channels=wanted))


# ---- augmentation


def test_every_augmented_image_is_a_shift_or_a_mirrored_shift_of_its_own():
    pixels = draw_pixels(300, 3, 6, 5)
    found = augment_crop4_flip(pixels, torch.Generator().manual_seed(0))
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8
    seen = set()
    for image, augmented in zip(pixels, found, strict=True):
        padded = F.pad(image, (4, 4, 4, 4))
        crops = {
            (top, left, flipped): crop.flip(2) if flipped else crop
            for top in range(9)
            for left in range(9)
            for flipped in (False, True)
            for crop in [padded[:, top : top + 6, left : left + 5]]
        }
        matching = {key for key, crop in crops.items() if torch.equal(crop, augmented)}
        assert matching
        seen |= matching if len(matching) == 1 else set()
    assert {top for top, _, _ in seen} == set(range(9))
    assert {left for _, left, _ in seen} == set(range(9))
    assert {flipped for _, _, flipped in seen} == {False, True}
    assert len(seen) > 100  # of 162 combinations: top, left and flip do not go together


def test_about_half_of_the_images_are_flipped_and_shifts_are_even():
    ramp = torch.arange(1, 33, dtype=torch.uint8).expand(4_000, 3, 32, 32)
    found = augment_crop4_flip(ramp, torch.Generator().manual_seed(3))[:, 0, 16]
    assert abs((found[:, 10] > found[:, 11]).float().mean() - 0.5) < 0.03
    shifts = torch.where(found[:, 10] < found[:, 11], found[:, 10].long() - 11, found[:, 21].long() - 11)
    counts = torch.bincount(shifts + 4, minlength=9)
    assert len(counts) == 9
    assert (counts / 4_000 - 1 / 9).abs().max() < 0.02


def test_augmenting_is_deterministic_and_does_not_depend_on_where_batches_are_cut():
    pixels = draw_pixels(50, 3, 8, 8)
    whole = augment_crop4_flip(pixels, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    parts = [augment_crop4_flip(part, generator) for part in (pixels[:1], pixels[1:20], pixels[20:])]
    assert torch.equal(whole, torch.cat(parts))
    as_list = augment_crop4_flip(list(pixels), torch.Generator().manual_seed(7))
    assert torch.equal(whole, torch.stack(as_list))
    assert not torch.equal(whole, augment_crop4_flip(pixels, torch.Generator().manual_seed(8)))


def test_augmenting_leaves_its_input_and_the_global_generator_alone():
    pixels = draw_pixels(5, 3, 8, 8)
    before, state = pixels.clone(), torch.get_rng_state()
    augment_crop4_flip(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
