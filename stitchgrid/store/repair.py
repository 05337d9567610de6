"""Set damaged files of a store aside, so that what they held is computed again; take back what no snapshot lists."""

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

LONGEST_NAME = 200  # bytes of a name of what is set aside, to which a number and a writer's own come
LONGEST_COPY = 1 * GB  # a longer file is renamed, where files have names


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of damaged files."""

    moved: tuple[str, ...]  # names below `set-aside/`
    stuck: tuple[str, ...]  # why a file could not be moved
    blocked: tuple[str, ...] = ()  # why a folder for what is set aside could not have its name
    taken_back: tuple[str, ...] = ()  # sound files that readers did not know of, whose rows count now


def set_aside(files: Files, report: Report) -> Repair:
    """Move what is damaged to `set-aside/`, where no reader looks; where a snapshot lost a file, write the next one.

    What is sound but listed by no snapshot becomes part of the next one.

    Raises:
        StoreError: If the store cannot be written.
    """
    files.check_writable()
    names = list(
        dict.fromkeys(name for one in report.damage if not one.is_sound for name in (one.file, *one.goes_with))
    )
    sound = tuple(one.file for one in report.findings if one.is_sound)
    names.sort(key=lambda name: name != SET_ASIDE)  # if that is a link, nothing can be moved before it is gone
    listed = {f"{SNAPSHOTS}/{name}" for name in files.names(SNAPSHOTS)}  # without folders, which are in the way
    manifests = [name for name in names if _is_manifest(name) and name in listed]
    repair = _move_all(files, [name for name in names if name not in manifests])
    is_last = any(number_of(name.rpartition("/")[2]) == HIGHEST for name in manifests)  # which none can follow
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
    """Move one file; return its new name, None if there is none. What was set aside before under the name stays.

    What is in the place of a folder that this takes is noted in `blocked`, and another folder made.

    Of a link the link is moved, and never what it leads to.
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
    """Return whether something that is no folder has the name of one, noted in `blocked`."""
    kind = files.kind(folder) if isinstance(files, LocalFiles) else None
    if kind in (None, stat.S_IFDIR):
        return False
    blocked.append(f"{folder}: {_called(kind)} is in the place of a folder")
    return True


def _called(kind: int | None) -> str:
    """Return what people call something of one of `stat`'s kinds."""
    return "a link" if kind == stat.S_IFLNK else below.KINDS.get(kind or 0, "a file")


def _is_written(files: Files, aside: str, data: bytes) -> bool:
    """Write what is set aside, or find it there already; False where something else, be it a pipe, has the name."""
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
    return f"nothing: {name} was {_called(kind)}, and is no more"
