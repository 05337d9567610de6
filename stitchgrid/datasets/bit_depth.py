"""Read pixels that do not have eight bits, and their range if the file gives it (PNG's sBIT, TIFF's tags, PPM)."""

import re
import struct
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stitchgrid.datasets.image_files import open_image
from stitchgrid.datasets.pixels import SIXTEEN_BITS, Bounds, Deep

PNG_START = b"\x89PNG\r\n\x1a\n"
START_OF_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000's markers SOC and SIZ
WHITE_IS_ZERO = 0  # value of TIFF's PhotometricInterpretation
APART = 2  # value of TIFF's PlanarConfiguration
SIGNED, FLOAT = 2, 3  # values of TIFF's SampleFormat
BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
SIXTEEN = re.compile(r"\b(L|LA|RGB|RGBA|RGBX|RGBa|CMYK);16[LBN]\b")  # Pillow's raw modes with 16 bits
_NATIVE = "L" if sys.byteorder == "little" else "B"
OTHER_ORDER = {  # raw mode -> the raw mode that reads the lower bytes
    f"{colour};16{order}": f"{colour};16{'B' if (_NATIVE if order == 'N' else order) == 'L' else 'L'}"
    for colour in ("RGB", "RGBA", "RGBX")
    for order in "LBN"
}
MINIMUM, MAXIMUM = (340, 280), (341, 281)  # tags of TIFF: SMinSampleValue before MinSampleValue, the same for Max


def deep_pixels(image: Image.Image, raw: bytes | None = None) -> Deep | None:
    """Return the pixels of an opened image if they have more than eight bits or a sign, else None.

    `raw` holds the bytes of its file; they are needed because Pillow keeps only eight bits of 16-bit colours.

    Raises:
        ValueError: If the image is a 16-bit TIFF with separate planes, which Pillow cannot read.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, raw)
    if _is_sixteen_bits(image):
        return _colour(image, raw)
    if image.format == "TIFF" and _tag(image, SAMPLE_FORMAT, 1) == SIGNED and image.mode == "L":
        return Deep(values=np.asarray(image).view(np.int8), what="8-bit signed", told=_tags_range(image))
    return None


def _grey(image: Image.Image, raw: bytes | None) -> Deep:
    values = np.asarray(image)
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":  # these formats always give their range
        return Deep(values=values, what="16-bit", told=SIXTEEN_BITS, is_fixed=_is_scaled(raw))
    if image.format == "PNG" and raw is not None:
        return Deep(values=values, what="16-bit", told=_png_range(raw, values))
    if image.format == "TIFF":
        return _tiff(image, values)
    if image.mode == "F":
        return Deep(values=values, what="floating-point")
    return Deep(values=values, what="16-bit" if "16" in image.mode else "32-bit")


def _is_scaled(raw: bytes | None) -> bool:
    """Return whether Pillow has scaled a PGM or JPEG 2000 to 16 bits: it does so if the file has fewer."""
    if raw is None:
        return True
    if raw.startswith(b"P"):
        words = re.sub(rb"#[^\n]*", b"", raw[:1_000]).split(maxsplit=4)
        return words[3:4] != [b"65535"]
    start = raw.find(START_OF_CODESTREAM)
    return start < 0 or (raw[start + 42 : start + 43] or b"\0")[0] & 0x7F != 15  # SIZ holds the number of bits minus 1


def _tiff(image: Image.Image, values: NDArray[Any]) -> Deep:
    bits, sign = int(_tag(image, BITS, 1)), _tag(image, SAMPLE_FORMAT, 1)
    if bits == 32 and sign not in (SIGNED, FLOAT):
        values = values.view(np.uint32)
    told, is_measured = _tags_range(image), True
    if told is None or told == (0, 2**bits - 1):
        is_measured = False
    if told is None and bits < 16:
        told = (0, 2**bits - 1)
    what = "floating-point" if image.mode == "F" else f"{bits}-bit{' signed' if sign == SIGNED else ''}"
    is_inverted = _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO
    return Deep(values=values, what=what, told=told, is_measured=is_measured, is_inverted=is_inverted)


def _tags_range(image: Image.Image) -> Bounds | None:
    """Return the range that the tags of a TIFF give; None if they give none."""
    low = next((value for tag in MINIMUM if (value := _tag(image, tag, None)) is not None), 0)
    high = next((value for tag in MAXIMUM if (value := _tag(image, tag, None)) is not None), None)
    return None if high is None or not low < high else (float(low), float(high))


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    return value[0] if isinstance(value, tuple) else value


def _is_sixteen_bits(image: Image.Image) -> bool:
    """Return whether Pillow will reduce sixteen bits to eight."""
    if any(SIXTEEN.search(str(tile)) for tile in getattr(image, "tile", ())):
        return True
    return image.format == "TIFF" and _tag(image, BITS, 1) > 8


def _colour(image: Image.Image, raw: bytes | None) -> Deep:
    """Return the pixels of an image with 16 bits per channel, without alpha."""
    if image.format == "TIFF" and _tag(image, PLANES, 1) == APART:  # Pillow decodes such files wrongly
        raise ValueError("a 16-bit TIFF with a separate plane for each colour; save it as PNG")
    told = _tags_range(image) if image.format == "TIFF" else None
    upper = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    values = None if raw is None else _both_bytes(raw)
    if raw is None or values is None:
        return Deep(values=upper, what=f"16-bit colour {image.format or 'image'}", told=told, is_upper=True)
    if image.format == "PNG":
        told = _png_range(raw, values)
    return Deep(values=values, what="16-bit", told=told, is_measured=told not in (None, SIXTEEN_BITS))


def _both_bytes(raw: bytes) -> NDArray[Any] | None:
    """Return colours or grey of 16 bits, (3, H, W) or (1, H, W); None if Pillow cannot give both bytes.

    Pillow keeps one byte of each channel. If it reads in the byte order of the file, that is the upper byte; in the
    other byte order, it is the lower byte. Grey with alpha has four bytes per pixel, so it can be read as 8-bit RGBA.
    """
    read = {}
    for order in ("as it is", "other"):
        with open_image(raw) as image:
            modes = {_raw_mode(tile) for tile in image.tile}
            if modes == {"LA;16B"}:
                image.tile = [_with_raw_mode(tile, "RGBA") for tile in image.tile]
                upper_lower_HW4 = np.asarray(image).astype(np.uint16)
                return (upper_lower_HW4[..., 0] << 8 | upper_lower_HW4[..., 1])[None]
            if len(modes) != 1 or (mode := modes.pop()) not in OTHER_ORDER:
                return None
            if order == "other":
                image.tile = [_with_raw_mode(tile, OTHER_ORDER[mode]) for tile in image.tile]
            read[order] = np.asarray(image)[..., :3].astype(np.uint16)
    return np.ascontiguousarray((read["as it is"] << 8 | read["other"]).transpose(2, 0, 1))


def _raw_mode(tile: Any) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0])


def _with_raw_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def _png_range(raw: bytes, values: NDArray[Any]) -> Bounds | None:
    """Return the range of a 16-bit PNG if its sBIT chunk gives the number of significant bits; else None.

    By the standard, values are scaled to 16 bits, but some programs do not scale them. The values show which is the
    case; the result is None if they do not.
    """
    bits = significant_bits(raw)
    if bits is None or bits >= 16:
        return None if bits is None else SIXTEEN_BITS
    most = 2**bits - 1
    wide = values.astype(np.int64)
    nearest = np.rint(wide * (most / 65_535)) * (65_535 / most)
    is_scaled = bool((np.abs(wide - nearest) < 1).all() or (wide % 2 ** (16 - bits) == 0).all())
    is_small = bool(wide.max(initial=0) <= most)
    if is_scaled == is_small:
        return SIXTEEN_BITS if not wide.any() else None
    return SIXTEEN_BITS if is_scaled else (0, most)


def significant_bits(raw: bytes) -> int | None:
    """Return the largest number of bits of a channel, without alpha, in the sBIT chunk of a PNG; None without it."""
    place = len(PNG_START)
    colour = 0
    while place + 8 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, place)
        content = raw[place + 8 : place + 8 + length]
        if kind == b"IDAT":
            return None
        if kind == b"IHDR" and length == 13:
            colour = content[9]
        if kind == b"sBIT" and content:
            return max(content[:-1] if colour & 4 and len(content) > 1 else content)
        place += 12 + length
    return None
