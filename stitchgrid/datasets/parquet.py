"""Parquet files with a column of images, as on the Hugging Face hub."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stitchgrid.datasets.encoded import too_large
from stitchgrid.datasets.sources import Position
from stitchgrid.datasets.tabular import TableRow, TableSource, find_files
from stitchgrid.errors import InputError, nearest
from stitchgrid.limits import TooMuchError, check_growth
from stitchgrid.paths import LONGEST_PATH, is_file

WORDS = {
    "images": ("image", "img", "images", "picture", "pixels", "jpg", "png"),
    "labels": ("label", "labels", "fine_label", "class", "target", "category"),
    "split": ("split",),
}
HARMLESS_BYTES = 1_000_000_000  # of a group of rows, unpacked into memory
ROWS = 64  # images read at a time, or texts within a struct
FEW_ROWS = 4  # of images within a struct
HELD_BYTES = 256_000_000  # of texts that are read at a time
LISTED = 65_536  # rows whose labels are read at a time
RULE = (
    "a folder holds SPLIT.parquet, SPLIT-00000-of-00004.parquet or SPLIT/*.parquet. Columns of other names are named "
    'by keys = { images = "...", labels = "..." } under [data]'
)


class ParquetSource(TableSource):
    """Rows of Parquet files: a column of bytes, or of {bytes, path}, and one of labels."""

    kind = "parquet"

    @cached_property
    def _seen(self) -> dict[Any, Any]:
        """Return the labels and names that were read, so that equal ones share one object."""
        return {}

    def files(self) -> Sequence[Path]:
        """Return the files of the splits in use."""
        return sorted({path for paths in self._files.values() for path in paths})

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if is_file(self.root):
            return {split: [self.root] for split in self.splits}
        if not self.root.is_dir():
            raise InputError(f"no file or folder {self.root}; set `root` under [data] to where the images are.")
        found = {split: find_files(self.root, split, (".parquet",)) for split in self.splits}
        if missing := [split for split, paths in found.items() if not paths]:
            there = sorted({path.stem.split("-")[0] for path in self.root.glob("**/*.parquet")})
            raise InputError(
                f"{self.root} has no Parquet of split {missing[0]!r}; {nearest(missing[0], there)}; {RULE}."
            )
        return found

    def rows(self, split: str) -> list[TableRow]:
        """Return the images of a split; their bytes are not read."""
        found: list[TableRow] = []
        for number, path in enumerate(self._files[split]):
            found += self._rows_of(path, number, split)
            self.check_number(len(found))
        return found

    def _rows_of(self, path: Path, number: int, split: str) -> list[TableRow]:
        with _Opened(path) as file:
            self.check_number(file.metadata.num_rows)
            columns = self._columns(path, file.schema_arrow)
            if path == self.root and len(self.splits) > 1 and "split" not in columns:
                raise InputError(f"{path} does not say of which split its images are; {RULE}.")
            image = columns["images"]
            has_path = _is_struct(file.schema_arrow.field(image).type) and any(
                one.name == "path" and (pa.types.is_string(one.type) or pa.types.is_large_string(one.type))
                for one in file.schema_arrow.field(image).type
            )
            named = [columns[role] for role in ("labels", "split") if role in columns]
            leaves = [*named, *([f"{image}.path"] if has_path else [])]
        found: dict[str, list[Any]] = {name: [] for name in [*named, image]}
        with _Opened(path, dictionaries=named) as file:
            self._check_size(path, sum(_sizes(file.metadata, leaves)))
            num = max(1, min(ROWS, HELD_BYTES // max(1, *_sizes(file.metadata, leaves), 1))) if has_path else LISTED
            for batch in file.iter_batches(num, columns=leaves) if leaves else ():
                for name in batch.schema.names:
                    found[name] += self._values(path, name, batch.column(name))
            num_rows = file.metadata.num_rows
        names = found[image] if has_path else [None] * num_rows
        labels = found[columns["labels"]] if self.has_labels else [None] * num_rows
        splits = found[columns["split"]] if path == self.root and "split" in columns else None
        if self.has_labels and (odd := [label for label in labels if not isinstance(label, int | str)]):
            raise InputError(f"{path}: a label is a whole number or a text, got {odd[0]!r}.")
        return [
            TableRow(name=name or "", label=label, place=(number, row))
            for row, (name, label) in enumerate(zip(names, labels, strict=True))
            if splits is None or splits[row] == split
        ]

    def _values(self, path: Path, name: str, column: pa.Array) -> list[Any]:
        """Return labels or names; equal ones share one object, because many rows may have the same long text.

        Raises:
            InputError: If one is longer than the name of a class or a file may be.
        """
        if _is_struct(column.type):
            column = pc.struct_field(column, "path")
        known = column.dictionary if pa.types.is_dictionary(column.type) else column
        if _is_text(known.type):
            longest = pc.max(pc.binary_length(known)).as_py() or 0
            if longest > (most := max(LONGEST_PATH, 4 * self.limits.text)):  # UTF-8 takes four bytes at most
                raise InputError(f"{path}, {name}: a text of {longest:,} bytes, more than the {most:,} allowed.")
        values: list[Any] = known.to_pylist()
        if _is_text(known.type):
            values = [self._seen.setdefault(value, value) for value in values]
        if known is column:
            return values
        return [None if place is None else values[place] for place in column.indices.to_pylist()]

    def _columns(self, path: Path, schema: pa.Schema) -> dict[str, str]:
        found: dict[str, str] = {}
        for role, words in WORDS.items():
            if role in self.keys:
                if self.keys[role] not in schema.names:
                    raise InputError(
                        f"{path} has no column {self.keys[role]!r}, which `keys` names; "
                        f"{nearest(self.keys[role], schema.names)}."
                    )
                found[role] = self.keys[role]
            elif known := [word for word in words if word in schema.names]:
                found[role] = known[0]
        if "images" not in found and (some := [field.name for field in schema if _holds_bytes(field.type)]):
            found["images"] = some[0]
        needed = ["images", *(["labels"] if self.has_labels else [])]
        if missing := [role for role in needed if role not in found]:
            raise InputError(f"{path} has no column of {missing[0]}; it has {', '.join(schema.names)}; {RULE}.")
        if doubled := [name for name in found.values() if schema.names.count(name) > 1]:
            raise InputError(f"{path} has more than one column {doubled[0]!r}; give each a name of its own.")
        if nested := [name for role, name in found.items() if role != "images" and _is_nested(schema.field(name).type)]:
            raise InputError(
                f"{path}, {nested[0]}: a label or a split is a whole number or a text, "
                f"got {schema.field(nested[0]).type}."
            )
        if not _holds_bytes(schema.field(found["images"]).type):
            raise InputError(
                f"{path}, {found['images']}: images are bytes of files, or {{bytes, path}}, got "
                f"{schema.field(found['images']).type}; {RULE}."
            )
        if not self.has_labels:
            found.pop("labels", None)
        return found

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of a ClassLabel, which the hub keeps beside the schema."""
        found: dict[tuple[str, ...], Path] = {}
        for path in self.files():
            with _Opened(path) as file:
                names = _class_label(file.schema_arrow, self._columns(path, file.schema_arrow).get("labels", ""))
            if names is not None:
                found[names] = path
        if len(found) > 1:
            one, other = list(found.values())[:2]
            raise InputError(f"{one} and {other} name their classes differently; a label must mean the same in both.")
        return next(iter(found), None)

    def contents(self, wanted: Sequence[tuple[Position, TableRow]]) -> Iterator[tuple[Position, TableRow, bytes | str]]:
        """Yield the bytes of the images, file by file, each group of rows once."""
        by_file: dict[Path, dict[int, list[tuple[Position, TableRow]]]] = {}
        for position, row in wanted:
            number, at = row.place
            by_file.setdefault(self._files[position[0]][number], {}).setdefault(at, []).append((position, row))
        for path, by_row in sorted(by_file.items()):
            yield from self._contents_of(path, by_row)

    def _contents_of(
        self, path: Path, by_row: dict[int, list[tuple[Position, TableRow]]]
    ) -> Iterator[tuple[Position, TableRow, bytes | str]]:
        with _Opened(path) as file:
            image = self._columns(path, file.schema_arrow)["images"]
            is_struct = _is_struct(file.schema_arrow.field(image).type)
            column = f"{image}.bytes" if is_struct else image
        # Many rows may share one image, so dictionaries are kept; Arrow cannot keep them within a struct.
        num, dictionaries = (FEW_ROWS, []) if is_struct else (ROWS, [column])
        with _Opened(path, dictionaries=dictionaries) as file:
            first = 0
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if any(first <= row < first + size for row in by_row):
                    self._check_size(path, file.metadata.row_group(group).total_byte_size)
                    start = first
                    for batch in file.iter_batches(num, row_groups=[group], columns=[column]):
                        values = pc.struct_field(batch.column(0), "bytes") if is_struct else batch.column(0)
                        for row in sorted(by_row.keys() & set(range(start, start + len(values)))):
                            raw = self._raw(values[row - start].as_py())
                            yield from ((position, one, raw) for position, one in by_row[row])
                        start += len(values)
                first += size

    def _check_size(self, path: Path, num_bytes: int) -> None:
        try:
            check_growth(path, num_bytes, self.limits, harmless=HARMLESS_BYTES)
        except TooMuchError as problem:
            raise InputError(f"{problem}.") from problem

    def _raw(self, value: Any) -> bytes | str:
        if not isinstance(value, bytes):
            return "no bytes in the file: images that lie elsewhere are not looked for"
        return too_large(self.limits) if len(value) > self.limits.file_bytes else value


class _Opened:
    """A Parquet file within a block; errors of reading become an InputError."""

    def __init__(self, path: Path, dictionaries: Sequence[str] = ()):
        """Take the path; the columns `dictionaries` stay dictionary-encoded, so that each value is in memory once."""
        self._path, self._dictionaries = path, list(dictionaries)

    def __enter__(self) -> pq.ParquetFile:
        try:
            self._file = pq.ParquetFile(self._path, read_dictionary=self._dictionaries)
        except (pa.ArrowException, OSError) as problem:
            raise self._error(problem) from problem
        return self._file

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        self._file.close()
        if isinstance(problem, pa.ArrowException | OSError | UnicodeDecodeError):
            raise self._error(problem) from problem

    def _error(self, problem: BaseException) -> InputError:
        said = str(problem).splitlines()[0][:200] if str(problem) else ""
        return InputError(f"cannot read {self._path} as Parquet ({type(problem).__name__}: {said}).")


def _sizes(metadata: pq.FileMetaData, leaves: Sequence[str]) -> Iterator[int]:
    """Return how many bytes these columns take in each group of rows, unpacked."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in leaves:
                yield column.total_uncompressed_size


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or _holds_bytes(kind))


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if _is_struct(kind):
        return any(one.name == "bytes" and _holds_bytes(one.type) for one in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_label(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the names in the hub's own note of a ClassLabel; None where there is no such note."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        names = told["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None
