"""Limit the scans of JPEG images: each scan decodes the whole image, so a small file could take hours."""

import re

from PIL import ImageFile

from stitchgrid.limits import raise_by
from stitchgrid.records import Limits

_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # none of these occurs within the data of a scan
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_END = 0xD9
_JPEG_IN_TIFF = {6, 7}  # of the tag of a TIFF's compression
_COMPRESSION, _PIECES = 259, ((273, 279), (324, 325))  # tags: places and bytes of strips, and of tiles


def scans_problem(image: ImageFile.ImageFile, raw: bytes, limits: Limits) -> str | None:
    """Return why an image is not decoded if it has more scans than the limits allow, else None."""
    if raw.count(_SCAN) <= limits.scans:  # which other data may hold, too
        return None
    found = max((_num_scans(part) for part in _jpegs(image, raw)), default=0)
    if found <= limits.scans:
        return None
    return f"a JPEG of {found:,} scans, more than the {limits.scans:,} allowed; {raise_by('scans')}"


def _jpegs(image: ImageFile.ImageFile, raw: bytes) -> list[bytes]:
    """Return the JPEGs that are decoded: the file, or the strips or tiles of a TIFF."""
    if image.format in ("JPEG", "MPO"):
        return [raw]
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or tags.get(_COMPRESSION) not in _JPEG_IN_TIFF:
        return []
    for places, sizes in _PIECES:
        if places in tags and sizes in tags:
            pieces = set(zip(_numbers(tags[places]), _numbers(tags[sizes]), strict=False))
            return [raw[place : place + size] for place, size in pieces]
    return [raw]


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _num_scans(raw: bytes) -> int:
    """Return how many scans follow the start of a JPEG, up to its end."""
    found, place = 0, 0
    while (marker := _MARKER.search(raw, place)) is not None:
        kind, place = raw[marker.start() + 1], marker.end()
        if kind == _END:
            break
        if kind in _ALONE:
            continue
        found += kind == _SCAN[1]
        place += int.from_bytes(raw[place : place + 2], "big")
    return found
