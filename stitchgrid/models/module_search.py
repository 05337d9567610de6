"""Where a module would be imported from: found without running or importing anything."""

import importlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from pkgutil import get_importer

from stitchgrid.models.registry import LIBRARIES

#: Packages that stitchgrid itself runs on are never a user's own code, wherever they are installed.
NEVER_OWN = {
    *sys.stdlib_module_names,
    *sys.builtin_module_names,
    *LIBRARIES,
    *("__main__", "numpy", "scipy", "sklearn", "safetensors", "PIL", "pyarrow", "duckdb", "ray", "pydantic", "torch"),
}
_STITCHGRID = Path(__file__).parents[1]
_OTHER_FINDERS = (BuiltinImporter, FrozenImporter, PathFinder)


class Search:
    """The import system's search, with folders in front of sys.path; remembers what it found."""

    def __init__(self, folders: Sequence[Path] = (), *, not_in_folders: str = ""):
        importlib.invalidate_caches()  # of folders: a new file may leave its folder's time stamp the same
        self.folders = tuple(map(str, folders))
        self.not_in_folders = not_in_folders  # a top-level name that is looked for in sys.path alone
        self._found: dict[str, ModuleSpec | None] = {}

    def find(self, name: str) -> ModuleSpec | None:
        """Return the spec of a module by its absolute name, None where there is none."""
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def is_own(self, name: str) -> bool:
        """Return whether there is such a module, and it is a user's own."""
        top = name.partition(".")[0]
        found = None if top in NEVER_OWN else self.find(name)
        return found is not None and not is_installed(found)

    def _look(self, name: str) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if parent:
            above = self.find(parent)
            inside = None if above is None else above.submodule_search_locations
            return None if inside is None else on_path(name, inside)
        if name == "__main__":
            return None
        folders = () if name in NEVER_OWN or name == self.not_in_folders else self.folders
        found = on_path(name, [*folders, *sys.path])
        if found is None or found.loader is None:
            return _by_other_finders(name) or found
        return found


def on_path(name: str, path: Iterable[str]) -> ModuleSpec | None:
    """Return the spec of a module in these folders, or of a namespace package where they hold only parts of one."""
    parts: list[str] = []
    for entry in path:
        finder = get_importer(entry or str(Path.cwd()))
        found = None if finder is None else finder.find_spec(name)
        if found is None:
            continue
        if found.loader is not None:
            return found
        parts += found.submodule_search_locations or []
    if not parts:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = parts
    return namespace


def _by_other_finders(name: str) -> ModuleSpec | None:
    """Return what finders other than Python's own know of a name, such as those of editable installs."""
    for finder in sys.meta_path:
        if finder in _OTHER_FINDERS or getattr(finder, "is_stitchgrids", False):
            continue
        look = getattr(finder, "find_spec", None)
        found: ModuleSpec | None = look(name, None) if look is not None else None
        if found is not None:
            return found
    return None


def is_installed(spec: ModuleSpec) -> bool:
    """Return whether a module is part of Python or of what is installed beside it."""
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    return not places or all(_is_installed(place) for place in places)


def is_own_file(file: str) -> bool:
    """Return whether a source file is a user's own: neither Python's, nor installed, nor stitchgrid's."""
    return Path(file).is_absolute() and not _is_installed(file) and not Path(file).is_relative_to(_STITCHGRID)


@cache
def _is_installed(place: str) -> bool:
    path = Path(place).resolve()
    is_packages = any(part in ("site-packages", "dist-packages") for part in path.parts)
    return is_packages or any(path.is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names] + site.getsitepackages() + [site.getusersitepackages()]
    return tuple(Path(folder).resolve() for folder in folders)
