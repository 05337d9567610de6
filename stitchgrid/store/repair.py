"""Set damaged files of a store aside, so that their content is computed again; recover files that no snapshot lists."""

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

from stitchgrid.errors import StoreError
from stitchgrid.store import folder as below
from stitchgrid.store.check import Report
from stitchgrid.store.compact import compact
from stitchgrid.store.files import Files, LocalFiles, read_or_problem
from stitchgrid.store.layout import HIGHEST, SET_ASIDE, SNAPSHOTS, ManifestName
from stitchgrid.store.limits import GB
from stitchgrid.store.snapshots import number_of
from stitchgrid.store.unlisted_files import take_back

LONGEST_NAME = 200  # bytes of the name of a file that is set aside; a number and a writer's suffix may follow
LONGEST_COPY = 1 * GB  # a longer file is renamed instead of copied, if the store is a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What a repair did with damaged files."""

    moved: tuple[str, ...]  # names below `set-aside/`
    stuck: tuple[str, ...]  # why a file could not be moved
    blocked: tuple[str, ...] = ()  # why a folder below `set-aside/` could not have its usual name
    taken_back: tuple[str, ...] = ()  # sound files that no snapshot listed, whose rows count now


def set_aside(files: Files, report: Report) -> Repair:
    """Move damaged files to `set-aside/`, which no reader reads; if a snapshot lost a file, write the next snapshot.

    Sound files that no snapshot lists become part of the next one.

    Raises:
        StoreError: If the store cannot be written.
    """
    files.check_writable()
    names = list(
        dict.fromkeys(name for one in report.damage if not one.is_sound for name in (one.file, *one.goes_with))
    )
    sound = tuple(one.file for one in report.findings if one.is_sound)
    names.sort(key=lambda name: name != SET_ASIDE)  # if that is a link, nothing can be moved before it is gone
    listed = {f"{SNAPSHOTS}/{name}" for name in files.names(SNAPSHOTS)}  # files: a folder may have a manifest's name
    manifests = [name for name in names if _is_manifest(name) and name in listed]
    repair = _move_all(files, [name for name in names if name not in manifests])
    is_last = any(number_of(name.rpartition("/")[2]) == HIGHEST for name in manifests)  # which no snapshot can follow
    last = _move_all(files, manifests if is_last else ())
    if sound:
        take_back(files)
    elif any(name.startswith(f"{SNAPSHOTS}/") for name in names):
        compact(files)  # while a damaged manifest is there, every data file counts
    last = last if is_last else _move_all(files, manifests)
    return Repair(
        moved=repair.moved + last.moved,
        stuck=repair.stuck + last.stuck,
        blocked=tuple(dict.fromkeys(repair.blocked + last.blocked)),
        taken_back=sound,
    )


def _is_manifest(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    return folder == SNAPSHOTS and ManifestName.parse(last) is not None


def _move_all(files: Files, names: Iterable[str]) -> Repair:
    moved: list[str] = []
    stuck: list[str] = []
    blocked: list[str] = []
    for name in names:
        try:
            if aside := _move(files, name, blocked):
                moved.append(aside)
        except StoreError as problem:
            stuck.append(str(problem))
    return Repair(moved=tuple(moved), stuck=tuple(stuck), blocked=tuple(blocked))


def _move(files: Files, name: str, blocked: list[str]) -> str | None:
    """Move one file; return its new name, None if there is no such file. Files that were set aside before stay.

    An entry in the place of a folder that this needs is noted in `blocked`, and a folder of another name is made.

    If the file is a link, the link itself is moved, never its target.
    """
    if isinstance(files, LocalFiles) and (
        name == SET_ASIDE or files.is_strange(name) or files.size(name) > LONGEST_COPY
    ):
        return _rename(files, name, blocked)
    if not files.exists(name):
        return None
    data = files.read(name)
    aside = next(one for one in _names(files, name, blocked) if _is_written(files, one, data))
    files.delete(name)
    return aside


def _names(files: Files, name: str, blocked: list[str]) -> Iterator[str]:
    """Yield names for a file that is set aside, until one of them is free."""
    *folders, last = name.split("/")
    where = SET_ASIDE
    for folder in folders:
        numbered = (_with_number(f"{where}/{folder}", number) for number in count(1))
        where = next(one for one in numbered if not _blocks(files, one, blocked))
    while len(last.encode()) > LONGEST_NAME:
        last = last[:-1]
    yield from (_with_number(f"{where}/{last}", number) for number in count(1))


def _with_number(name: str, number: int) -> str:
    return name if number == 1 else f"{name}.{number}"


def _blocks(files: Files, folder: str, blocked: list[str]) -> bool:
    """Return whether an entry that is no folder has this name, and note it in `blocked`."""
    kind = files.kind(folder) if isinstance(files, LocalFiles) else None
    if kind in (None, stat.S_IFDIR):
        return False
    blocked.append(f"{folder}: {_called(kind)} is in the place of a folder")
    return True


def _called(kind: int | None) -> str:
    """Return a name for one of `stat`'s kinds of entries."""
    return "a link" if kind == stat.S_IFLNK else below.KINDS.get(kind or 0, "a file")


def _is_written(files: Files, aside: str, data: bytes) -> bool:
    """Write a file that is set aside, or find it there already; False if another entry, even a pipe, has the name."""
    if isinstance(files, LocalFiles) and files.is_strange(aside):
        return False
    return files.write_once(aside, data) or read_or_problem(files, aside) == data


def _rename(files: LocalFiles, name: str, blocked: list[str]) -> str:
    if name != SET_ASIDE:
        return next(one for one in _names(files, name, blocked) if files.move(name, one))
    kind = files.kind(name)  # in the place of the folder for what is set aside
    if kind == stat.S_IFREG:
        return next(one for one in map(partial(_with_number, name), count(2)) if files.move(name, one))
    files.delete(name)
    return f"nothing: {name} was {_called(kind)}, and was deleted"
