"""Finds the jobs and queries that ship with stitchgrid: in the wheel, or beside the package in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped_folder(kind: str) -> Path:
    """Return the folder of shipped `jobs` or `queries`."""
    inside = PACKAGE / "shipped" / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def shipped_names(kind: str, suffix: str) -> dict[str, Path]:
    """Return name -> path of every shipped file, sorted by name.

    >>> "quickstart" in shipped_names("jobs", ".toml")
    True
    """
    return {path.stem: path for path in sorted(shipped_folder(kind).glob(f"*{suffix}"))}
