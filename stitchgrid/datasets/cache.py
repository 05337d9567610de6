"""A cache of decoded images on this machine's disk, so that opening a data set again needs no decoding.

An entry is a folder that is published atomically. Its name is a digest of everything that decides its content. It is
used only if its content still has the digest that it records. If the cache cannot be used, images are kept in memory.
"""

import json
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from stitchgrid.cache import draft, lock, note_use, sync
from stitchgrid.datasets.images import ImagePool, Listing
from stitchgrid.records import digest

PIXELS, INDEX, META = "pixels.bin", "index.npz", "meta.json"
ARRAYS = ("offsets", "sizes", "labels", "places")  # arrays of an entry, named as in `ImagePool`
DAMAGED = (  # errors when a truncated or changed entry is read
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, OverflowError, MemoryError),
    *(RecursionError, BadZipFile, ZlibError),
)


class ImageCache:
    """The part of the cache that holds images."""

    def __init__(self, folder: Path):
        self._folder = folder / "images"

    def load(self, key: str) -> ImagePool | None:
        """Return an entry, memory-mapped; None if it is missing or damaged."""
        entry = self._folder / key
        try:
            meta = json.loads((entry / META).read_text())
            with np.load(entry / INDEX) as index:
                offsets, sizes, labels, places = (index[name] for name in ARRAYS)
            pixels = map_pixels(entry / PIXELS)
            channels = meta.get("channels", 3)
            if pixels.size != channels * int(sizes.prod(axis=1).sum()):
                return None
            pool = ImagePool(
                pixels=pixels,
                offsets=offsets,
                sizes=sizes,
                labels=labels,
                places=places,
                channels=channels,
                listing=_listing(meta["listing"]),
                num_bad=meta["num_bad"],
                remarks=tuple(meta["remarks"]),
                measured=tuple((low, high) for low, high in meta["measured"]),
            )
            found = pool.split(0).digest(len(labels))
            if len(places) != len(labels) or meta.pop("digest") != _digest(found, places, meta):
                return None
            note_use(entry)
            return replace(pool, digest=found)
        except DAMAGED:
            return None

    def draft(self) -> AbstractContextManager[Path]:
        """Return a block that yields a temporary folder beside the entries."""
        return draft(self._folder)

    def publish(self, folder: Path, key: str, pool: ImagePool) -> ImagePool:
        """Publish a draft, in which the pixels are written already, as an entry; return the loaded entry."""
        np.savez(folder / INDEX, **{name: getattr(pool, name) for name in ARRAYS})
        meta: dict[str, Any] = {"listing": asdict(pool.listing), "num_bad": pool.num_bad, "remarks": pool.remarks}
        meta["measured"] = pool.measured
        meta |= {} if pool.channels == 3 else {"channels": pool.channels}
        content = pool.split(0).digest(len(pool.labels))
        (folder / META).write_text(json.dumps({**meta, "digest": _digest(content, pool.places, meta)}))
        for name in (PIXELS, INDEX, META):
            sync(folder / name)
        shutil.rmtree(self._folder / key, ignore_errors=True)  # a damaged entry: a sound one would have been loaded
        with suppress(OSError):  # another process has published the same entry
            folder.replace(self._folder / key)
        return self.load(key) or pool

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Return a lock between the processes of this machine; hold it while images are decoded."""
        return lock(self._folder, name)


def _digest(content: str, places: NDArray[np.int64], meta: dict[str, Any]) -> str:
    """Return the digest of an entry: over its images, labels, sizes, places and metadata."""
    return digest(content, np.ascontiguousarray(places, dtype="<i8").tobytes(), json.dumps(meta, sort_keys=True))


def _listing(stored: dict[str, Any]) -> Listing:
    """Return a listing from JSON, with tuples instead of lists."""
    return Listing(
        num=stored["num"],
        class_names=tuple(stored["class_names"]),
        absent=tuple(stored["absent"]),
        left_out=tuple((kind, count) for kind, count in stored["left_out"]),
        is_numbered=stored["is_numbered"],
    )


def map_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file, memory-mapped."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, np.uint8)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
