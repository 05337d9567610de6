"""WebDataset: tar files in which the members of one sample share a key, such as 0001.jpg and 0001.cls or 0001.json."""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from stitchgrid.datasets.archives import tar_content, walking
from stitchgrid.datasets.image_files import IMAGE_SUFFIXES
from stitchgrid.datasets.sources import Position
from stitchgrid.datasets.tabular import TableRow, TableSource, find_files
from stitchgrid.errors import InputError, nearest
from stitchgrid.json_files import unique_keys
from stitchgrid.paths import is_file
from stitchgrid.printable import in_one_line, printable

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABELS = ("cls", "label", "txt", "json")  # members that may hold the label, in this order
FIELDS = ("label", "cls", "class", "class_id", "target", "y")  # of a .json
LABEL_BYTES = 1_000_000
RULE = (
    "a folder holds SPLIT.tar, SPLIT-000000.tar or SPLIT/*.tar, whose samples are an image, KEY.jpg, and KEY.cls or "
    'KEY.json; keys = { images = "jpg", labels = "cls" } under [data] names others, for a .json the field'
)

#: Of a sample: a rank (0 is preferred), suffixes of its members of this rank, and what the last of them stands for.
_Member = tuple[int, tuple[str, ...], Any]


class WebDatasetSource(TableSource):
    """Samples of tar files, which are read member by member and never extracted."""

    kind = "webdataset"

    def files(self) -> Sequence[Path]:
        """Return the tar files of the splits in use."""
        return sorted({path for paths in self._files.values() for path in paths})

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if is_file(self.root):
            if len(self.splits) > 1:
                raise InputError(f"{self.root} is one tar file, and the job names two splits; {RULE}.")
            return {split: [self.root] for split in self.splits}
        if not self.root.is_dir():
            raise InputError(f"no tar file or folder {self.root}; set `root` under [data] to where the images are.")
        found = {split: find_files(self.root, split, SUFFIXES) for split in self.splits}
        if missing := [split for split, paths in found.items() if not paths]:
            there = sorted({path.stem.split("-")[0] for path in self.root.glob("*.tar")})
            raise InputError(f"{self.root} has no tar of split {missing[0]!r}; {nearest(missing[0], there)}; {RULE}.")
        return found

    def rows(self, split: str) -> list[TableRow]:
        """Return the samples of a split that have an image."""
        found: list[TableRow] = []
        for number, path in enumerate(self._files[split]):
            found += self._rows_of(path, number)
            self.check_number(len(found))
        return found

    def _rows_of(self, path: Path, number: int) -> list[TableRow]:
        images: dict[str, _Member] = {}  # by key, with the place
        labels: dict[str, _Member] = {}  # by key, with the label
        with walking(path, self.limits) as (tar, members):
            for place, member in members:
                self.check_number(place + 1)
                key, _, suffix = _key(member.name)
                if not key:
                    continue
                if (rank := self._image_rank(suffix)) is not None:
                    _keep(images, key, rank, suffix, place)
                elif self.has_labels and member.isreg() and (rank := self._label_rank(suffix)) is not None:
                    label = self._read_label(path, tar, member, suffix)
                    if label is not None:
                        _keep(labels, key, rank, suffix, label)
        if not images:
            raise InputError(f"{path} holds no image; {RULE}.")
        if self.has_labels and (missing := sorted(images.keys() - labels.keys())):
            raise InputError(f"{path}: sample {printable(missing[0])!r} has no label; {RULE}.")
        _check_once(path, images)
        _check_once(path, {key: label for key, label in labels.items() if key in images})
        return [
            TableRow(name=key, label=labels[key][2] if self.has_labels else None, place=(number, place))
            for key, (_, _, place) in images.items()
        ]

    def _image_rank(self, suffix: str) -> int | None:
        """Return the rank of a member as the image: 0 of jpg, 1 of depth.jpg; None if it is no image."""
        if wanted := self.keys.get("images"):
            return 0 if suffix == wanted else None
        inner, _, last = suffix.rpartition(".")
        return int(bool(inner)) if f".{last}" in IMAGE_SUFFIXES else None

    def _label_rank(self, suffix: str) -> int | None:
        """Return the rank of a member as the place of the label (0 is preferred); None if it cannot hold the label."""
        wanted = self.keys.get("labels")
        if wanted:
            return 0 if suffix == wanted else 1 if suffix == "json" else None
        return LABELS.index(suffix) if suffix in LABELS else None

    def _read_label(self, path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str | int | None:
        where = f"{path}, {in_one_line(member.name)}"
        if member.size > LABEL_BYTES:
            raise InputError(f"{where}: a label of {member.size:,} bytes; it is a number or a text.")
        raw = tar_content(tar, member, self.limits)
        try:
            text = raw.decode("utf-8").strip() if isinstance(raw, bytes) else ""
            if suffix == "json":
                return self._kept(self._field(json.loads(text, object_pairs_hook=unique_keys)))
        except (UnicodeDecodeError, ValueError, RecursionError) as problem:
            raise InputError(f"{where} cannot be read as a label ({type(problem).__name__}: {problem}).") from problem
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else self._kept(text or None)

    def _kept(self, label: str | int | None) -> str | int | None:
        """Return a label; of a text that no class may have as its name, only so much that it is refused later."""
        return label[: self.limits.text + 1] if isinstance(label, str) else label

    def _field(self, told: object) -> str | int | None:
        fields = [self.keys["labels"]] if "labels" in self.keys else FIELDS
        values = [told[name] for name in fields if isinstance(told, dict) and name in told]
        return next((value for value in values if isinstance(value, int | str) and not isinstance(value, bool)), None)

    def contents(self, wanted: Sequence[tuple[Position, TableRow]]) -> Iterator[tuple[Position, TableRow, bytes | str]]:
        """Yield the images, tar by tar, each read once from its beginning."""
        by_file: dict[Path, dict[int, tuple[Position, TableRow]]] = {}
        for position, row in wanted:
            number, place = row.place
            by_file.setdefault(self._files[position[0]][number], {})[place] = position, row
        for path, places in sorted(by_file.items()):
            with walking(path, self.limits) as (tar, members):
                for place, member in members:
                    if place in places:
                        yield *places.pop(place), tar_content(tar, member, self.limits)
                    if not places:
                        break


def _keep(found: dict[str, _Member], key: str, rank: int, suffix: str, value: Any) -> None:
    """Keep the value of a sample's member of the lowest rank, and the suffixes of all members of this rank."""
    known = found.get(key)
    if known is None or rank < known[0]:
        found[key] = rank, (suffix,), value
    elif rank == known[0]:
        found[key] = rank, (*known[1], suffix), value


def _check_once(path: Path, found: Mapping[str, _Member]) -> None:
    """Refuse a sample in which two members could be meant, as where shards were joined whose keys are the same.

    Raises:
        InputError: With the sample and its members.
    """
    for key, (_, suffixes, _) in found.items():
        if len(suffixes) > 1:
            raise InputError(
                f"{path}: sample {printable(key)!r} has more than one member that could be meant "
                f"({in_one_line(' and '.join(suffixes))[:80]}); give each sample a key of its own, or name the member "
                f"by `keys`; {RULE}."
            )


def _key(name: str) -> tuple[str, str, str]:
    """Return the key of a member, a dot, and what follows: the key ends at the first dot of the file's own name.

    >>> _key("a.b/0001.seg.png")
    ('a.b/0001', '.', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return (f"{folder}{slash}{key}" if key else ""), dot, suffix.lower()
