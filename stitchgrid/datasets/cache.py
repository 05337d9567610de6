"""Decoded images on this machine's disk, so that a second look at a data set costs no decoding.

An entry is a folder that appears complete or not at all, named by what decides its content. A cache that cannot be
used only costs speed: the images are then kept in memory.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.images import Pool

if sys.platform != "win32":
    import fcntl

PIXELS, INDEX, META = "pixels.bin", "index.npz", "meta.json"


def default_cache() -> Path:
    """Return $STITCHGRID_CACHE, else `stitchgrid` in the user's cache folder."""
    if named := os.environ.get("STITCHGRID_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "stitchgrid" / "cache"
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', tempfile.gettempdir())}/.cache")
        / "stitchgrid"
    )


class ImageCache:
    """The part of the cache that holds images."""

    def __init__(self, folder: Path):
        self._folder = folder / "images"

    def load(self, key: str) -> Pool | None:
        """Return the entry, memory-mapped, or None if it is missing or damaged."""
        entry = self._folder / key
        try:
            meta = json.loads((entry / META).read_text())
            with np.load(entry / INDEX) as index:
                offsets, sizes, labels = index["offsets"], index["sizes"], index["labels"]
            pixels = map_pixels(entry / PIXELS)
            if pixels.size != 3 * int(sizes.prod(axis=1).sum()):
                return None
            return Pool(
                pixels=pixels,
                offsets=offsets,
                sizes=sizes,
                labels=labels,
                class_names=tuple(meta["class_names"]),
                num_listed=meta["num_listed"],
                num_bad=meta["num_bad"],
            )
        except (OSError, ValueError, KeyError):
            return None

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Give a folder to write an entry in; what is still there at the end is removed.

        Raises:
            OSError: If the cache cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="draft-", dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, draft: Path, key: str, pool: Pool) -> Pool:
        """Turn a draft whose pixels are written into the entry, and return it as it is loaded."""
        np.savez(draft / INDEX, offsets=pool.offsets, sizes=pool.sizes, labels=pool.labels)
        meta = {"class_names": pool.class_names, "num_listed": pool.num_listed, "num_bad": pool.num_bad}
        (draft / META).write_text(json.dumps(meta))
        for name in (PIXELS, INDEX, META):
            _sync(draft / name)
        shutil.rmtree(self._folder / key, ignore_errors=True)  # only ever a damaged one: a sound one was loaded
        with suppress(OSError):  # another process was first: its entry is the same
            draft.replace(self._folder / key)
        return self.load(key) or pool

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock among the processes of this machine; where there are none, work is done twice at worst."""
        if sys.platform == "win32":
            yield
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / f"{name}.lock").open("w")
        except OSError:
            yield
            return
        with file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def map_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file without reading them yet."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, np.uint8)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def _sync(path: Path) -> None:
    """Force a file to disk: after a power cut, a file of the right size might hold zeros."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
