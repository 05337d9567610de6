"""The formats of image files that are read; every image file is opened here.

Pillow supports more formats, and runs Ghostscript for PostScript whatever the name of the file; those are not opened.
"""

import io
from pathlib import PurePosixPath
from typing import Any

from PIL import EpsImagePlugin, Image, ImageFile

from stitchgrid.printable import in_one_line

PILLOW_FORMATS = {  # Pillow's name -> suffixes; the content of a file, not its suffix, decides its format
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
IMAGE_SUFFIXES = frozenset(" ".join(PILLOW_FORMATS.values()).split())
_OPENED = {*PILLOW_FORMATS, "MPO"}  # Pillow's name of a JPEG with several pictures, once it is open


def open_image(raw: bytes) -> ImageFile.ImageFile:
    """Open the image in the bytes of a file; only its header is read.

    Raises:
        UnidentifiedImageError: If it has none of the formats that are read.
    """
    Image.init()  # loads all formats of this build of Pillow, which may lack some
    return Image.open(io.BytesIO(raw), formats=[one for one in PILLOW_FORMATS if one in Image.OPEN])


def check_format(image: Any) -> None:
    """Check the format of an image that other code has opened; an image that is decoded already passes.

    Raises:
        ValueError: If its format is not read here; the message names it.
    """
    if getattr(image, "tile", ()) and image.format is not None and image.format not in _OPENED:
        raise ValueError(f"an image of the format {image.format}, which is not supported; convert it to PNG")


def start_no_programs() -> None:
    """Keep Pillow from starting Ghostscript in this process."""
    EpsImagePlugin.gs_binary = False


def is_image(name: str) -> bool:
    """Return whether the name of a file is that of an image."""
    return suffix_of(name) in IMAGE_SUFFIXES and not name.startswith(".")


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, printable.

    >>> suffix_of("a.JPG"), suffix_of("README")
    ('.jpg', 'without suffix')
    """
    return in_one_line(PurePosixPath(name).suffix.lower()) or "without suffix"
