"""Users' own code as it was sent to this process with a sweep; nothing where the process sees the files itself."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from stitchgrid.paths import is_file

PACKAGE = "stitchgrid_own_files"
MANIFEST = "manifest.json"  # folder that is searched for own code -> its copy in the package
MODULES = "modules"  # folder of modules and packages of sys.path


@cache
def sent() -> Path | None:
    """Return the folder of the package that was sent to this process, None where none was.

    From the first call on, the own modules in it are found before those that the node has itself.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    package = Path(found.origin).parent
    sys.path.insert(0, str(package / MODULES))
    return package


def sent_copy(folder: Path) -> Path | None:
    """Return the copy of a folder's own code that was sent along, None where none was."""
    package = sent()
    if package is None:
        return None
    manifest: dict[str, str] = json.loads((package / MANIFEST).read_text())
    return package / manifest[str(folder)] if str(folder) in manifest else None


def as_planned(path: Path) -> Path:
    """Return the own file to run: this one where nothing was sent along or it is still the same, else the one sent."""
    folder = sent_copy(path.parent)
    copy = None if folder is None else folder / path.name
    if copy is None or not is_file(copy):
        return path
    return path if is_file(path) and path.read_bytes() == copy.read_bytes() else copy


def original_of(path: Path, copies: Mapping[Path, Path]) -> Path | None:
    """Return what a path was copied from, None where it is no copy; `copies` has the original of each copied folder."""
    return next((home / path.relative_to(copy) for copy, home in copies.items() if path.is_relative_to(copy)), None)


def where_it_lay(file: Path, copies: Mapping[Path, Path]) -> Path:
    """Return the original of a file that was sent along if it is still the same, else the file itself."""
    original = original_of(file, copies)
    return original if original and is_file(original) and original.read_bytes() == file.read_bytes() else file
