"""Decode the bytes of an image file, or an image that a library has opened, into pixels and remarks."""

from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from stitchgrid.datasets.bit_depth import deep_pixels
from stitchgrid.datasets.image_files import open_image
from stitchgrid.datasets.pixels import Bounds, EightBits, as_rgb, three_channels
from stitchgrid.datasets.scans import scans_problem
from stitchgrid.datasets.sources import Decoded, Unreadable, unreadable
from stitchgrid.limits import raise_by
from stitchgrid.records import DEFAULT_LIMITS, Limits

ROTATED = "with an EXIF orientation, which is not applied"
OPTIONAL = {".avif": "avif", ".webp": "webp", ".jp2": "jpg_2000", ".j2k": "jpg_2000", ".jpx": "jpg_2000"}
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LARGE_PIXELS = 4_000_000
FRAMES = "with several frames, of which the first is read"


def to_rgb(image: Image.Image, bounds: Bounds | None = None, raw: bytes | None = None) -> EightBits:
    """Return an image as 8-bit RGB: grey is repeated, alpha is dropped, deep pixels are scaled by their range.

    >>> to_rgb(Image.new("L", (4, 2), 7)).pixels.shape
    (3, 2, 4)

    Raises:
        NeedsRangeError: If its pixels are deep, and neither the file nor `bounds` gives their range.
        ValueError: If a value lies outside the range.
    """
    deep = deep_pixels(image, raw)
    if deep is not None:
        return as_rgb(deep, bounds)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return EightBits(pixels=three_channels(np.asarray(image.convert("RGB")).transpose(2, 0, 1)))


def is_large(raw: bytes) -> bool:
    """Return whether an image has so many pixels that such images are decoded one at a time."""
    try:
        with open_image(raw) as image:  # reads only the header
            return image.width * image.height > LARGE_PIXELS
    except Exception:  # `decode` reports the error
        return False


def decode(
    raw: bytes, name: str, label: int, bounds: Bounds | None = None, limits: Limits = DEFAULT_LIMITS
) -> Decoded | Unreadable:
    """Return the image in the bytes of a file, or why it cannot be read."""
    try:
        with open_image(raw) as image:
            if image.width * image.height > limits.pixels:
                size = f"{image.width} x {image.height} pixels, more than the {limits.pixels:,} allowed"
                return Unreadable(name=name, reason=f"{size}; {raise_by('pixels')}")
            if (reason := scans_problem(image, raw, limits)) is not None:
                return Unreadable(name=name, reason=reason)
            found = to_rgb(image, bounds, raw)
            return Decoded(pixels=found.pixels, label=label, depth=found.depth, remarks=remarks_on(image))
    except UnidentifiedImageError:
        return Unreadable(name=name, reason=_unknown(name, raw) if raw else "empty file")
    except Exception as problem:  # decoders raise errors of many types for broken files
        return unreadable(name, problem)


def expect_large_images(limits: Limits) -> None:
    """Make Pillow accept, without a warning, all image sizes that the limits allow."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.pixels)


def _unknown(name: str, raw: bytes) -> str:
    """Return why Pillow does not recognise a file as an image."""
    suffix = name[name.rfind(".") :].lower()
    if suffix in OPTIONAL and not features.check(OPTIONAL[suffix]):
        return f"Pillow was built without {suffix} here"
    return "a TIFF of a kind that Pillow cannot read" if raw.startswith(TIFF_STARTS) else "not an image"


def remarks_on(image: Image.Image) -> tuple[str, ...]:
    """Return what decoding has ignored: an EXIF orientation, further frames."""
    found = []
    with suppress(Exception):  # the image is decoded already, so metadata that cannot be read is no error
        if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            found.append(ROTATED)
    with suppress(Exception):
        if getattr(image, "is_animated", False) and image.format != "MPO":  # further frames of an MPO are previews
            found.append(FRAMES)
    return tuple(found)
