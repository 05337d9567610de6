"""The formats of image files that are read, and the one place that opens them.

Pillow knows many more, and hands PostScript, whatever the file is called, to Ghostscript: none of those is opened.
"""

import io
from pathlib import PurePosixPath
from typing import Any

from PIL import EpsImagePlugin, Image, ImageFile

from stitchgrid.printable import printable

FORMATS = {  # Pillow's name -> suffixes; the content of a file, not its suffix, says which it is
    "BMP": ".bmp",
    "DIB": ".dib",
    "GIF": ".gif",
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PPM": ".pbm .pfm .pgm .pnm .ppm",
    "PNG": ".png .apng",
    "AVIF": ".avif",
    "JPEG2000": ".jp2 .j2k .jpx",
    "PCX": ".pcx",
    "QOI": ".qoi",
    "TGA": ".tga",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
}
IMAGE_SUFFIXES = frozenset(" ".join(FORMATS.values()).split())
_OPENED = {*FORMATS, "MPO"}  # Pillow's name of a JPEG with several pictures, once it is open


def open_image(raw: bytes) -> ImageFile.ImageFile:
    """Return the image in the bytes of a file, if it is of a format that is read; only its header is read yet.

    Raises:
        UnidentifiedImageError: If it is of no such format.
    """
    Image.init()  # builds of Pillow may lack a format
    return Image.open(io.BytesIO(raw), formats=[one for one in FORMATS if one in Image.OPEN])


def check_format(image: Any) -> None:
    """Refuse an image that somebody else opened and nobody decoded yet, if it is of no format that is read.

    Raises:
        ValueError: Naming the format.
    """
    if getattr(image, "tile", ()) and image.format is not None and image.format not in _OPENED:
        raise ValueError(f"an image of the format {image.format}, which is not read; convert it to PNG")


def start_no_programs() -> None:
    """Have Pillow start no Ghostscript in this process, whoever opens a file with it."""
    EpsImagePlugin.gs_binary = False


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return suffix_of(name) in IMAGE_SUFFIXES and not name.startswith(".")


def suffix_of(name: str) -> str:
    """Return the suffix of a file in small letters, as it can be shown.

    >>> suffix_of("a.JPG"), suffix_of("README")
    ('.jpg', 'without suffix')
    """
    return printable(PurePosixPath(name).suffix.lower()) or "without suffix"
