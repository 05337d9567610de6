"""Prepares pixels of a data set for a network: scale, resize, crop, normalise; and augments them.

Shape suffixes: N images, C channels, H and W pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from stitchgrid.errors import InputError
from stitchgrid.records import Preprocess
from stitchgrid.vision import InterpolationMode, center_crop, resize

INTERPOLATIONS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST_EXACT,  # the nearest of PIL
}
PADDING = 4  # pixels on each side, for crop4_flip


def apply_preprocess(
    pixels: Tensor | Sequence[Tensor], preprocess: Preprocess, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return images prepared for a network, (N,C,H,W): scaled to [0, 1], resized, centre cropped, normalised.

    `pixels` are uint8 (N,C,H,W), or (C,H,W) images of different sizes that resizing and cropping make equal.
    Floating-point images (N,C,H,W) are taken as prepared, and only cast. A single channel is the luminance of the bytes
    as Pillow computes it (ITU-R 601, rounded to 8 bits). The arithmetic is float32 (float64 if asked for); the result
    is cast to `dtype` last.

    Unlike torchvision's presets, resizing works on floats, without rounding to 8 bits; bicubic is clamped to [0, 1].

    Raises:
        InputError: If a crop is larger than the image, images still differ in size, or they have other channels.
    """
    work = torch.float64 if dtype == torch.float64 else torch.float32
    if isinstance(pixels, Tensor) and pixels.is_floating_point():
        return pixels.to(dtype)
    if isinstance(pixels, Tensor):
        x_NCHW = _resize_and_crop(pixels, preprocess, work)
    else:
        images = [_resize_and_crop(image_CHW[None], preprocess, work) for image_CHW in pixels]
        if len(sizes := sorted({tuple(image.shape[-2:]) for image in images})) > 1:
            raise InputError(
                f"the images differ in size after preprocessing (heights and widths {sizes[:3]}...); set `resize` and "
                "`crop`, or `resize = [height, width]`, in the model's `preprocess`."
            )
        x_NCHW = torch.cat(images) if images else torch.empty((0, preprocess.channels, 0, 0), dtype=work)
    if preprocess.mean is not None:
        x_NCHW = x_NCHW - _per_channel(preprocess.mean, x_NCHW.dtype, x_NCHW.device)
    if preprocess.std is not None:
        x_NCHW = x_NCHW / _per_channel(preprocess.std, x_NCHW.dtype, x_NCHW.device)
    return x_NCHW.to(dtype)


def on_device(pixels: Tensor | Sequence[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """Return images on a device as they are: bytes have a quarter of the size of the floats they become."""
    return pixels.to(device) if isinstance(pixels, Tensor) else [image_CHW.to(device) for image_CHW in pixels]


def output_size(preprocess: Preprocess, height: int, width: int) -> tuple[int, int]:
    """Return height and width of a preprocessed image.

    >>> output_size(Preprocess(resize=256, crop=224), 300, 600)
    (224, 224)
    >>> output_size(Preprocess(resize=256), 300, 600)
    (256, 512)

    Raises:
        InputError: If the crop is larger than the image.
    """
    if isinstance(preprocess.resize, int):
        short, long = sorted((height, width))
        new_long = int(preprocess.resize * long / short)  # rounded as torchvision rounds
        height, width = (preprocess.resize, new_long) if height <= width else (new_long, preprocess.resize)
    elif preprocess.resize is not None:
        height, width = preprocess.resize
    if preprocess.crop is None:
        return height, width
    crop = _pair(preprocess.crop)
    if crop[0] > height or crop[1] > width:
        raise InputError(
            f"cannot crop {crop[0]}x{crop[1]} out of a {height}x{width} image; set `resize` to at least the crop in "
            "the model's `preprocess`."
        )
    return crop


def check_channels(preprocess: Preprocess, channels: int) -> None:
    """Refuse bytes with channels that cannot become those of a preprocess: only red, green, blue become luminance.

    Raises:
        InputError: With what to write.
    """
    wanted = preprocess.channels
    if channels in {wanted, preprocess.image_channels}:
        return
    if channels == 3:
        raise InputError(
            f"the images are red, green, blue, and the model's `preprocess` wants {wanted} channels; set its "
            "`channels` to 3, or to 1 for the luminance. Images of other channels are arrays, with their number as "
            "`channels` under [data]."
        )
    words = {1: "a luminance", 3: "red, green, blue"}
    raise InputError(
        f"the images have {channels} channels, as [data] says, and the model's `preprocess` wants "
        f"{words.get(wanted, f'{wanted} channels')}, which cannot be made of them; set preprocess = {{ channels = "
        f"{channels} }}, with {channels} numbers in `mean` and `std` if it has them."
    )


def augment_crop4_flip(pixels: Tensor | Sequence[Tensor], generator: torch.Generator) -> Tensor | list[Tensor]:
    """Return images moved by up to 4 pixels, with zeros at the edge, and flipped left to right in half of the cases.

    Each image takes one draw from the generator, so that the size of batches does not change the result.
    """
    if not isinstance(pixels, Tensor):
        return [_crop4_flip(image_CHW[None], generator)[0] for image_CHW in pixels]
    return _crop4_flip(pixels, generator)


def _crop4_flip(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    num, channels, height, width = x_NCHW.shape
    steps = 2 * PADDING + 1
    draw_N = torch.randint(2 * steps * steps, (num,), generator=generator, device=generator.device).to(x_NCHW.device)
    flip_N, top_N, left_N = draw_N // steps**2, draw_N // steps % steps, draw_N % steps
    column_W = torch.arange(width, device=x_NCHW.device)
    column_NW = torch.where(flip_N[:, None] == 1, column_W.flip(0), column_W) + left_N[:, None]
    row_NH = torch.arange(height, device=x_NCHW.device) + top_N[:, None]
    padded = F.pad(x_NCHW, (PADDING,) * 4)
    image_N = torch.arange(num, device=x_NCHW.device)
    channel_C = torch.arange(channels, device=x_NCHW.device)
    return padded[
        image_N[:, None, None, None], channel_C[None, :, None, None], row_NH[:, None, :, None], column_NW[:, None, None]
    ]


def _resize_and_crop(x_NCHW: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    output_size(preprocess, *x_NCHW.shape[-2:])
    check_channels(preprocess, x_NCHW.shape[1])
    if preprocess.channels != x_NCHW.shape[1]:
        x_NCHW = luminance(x_NCHW)
    x_NCHW = x_NCHW.to(dtype) / 255
    if preprocess.resize is not None:
        size = [preprocess.resize] if isinstance(preprocess.resize, int) else list(preprocess.resize)
        mode = INTERPOLATIONS[preprocess.interpolation]
        x_NCHW = resize(x_NCHW, size, interpolation=mode, antialias=True)
        if preprocess.interpolation == "bicubic":
            x_NCHW = x_NCHW.clamp(0, 1)
    if preprocess.crop is not None:
        x_NCHW = center_crop(x_NCHW, list(_pair(preprocess.crop)))
    return x_NCHW


def luminance(x_N3HW: Tensor) -> Tensor:
    """Return the luminance of bytes as Pillow's convert("L") does, (N,1,H,W): the value itself where R = G = B.

    >>> luminance(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)).item()
    76
    """
    wide = x_N3HW.int()
    red, green, blue = wide[:, 0:1], wide[:, 1:2], wide[:, 2:3]
    rounded = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return rounded.to(torch.uint8)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@lru_cache(maxsize=64)  # else the host would wait for a device at each batch
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
