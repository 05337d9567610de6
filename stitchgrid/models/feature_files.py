"""Activations that were computed elsewhere: arrays by layer, one row per image, and which row belongs to which image.

Shape suffixes: N images, R rows of a file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.array_files import ArrayFile, TakeRows, open_arrays
from stitchgrid.datasets.images import Origin, Split
from stitchgrid.errors import InputError
from stitchgrid.paths import is_file
from stitchgrid.printable import is_text, printable
from stitchgrid.records import Limits

RESERVED = ("ids", "labels")  # arrays that are no layers
SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")  # of a file that holds several arrays
ROWS = ("split", "drawn")  # orders of rows without ids
LONGEST_NAME = 255  # characters of the name of a layer
CHUNK = 4_096  # rows hashed at a time
LISTED = "`stitchgrid plan JOB --images FILE.csv` lists the images"
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """The arrays of one split, or of all splits together where their rows have ids."""

    file: ArrayFile
    prefix: str = ""  # of the names of its arrays

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the file's order where it has one."""
        names = [name.removeprefix(self.prefix) for name in self.file.names if name.startswith(self.prefix)]
        found = tuple(name for name in names if name not in RESERVED)
        if not found:
            raise InputError(f"{self.where} holds no arrays of layers; wanted one for each layer, named like it.")
        if odd := next((name for name in found if not is_text(name) or not 0 < len(name) <= LONGEST_NAME), None):
            raise InputError(
                f"{self.where}: {printable(odd)[:60]!r} is no name of a layer; wanted a text of 1 to {LONGEST_NAME} "
                "characters."
            )
        return found

    @property
    def where(self) -> str:
        """The file, for messages."""
        return f"{self.file.path}{f', {self.prefix}' if self.prefix else ''}"

    def header(self, layer: str) -> tuple[tuple[int, ...], str]:
        """Return shape and type of a layer's array."""
        return self.file.header(self.prefix + layer)

    def rows(self, layer: str) -> TakeRows:
        """Return a function that returns some rows of a layer's array, given as positions."""
        return self.file.rows(self.prefix + layer)

    @cached_property
    def num_rows(self) -> int:
        """Number of rows, the same in every layer."""
        counts = {layer: (self.header(layer)[0] or (0,))[0] for layer in self.layers}
        if not min(counts.values()):
            raise InputError(f"{self.where} holds no rows; every layer needs one row for each image.")
        if len(set(counts.values())) > 1:
            low, high = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
            raise InputError(
                f"{self.where}: {counts[low]} rows at {low!r} and {counts[high]} at {high!r}; every layer needs one "
                "row for each image, in the same order."
            )
        return next(iter(counts.values()))

    @cached_property
    def ids(self) -> tuple[str, ...] | tuple[int, ...] | None:
        """The image of each row, as a name or a position in the sorted split; None if the rows have no ids."""
        path = self.file.path
        beside = path / "ids.txt" if path.is_dir() else path.with_suffix(".ids.txt")
        found: tuple[str, ...] | tuple[int, ...]
        if self.prefix + "ids" in self.file.names:
            values = self.file.read(self.prefix + "ids").ravel()
            if values.dtype.kind not in "iuUS":
                raise InputError(f"{self.where}, ids: texts or whole numbers are wanted, got {values.dtype}.")
            try:
                if values.dtype.kind == "S":
                    values = np.char.decode(values, "utf-8")
                found = tuple(map(str, values)) if values.dtype.kind in "US" else tuple(values.tolist())
            except (ValueError, SystemError) as problem:  # bytes or numbers of which there are no characters
                raise InputError(f"{self.where}, ids: wanted texts in UTF-8 ({problem}).") from problem
            if odd := next((one for one in found if isinstance(one, str) and not is_text(one)), None):
                raise InputError(f"{self.where}, ids: {printable(odd)[:60]!r} is no text in UTF-8.")
        elif is_file(beside):
            found = self._listed(beside)
        else:
            return None
        if len(found) != self.num_rows:
            raise InputError(f"{self.where}: {len(found)} ids and {self.num_rows} rows; one id a row is needed.")
        return found

    def _listed(self, path: Path) -> tuple[str, ...]:
        """Return the lines of a text file."""
        limits = self.file.limits
        try:
            if path.stat().st_size > self.num_rows * (limits.text + 1) + 1:
                raise InputError(f"{path} is larger than {self.num_rows:,} ids would be; one id a line is wanted.")
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as problem:
            raise InputError(f"cannot read {path} as ids in UTF-8 ({type(problem).__name__}: {problem}).") from problem

    @cached_property
    def labels(self) -> Rows | None:
        """The class of each row, to check the order of rows; None where the file does not say it."""
        if self.prefix + "labels" not in self.file.names:
            return None
        values = self.file.read(self.prefix + "labels").ravel()
        return values.astype(np.int64) if values.dtype.kind in "iu" and len(values) == self.num_rows else None

    def digest(self) -> str:
        """Return 32 hex digits of the SHA-256 over names, types, shapes and bytes of all layers."""
        sha = hashlib.sha256()
        for layer in sorted(self.layers):
            (shape, _), take = self.header(layer), self.rows(layer)
            for start in range(0, shape[0], CHUNK):
                part = take(np.arange(start, min(start + CHUNK, shape[0])))
                dtype = part.dtype.newbyteorder("<")
                if not start:
                    sha.update(f"{layer}|{dtype.str}|{shape}|".encode())
                sha.update(np.ascontiguousarray(part, dtype=dtype).data)
        return sha.hexdigest()[:32]


def open_tables(word: Path, splits: Sequence[str], limits: Limits) -> tuple[dict[str, FeatureTable], bool]:
    """Return the tables of the splits that have one, and whether all splits share a table.

    `word` is a file or folder; {split} in it stands for the name of a split. Without {split}, a folder may hold a file
    or folder named like the split, and a file may hold arrays named SPLIT/LAYER.

    Raises:
        InputError: If there are no features, or none that can be read.
    """
    if "{split}" in str(word):
        paths = {split: Path(str(word).replace("{split}", split)) for split in splits}
        there = {split: path for split, path in paths.items() if path.exists()}
        if not there:
            raise InputError(f"there are no features {' or '.join(map(str, paths.values()))}.")
        return {split: FeatureTable(file=open_arrays(path, limits)) for split, path in there.items()}, False
    if not word.exists():
        raise InputError(f"there are no features {word}; relative paths start at the job file's folder.")
    if word.is_dir():
        named = {split: path for split in splits if (path := _of_split(word, split)) is not None}
        if named:
            return {split: FeatureTable(file=open_arrays(path, limits)) for split, path in named.items()}, False
    file = open_arrays(word, limits)
    apart = [split for split in splits if any(name.startswith(f"{split}/") for name in file.names)]
    if apart:
        return {split: FeatureTable(file=file, prefix=f"{split}/") for split in apart}, False
    return dict.fromkeys(splits, FeatureTable(file=file)), True


def _of_split(folder: Path, split: str) -> Path | None:
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in files if is_file(path)]
    return found[0] if found else folder / split if any((folder / split).glob("*.npy")) else None


def find_rows(table: FeatureTable, split: Split, origin: Origin, *, num_drawn: int, order: str | None) -> Rows:
    """Return the row of a table for each drawn image, (N,).

    Args:
        table: The arrays.
        split: The drawn images.
        origin: The split that they were drawn from.
        num_drawn: How many images of it are drawn for fitting and evaluation together.
        order: One of `ROWS`, where the job says it.

    Raises:
        InputError: If rows and images do not match, or it is not clear which row belongs to which image.
    """
    if table.ids is not None and order is None:
        return _by_ids(table, table.ids, split, origin)
    orders = {
        "split": (origin.num, split.places),
        "drawn": (num_drawn, origin.num_before + np.arange(split.num, dtype=np.int64)),
    }
    told = f"split {origin.split!r} lists {origin.num} images, of which {num_drawn} are drawn"
    fitting = {name: rows for name, (num, rows) in orders.items() if num == table.num_rows and order in (None, name)}
    if not fitting:
        raise InputError(
            f"{table.where} has {table.num_rows} rows, and {told}; give one row for each listed image, in sorted "
            f"order, or one for each drawn image, in drawn order, or name the images in an array `ids`; {LISTED} in "
            "both orders, and their ids."
        )
    if table.labels is not None and len(split.labels):
        labels = split.labels.numpy()
        matching = {name: rows for name, rows in fitting.items() if np.array_equal(table.labels[rows], labels)}
        if not matching:
            raise InputError(
                f"{table.where}: its `labels` are not those of the images, so its rows are in another order "
                f"({told}); name the images in an array `ids`: {LISTED} and their ids."
            )
        fitting = matching
    if len(fitting) > 1:
        raise InputError(
            f"{table.where} has {table.num_rows} rows, and {told}: it is not clear whether they are in sorted or in "
            'drawn order. Write args = { rows = "split" } or args = { rows = "drawn" }, or name the images in an '
            f"array `ids`; {LISTED} in both orders, and their ids."
        )
    return next(iter(fitting.values()))


def _by_ids(table: FeatureTable, ids: Sequence[str] | Sequence[int], split: Split, origin: Origin) -> Rows:
    listed: list[str | int] = list(ids)
    rows = {one: row for row, one in enumerate(listed)}
    if len(rows) < len(ids):
        twice = next(one for row, one in enumerate(listed) if rows[one] != row)
        raise InputError(f"{table.where}: id {twice!r} stands twice; every image needs one row.")
    names = origin.names()
    found = []
    for place in split.places.tolist():
        name = names[place] if len(names) else str(place)
        texts = (name, printable(name), name.removeprefix(f"{origin.split}/"))
        keys: tuple[str | int, ...] = (place,) if isinstance(ids[0], int) else texts
        row = next((rows[key] for key in keys if key in rows), None)
        if row is None:
            raise InputError(
                f"{table.where} has no row for image {name!r} (position {place} of split {origin.split!r}): none of "
                f"its {len(ids)} ids is that, such as {ids[0]!r}; {LISTED} and their ids."
            )
        found.append(row)
    return np.array(found, dtype=np.int64)
