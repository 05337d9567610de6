"""Set damaged files of a store aside, so that what they held is computed again."""

from dataclasses import dataclass

from stitchgrid.errors import StoreError
from stitchgrid.store.check import Report
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.layout import SET_ASIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of damaged files."""

    moved: tuple[str, ...]  # names below `set-aside/`
    stuck: tuple[str, ...]  # why a file could not be moved


def set_aside(files: LocalFiles, report: Report) -> Repair:
    """Move what is damaged to `set-aside/`, where no reader looks.

    Raises:
        StoreError: If the store cannot be written.
    """
    files.check_writable()
    moved: list[str] = []
    stuck: list[str] = []
    names = dict.fromkeys(name for finding in report.damage for name in (finding.file, *finding.goes_with))
    for name in names:
        try:
            if files.exists(name):
                moved.append(_move(files, name))
        except StoreError as problem:
            stuck.append(str(problem))
    return Repair(moved=tuple(moved), stuck=tuple(stuck))


def _move(files: LocalFiles, name: str) -> str:
    """Move one file; return its new name. What was set aside before under the name stays."""
    data = files.read(name)
    number, aside = 1, f"{SET_ASIDE}/{name}"
    while not files.write_once(aside, data) and files.read(aside) != data:
        number += 1
        aside = f"{SET_ASIDE}/{name}.{number}"
    files.delete(name)
    return aside
