"""Finds a job file by path or name and reads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stitchgrid.errors import JobFileError, nearest
from stitchgrid.jobfile.job import Job
from stitchgrid.jobfile.overrides import apply_overrides
from stitchgrid.jobfile.parse import read_job
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.toml_text import MAX_BYTES, parse_toml
from stitchgrid.paths import is_file, named_path
from stitchgrid.shipped_files import shipped_names


def load_job(path_or_name: str, overrides: Sequence[str] = ()) -> Job:
    """Return the job in a file, or the job of that name that ships with stitchgrid, after `--set` overrides.

    Relative paths in it start at the folder of the file, also in a shipped job.

    Raises:
        JobFileError: If there is no such file, it is not TOML, or anything in it is wrong; it lists every problem.
    """
    path = _find(path_or_name)
    table = _read(path)
    problems = Problems()
    apply_overrides(table, overrides, problems)
    job = read_job(table, path.parent, problems)
    if job is None or problems.found:
        num = len(problems.found)
        raise JobFileError(f"{path}: {num} problem{'s' * (num != 1)} in this job file", problems.found)
    return job


def _find(path_or_name: str) -> Path:
    path = named_path(path_or_name)
    if is_file(path):
        return path
    shipped = shipped_names("jobs", ".toml")
    if path_or_name in shipped:
        return shipped[path_or_name]
    folder = path.parent
    beside = [str(folder / other.name) for other in folder.glob("*.toml")] if folder.is_dir() else []
    raise JobFileError(
        f"no job file {path_or_name!r}, and no job of that name ships with stitchgrid; "
        f"{nearest(path_or_name, [*shipped, *beside])}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as problem:
        raise JobFileError(f"cannot read {path} as a UTF-8 text file: {problem}") from problem
    try:
        return parse_toml(text)
    except ValueError as problem:
        raise JobFileError(f"{path} is not valid TOML: {problem}") from problem
