"""Small image folders and archives, made on the spot."""

import tarfile
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
    mode = {"": "w", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[archive.suffix.removesuffix(".tar")]
    with tarfile.open(archive, mode) as tar:
        for name in names or sorted((str(path.relative_to(folder)) for path in folder.rglob("*")), reverse=True):
            tar.add(folder / name, name, recursive=False)
    return archive


def spec_of(root: Path, **changes: object) -> DataSpec:
    return replace(DataSpec(dataset="imagefolder", root=str(root)), **changes)


def whole_digest(images: Images) -> tuple[str, str]:
    return images.fit.digest(images.fit.num), images.eval.digest(images.eval.num)


def open_in_process(arguments: tuple[str, str]) -> tuple[str, str]:
    root, cache = arguments
    return whole_digest(open_images(spec_of(Path(root)), cache=Path(cache)))
