"""Code of users' own that a job names: staged in one folder, so that it reaches workers which do not see the files.

The folder is a package that Ray puts where its workers import from. It holds what the sweep was planned with, so a file
that is changed, moved or deleted afterwards makes no difference to them.
"""

import json
import shutil
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from stitchgrid.errors import InputError
from stitchgrid.models.catalogue import LIBRARIES
from stitchgrid.paths import is_file
from stitchgrid.records import NetworkSpec, digest

PACKAGE = "stitchgrid_own_files"
MAX_BYTES = 20_000_000
_MANIFEST = "manifest.json"  # path of an own file -> its name in the package
_MODULES = "modules"  # folder of own packages, put in front of sys.path


@contextmanager
def staged(specs: Iterable[NetworkSpec]) -> Iterator[Path | None]:
    """Make the package of the own files and modules behind these networks for the time of a block, None without any.

    Raises:
        InputError: If a file is missing, or an own package is too large to be sent around.
    """
    words = {(spec.base, spec.architecture.rpartition(":")[0]) for spec in specs}
    files = sorted({Path(base, where) for base, where in words if where.endswith(".py")})
    named = {where for _, where in words if not where.endswith(".py") and where not in LIBRARIES}
    sources = {source for where in named if (source := _own_source(where)) is not None}
    if not files and not sources:
        yield None
        return
    with TemporaryDirectory(prefix="stitchgrid-own-") as folder:
        package = Path(folder, PACKAGE)
        modules = package / _MODULES
        modules.mkdir(parents=True)
        (package / "__init__.py").touch()
        manifest = {str(path): _copy_file(path, package) for path in files}
        (package / _MANIFEST).write_text(json.dumps(manifest))
        for source in sorted(sources):
            _copy_source(source, modules)
        yield package


def _copy_file(path: Path, package: Path) -> str:
    if not path.is_file():
        raise InputError(f"the file {path} has gone while the job was planned; launch it again.")
    content = path.read_bytes()
    name = f"own_{digest(content)}.py"
    (package / name).write_bytes(content)
    return name


def _copy_source(source: Path, modules: Path) -> None:
    """Copy a package's folder or a module's file, without what Python or version control put there."""
    if source.is_file():
        shutil.copyfile(source, modules / source.name)
        return
    files = [
        path
        for path in source.rglob("*")
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in _inside(path, source))
    ]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise InputError(
            f"the package {source} is sent to the workers, but its files have {size / 1e6:.0f} MB, more than the "
            f"{MAX_BYTES / 1e6:.0f} MB allowed; move data out of it, or install it on every node."
        )
    for path in files:
        copy = modules / source.name / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _inside(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def _own_source(where: str) -> Path | None:
    """Return the folder or file of the top-level package or module behind `where`, None where it is installed."""
    module = import_module(where)
    if module.__name__.partition(".")[0] == __name__.partition(".")[0] or not _is_own(module):
        return None
    top = sys.modules[module.__name__.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", [])]
    file = Path(str(module.__file__))
    return next((folder for folder in folders if file.is_relative_to(folder)), file)


def _is_own(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [sysconfig.get_path(name) for name in names] + site.getsitepackages() + [site.getusersitepackages()]
    return not any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in installed)


def as_planned(path: Path) -> Path:
    """Return the own file to run: this one where nothing was sent along or it is still the same, else the one sent."""
    package = sent()
    if package is None:
        return path
    manifest: dict[str, str] = json.loads((package / _MANIFEST).read_text())
    if str(path) not in manifest:
        return path
    copy = package / manifest[str(path)]
    return path if is_file(path) and path.read_bytes() == copy.read_bytes() else copy


@cache
def sent() -> Path | None:
    """Return the folder of the package that was sent to this process, None where none was.

    From the first call on, the own modules in it are found before those that the node has itself.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    package = Path(found.origin).parent
    sys.path.insert(0, str(package / _MODULES))
    return package
