"""Set damaged files of a store aside, so that what they held is computed again."""

from collections.abc import Iterable
from dataclasses import dataclass

from stitchgrid.errors import StoreError
from stitchgrid.store.check import Report
from stitchgrid.store.compact import compact
from stitchgrid.store.files import Files
from stitchgrid.store.layout import SET_ASIDE, SNAPSHOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of damaged files."""

    moved: tuple[str, ...]  # names below `set-aside/`
    stuck: tuple[str, ...]  # why a file could not be moved


def set_aside(files: Files, report: Report) -> Repair:
    """Move what is damaged to `set-aside/`, where no reader looks; where a snapshot lost a file, write the next one.

    Raises:
        StoreError: If the store cannot be written.
    """
    files.check_writable()
    names = list(dict.fromkeys(name for finding in report.damage for name in (finding.file, *finding.goes_with)))
    manifests = [name for name in names if name.rpartition("/")[0] == SNAPSHOTS]
    repair = _move_all(files, [name for name in names if name not in manifests])
    if any(name.startswith(f"{SNAPSHOTS}/") for name in names):
        compact(files)  # while a damaged manifest is there, every data file counts
    last = _move_all(files, manifests)
    return Repair(moved=repair.moved + last.moved, stuck=repair.stuck + last.stuck)


def _move_all(files: Files, names: Iterable[str]) -> Repair:
    moved: list[str] = []
    stuck: list[str] = []
    for name in names:
        try:
            if files.exists(name):
                moved.append(_move(files, name))
        except StoreError as problem:
            stuck.append(str(problem))
    return Repair(moved=tuple(moved), stuck=tuple(stuck))


def _move(files: Files, name: str) -> str:
    """Move one file; return its new name. What was set aside before under the name stays."""
    data = files.read(name)
    number, aside = 1, f"{SET_ASIDE}/{name}"
    while not files.write_once(aside, data) and files.read(aside) != data:
        number += 1
        aside = f"{SET_ASIDE}/{name}.{number}"
    files.delete(name)
    return aside
