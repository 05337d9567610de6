"""Lists of paths and labels: .csv and .tsv with or without a header, .txt with a path and a label on each line."""

import csv
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from stitchgrid.datasets.encoded import NO_FILE
from stitchgrid.datasets.folder import content_of, stamp_of
from stitchgrid.datasets.image_files import is_image
from stitchgrid.datasets.sources import Position
from stitchgrid.datasets.tabular import TableRow, TableSource, find_files
from stitchgrid.errors import InputError, nearest
from stitchgrid.limits import raise_by
from stitchgrid.paths import is_file
from stitchgrid.printable import printable
from stitchgrid.records import digest

SUFFIXES = (".csv", ".tsv", ".txt", ".lst")
WORDS = {
    "images": ("path", "image", "images", "file", "filename", "file_name", "image_path", "filepath", "img", "name"),
    "labels": ("label", "labels", "class", "target", "class_name", "category", "y", "class_id", "label_id"),
    "split": ("split", "set", "subset", "partition"),
}
LONGEST_LINE = 65_536  # characters
MOST_COLUMNS = 1_000
_EMPTY: list[str] = []  # the cells of an empty line
RULE = (
    "a folder holds SPLIT.csv, .tsv or .txt; a file has a column `split`, or is the only split of the job. Columns of "
    'other names are named by keys = { images = "...", labels = "...", split = "..." } under [data]'
)


class ListSource(TableSource):
    """Image files that a list names; their paths lie below the folder of the list, or below `folder`."""

    kind = "list"

    def __init__(self, root: Path, splits: Sequence[str], *, folder: Path | None = None, **how: Any):
        super().__init__(root, splits, **how)
        self._folder = folder

    def files(self) -> Sequence[Path]:
        """Return the lists."""
        return sorted({path for paths in self._files.values() for path in paths})

    def signature(self) -> str:
        """Return a digest over path and stamp of the lists, and of all images that they name."""
        lines = []
        for split in self.splits:
            for row in self._rows[split]:
                try:
                    lines.append(f"{row.place}\0{stamp_of(Path(row.place).stat())}")
                except (OSError, TypeError):  # found unreadable when it is drawn
                    lines.append(f"{row.name}\0unreadable")
        return digest(super().signature() or "", str(self._folder), *lines)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if is_file(self.root):
            return {split: [self.root] for split in self.splits}
        if not self.root.is_dir():
            raise InputError(f"no list or folder {self.root}; set `root` under [data] to where it is.")
        found = {split: find_files(self.root, split, SUFFIXES) for split in self.splits}
        if missing := [split for split, paths in found.items() if not paths]:
            there = sorted(path.stem for path in self.root.iterdir() if path.suffix in SUFFIXES)
            raise InputError(f"{self.root} has no list of split {missing[0]!r}; {nearest(missing[0], there)}; {RULE}.")
        return found

    def rows(self, split: str) -> list[TableRow]:
        """Return the images that the lists of a split name."""
        return [row for path in self._files[split] for row in self._rows_of(path, split)]

    def _rows_of(self, path: Path, split: str) -> list[TableRow]:
        table = self._table(path)
        head, body = (table[0], table[1:]) if not self._is_headless(table) else (None, table)
        if head is None:
            at = {"images": 0, "labels": 1, "split": 2}
            width = max(map(len, table), default=0)
            columns = {role: place for role, place in at.items() if place < width}
        else:
            columns = self._columns(path, [cell.strip() for cell in head])
        needed = ["images", *(["labels"] if self.has_labels else [])]
        if missing := [role for role in needed if role not in columns]:
            held = f"columns {', '.join(map(printable, head))}" if head else "no second column"
            raise InputError(f"{path} has no column of {missing[0]}: {held}; {RULE}.")
        if path == self.root and len(self.splits) > 1 and "split" not in columns:
            raise InputError(f"{path} does not say of which split its images are; {RULE}.")
        numbered = enumerate(body, start=1 if head is None else 2)
        wanted = ((number, line) for number, line in numbered if any(cell.strip() for cell in line))
        return [
            self._row(path, number, line, columns)
            for number, line in wanted
            if path != self.root or "split" not in columns or _cell(path, number, line, columns["split"]) == split
        ]

    def _row(self, path: Path, number: int, line: Sequence[str], columns: dict[str, int]) -> TableRow:
        name = _cell(path, number, line, columns["images"])
        label: str | int | None = None
        if self.has_labels:
            text = _cell(path, number, line, columns["labels"])
            if not text:
                raise InputError(f"{path}, line {number}: {printable(name)!r} has no label.")
            label = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
        return TableRow(name=name, label=label, place=self._place(path, number, name))

    def _place(self, path: Path, number: int, name: str) -> str:
        """Return the path of a file; refuse a path outside of the folder to which paths are relative."""
        folder = str((self._folder or path.parent).absolute())
        place = os.path.normpath(Path(folder, name))  # by its words: links below the folder are followed, as elsewhere
        if not name or "\0" in name or os.path.commonpath([folder, place]) != folder:
            raise InputError(
                f"{path}, line {number}: {printable(name)!r} lies outside of {folder}; paths stay below the folder of "
                "the list, or below `folder` under [data]."
            )
        return place

    def _columns(self, path: Path, head: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        small = [cell.lower() for cell in head]
        for role, words in WORDS.items():
            if role in self.keys:
                if self.keys[role] not in head:
                    near = nearest(self.keys[role], head)
                    raise InputError(f"{path} has no column {self.keys[role]!r}, which `keys` names; {near}.")
                found[role] = head.index(self.keys[role])
            elif known := [word for word in words if word in small]:
                found[role] = small.index(known[0])
        return found

    def _is_headless(self, table: Sequence[Sequence[str]]) -> bool:
        """Return whether the first line is not a header: it names an image."""
        if not table or not table[0]:
            return True
        return is_image(table[0][0].strip().rpartition("/")[2]) and not set(self.keys.values()) & set(table[0])

    def _table(self, path: Path) -> list[list[str]]:
        """Return the cells of a list, line by line; an empty line stays, so that lines have their numbers."""
        limit = self.limits.members * (self.limits.text + 1)
        if path.stat().st_size > limit:
            raise InputError(f"{path} is larger than a list of {self.limits.members:,} images; {raise_by('members')}.")
        lines: list[list[str]] = []
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for cells in self._cells(path, file):
                    lines.append(cells)
                    self.check_number(len(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as problem:
            raise InputError(
                f"cannot read {path} as a list in UTF-8 ({type(problem).__name__}: {problem})."
            ) from problem
        return lines

    def _cells(self, path: Path, file: TextIO) -> Iterator[list[str]]:
        """Yield the cells of each line of a file; many empty ones share an object."""
        lines = self._lines(path, file)
        suffix = path.suffix.lower()
        if suffix in (".txt", ".lst"):
            yield from (_words(line) for line in lines)
            return
        for number, cells in enumerate(csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)):
            if len(cells) > MOST_COLUMNS:
                raise InputError(f"{path}, line {number + 1}: {len(cells)} columns, and {MOST_COLUMNS:,} are allowed.")
            yield cells or _EMPTY

    def _lines(self, path: Path, file: TextIO) -> Iterator[str]:
        """Yield the lines of a file, none of which is read if it is far longer than a path and some columns are."""
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}, line {number}: more than {LONGEST_LINE:,} characters; {RULE}.")
            yield line

    def contents(self, wanted: Sequence[tuple[Position, TableRow]]) -> Iterator[tuple[Position, TableRow, bytes | str]]:
        """Yield the content of the files, sorted by path."""
        for position, row in sorted(wanted, key=lambda item: str(item[1].place)):
            try:
                yield position, row, content_of(Path(row.place), self.limits)
            except OSError:
                yield position, row, NO_FILE


def _words(line: str) -> list[str]:
    """Return path and label of a line, separated by a tab, a comma or the last white space; the label may be missing.

    >>> _words("a b/1.png 3"), _words("a b/1.png"), _words(" ")
    (['a b/1.png', '3'], ['a b/1.png'], [])
    """
    line = line.strip()
    if not line:
        return _EMPTY
    for mark in ("\t", ",", None):
        path, *label = line.rsplit(mark, 1) if mark is None or mark in line else [line]
        if label and not is_image(label[0]):
            return [path.strip(), label[0].strip()]
    return [line]


def _cell(path: Path, number: int, line: Sequence[str], at: int) -> str:
    if at >= len(line):
        raise InputError(f"{path}, line {number}: {len(line)} columns, and column {at + 1} is needed.")
    return line[at].strip()
