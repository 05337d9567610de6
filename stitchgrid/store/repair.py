"""Set damaged files of a store aside, so that what they held is computed again; take back what no snapshot lists."""

from collections.abc import Iterable
from dataclasses import dataclass

from stitchgrid.errors import StoreError
from stitchgrid.store.check import Report
from stitchgrid.store.compact import compact
from stitchgrid.store.files import Files, LocalFiles, read_or_problem
from stitchgrid.store.layout import HIGHEST, SET_ASIDE, SNAPSHOTS, ManifestName
from stitchgrid.store.limits import GB
from stitchgrid.store.snapshots import number_of
from stitchgrid.store.unlisted import take_back

LONGEST_COPY = 1 * GB  # a longer file is renamed, where files have names


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of damaged files."""

    moved: tuple[str, ...]  # names below `set-aside/`
    stuck: tuple[str, ...]  # why a file could not be moved
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
    return Repair(moved=repair.moved + last.moved, stuck=repair.stuck + last.stuck, taken_back=sound)


def _is_manifest(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    return folder == SNAPSHOTS and ManifestName.parse(last) is not None


def _move_all(files: Files, names: Iterable[str]) -> Repair:
    moved: list[str] = []
    stuck: list[str] = []
    for name in names:
        try:
            if aside := _move(files, name):
                moved.append(aside)
        except StoreError as problem:
            stuck.append(str(problem))
    return Repair(moved=tuple(moved), stuck=tuple(stuck))


def _move(files: Files, name: str) -> str | None:
    """Move one file; return its new name, None if there is none. What was set aside before under the name stays.

    Of a link the link is moved, and never what it leads to.
    """
    if isinstance(files, LocalFiles) and (files.is_strange(name) or files.size(name) > LONGEST_COPY):
        return _rename(files, name)
    if not files.exists(name):
        return None
    data = files.read(name)
    number, aside = 1, f"{SET_ASIDE}/{name}"
    while not _is_written(files, aside, data):
        number += 1
        aside = f"{SET_ASIDE}/{name}.{number}"
    files.delete(name)
    return aside


def _is_written(files: Files, aside: str, data: bytes) -> bool:
    """Write what is set aside, or find it there already; False where something else, be it a pipe, has the name."""
    if isinstance(files, LocalFiles) and files.is_strange(aside):
        return False
    return files.write_once(aside, data) or read_or_problem(files, aside) == data


def _rename(files: LocalFiles, name: str) -> str:
    if name == SET_ASIDE:  # a link in the place of the folder for what is set aside
        files.delete(name)
        return f"nothing: {name} was a link, and is no more"
    number, aside = 1, f"{SET_ASIDE}/{name}"
    while not files.move(name, aside):
        number += 1
        aside = f"{SET_ASIDE}/{name}.{number}"
    return aside
