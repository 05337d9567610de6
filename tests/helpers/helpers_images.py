"""Small image folders and archives, made on the spot."""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stitchgrid.datasets import Images, open_images
from stitchgrid.records import DataSpec

CLASSES = ("cat", "dog", "eel")


def pixels_of(split: str, class_name: str, index: int, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    seed = [*split.encode(), *class_name.encode(), index]
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_folder(root: Path, num: dict[str, int] | None = None, sizes: Callable[[int], tuple[int, int]] | None = None):
    for split, count in (num or {"train": 6, "test": 4}).items():
        for class_name in CLASSES:
            folder = root / split / class_name
            folder.mkdir(parents=True)
            for index in range(count):
                size = sizes(index) if sizes else (5, 4)
                Image.fromarray(pixels_of(split, class_name, index, size)).save(folder / f"{index:03}.png")
    return root


def pack(folder: Path, archive: Path, names: list[str] | None = None) -> Path:
    given = names or sorted((str(path.relative_to(folder)) for path in folder.rglob("*")), reverse=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name in given:
                file.write(folder / name, name)
        return archive
    mode = {"": "w", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[archive.suffix.removesuffix(".tar")]
    with tarfile.open(archive, mode) as tar:
        for name in given:
            tar.add(folder / name, name, recursive=False)
    return archive


def spec_of(root: Path, **changes: object) -> DataSpec:
    return replace(DataSpec(dataset="imagefolder", root=str(root)), **changes)


def whole_digest(images: Images) -> tuple[str, str]:
    return images.fit.digest(images.fit.num), images.eval.digest(images.eval.num)


def open_in_process(arguments: tuple[str, str]) -> tuple[str, str]:
    root, cache = arguments
    return whole_digest(open_images(spec_of(Path(root)), cache=Path(cache)))


def png16(values: np.ndarray, *, significant: int | None = None) -> bytes:
    """Return a PNG of 16 bits a channel, (H, W) or (H, W, C), with the chunk sBIT where bits are `significant`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    parts += [chunk(b"sBIT", bytes([significant] * channels))] if significant else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def tiff(values: np.ndarray, *, bits: int, order: str = "<", tags: dict[int, int] | None = None) -> bytes:
    """Return an uncompressed TIFF of the bytes of `values`, (H, W) or (H, W, C); `tags` come on top as shorts."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    format_ = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    content = values.tobytes()
    start = 8
    given = {256: width, 257: height, 258: bits, 259: 1, 262: 1 if channels == 1 else 2, 273: start}
    given |= {277: channels, 278: height, 279: len(content), 339: format_, **(tags or {})}
    entries = b""
    extra = b"".join(struct.pack(f"{order}H", bits) for _ in range(channels)) if channels > 2 else b""
    for tag, value in sorted(given.items()):
        if tag == 258 and extra:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, start + len(content))
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start + len(content) + len(extra))
    return head + content + extra + struct.pack(f"{order}H", len(given)) + entries + b"\0\0\0\0"
