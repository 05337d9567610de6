"""All of a user's own code behind a network: the file or module that a job names, and the own modules it imports.

It is found without running any of it, so that it can be compared with the code of a sweep's plan before it runs. An
import that the syntax does not show, such as `import_module` of a computed name, is not part of it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path

from stitchgrid.errors import InputError
from stitchgrid.models.imports import STAR, deepest_level, exported, imports_of, is_empty
from stitchgrid.models.module_search import NEVER_OWN, Search, is_installed, on_path
from stitchgrid.models.shipped_code import as_planned, original_of, sent, sent_copy, where_it_lay
from stitchgrid.paths import is_file
from stitchgrid.records import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module as it would be imported now."""

    name: str
    file: Path | None  # None: a namespace package
    content: bytes = b""
    folders: tuple[str, ...] | None = None  # of a package: where its submodules are

    @property
    def is_source(self) -> bool:
        """Whether it is Python source; else it is compiled, or a namespace package."""
        return self.file is not None and self.file.suffix == ".py"

    @property
    def package(self) -> str:
        """Its `__package__`."""
        return self.name if self.folders is not None else self.name.rpartition(".")[0]

    @property
    def counts(self) -> bool:
        """Whether its content can make a difference: a package's empty `__init__` makes none."""
        return self.file is not None and not (self.folders is not None and self.is_source and is_empty(self.content))


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code behind a network."""

    function: str
    entry: Module
    is_own: bool  # whether the entry is the user's; an installed one is identified by its own file alone
    modules: dict[str, Module]  # users' own, by name
    needs: dict[str, frozenset[str]]  # own module -> own modules that it imports, and the packages it is in
    libraries: frozenset[str]  # top-level names of the other packages it imports
    folders: tuple[Path, ...] = ()  # searched before sys.path: those of a file, and of its job
    #: A top-level name that the file shares with an installed package: looked for in sys.path alone.
    not_beside: str = ""

    @cached_property
    def digest(self) -> str:
        """Digest of function, entry and the other modules that count, where there are any."""
        others = sorted((name, one.content) for name, one in self._counted.items() if name != self.entry.name)
        return digest(self.function, self.entry.content, *(part for pair in others for part in pair))

    @property
    def entry_digest(self) -> str:
        """The digest by the rule of version 0.1.0, which did not look at imports."""
        return digest(self.function, self.entry.content)

    @property
    def files(self) -> dict[str, str]:
        """Digest of each module that counts, by its name; the entry of a file under the name of the file."""
        found = {name: digest(one.content) for name, one in self._counted.items() if name != self.entry.name}
        return {"the file itself" if self.folders else self.entry.name: digest(self.entry.content), **found}

    @property
    def _counted(self) -> dict[str, Module]:
        return {name: one for name, one in self.modules.items() if one.counts or name == self.entry.name}

    def key(self, name: str) -> str:
        """Return a digest of all that decides what running a module makes: it and all own modules that it needs."""
        reached, waiting = {name}, [name]
        while waiting:
            new = self.needs.get(waiting.pop(), frozenset()) - reached
            reached |= new
            waiting += new
        return digest(*(self._marks[one] for one in sorted(reached)))

    @cached_property
    def _marks(self) -> dict[str, str]:
        return {name: digest(name, str(one.file), str(one.folders), one.content) for name, one in self.modules.items()}


def file_code(path: Path, function: str, *, base: Path) -> Code:
    """Return the code behind a function of a file; modules beside it, and beside the job, are found.

    Raises:
        InputError: If there is no such file.
    """
    copy = as_planned(path)
    if not is_file(copy):
        raise InputError(f"there is no file {path}; paths start at the job file.")
    content = copy.read_bytes()
    root, name = _place(path, content)
    copies: dict[Path, Path] = {}
    folders: list[Path] = []
    for home in dict.fromkeys((path.parent, root, base)):
        if (there := sent_copy(home)) is not None:
            copies[there] = home
            folders.append(there)
        folders.append(home)
    reserved = name.partition(".")[0] in NEVER_OWN or _is_installed_name(name)
    is_name = all(part.isidentifier() for part in name.split("."))
    search = Search(folders, not_in_folders=name if reserved else "")
    if reserved or not is_name:
        name = f"stitchgrid_own_{digest(str(path.resolve()), content)[:16]}"
    entry = Module(name=name, file=copy, content=content)
    modules, needs, libraries = _Closure(search, copies, entry).walk()
    return Code(
        function=function,
        entry=entry,
        is_own=True,
        modules=modules,
        needs=needs,
        libraries=libraries,
        folders=tuple(folders),
        not_beside=search.not_in_folders,
    )


def module_code(where: str, function: str) -> Code | None:
    """Return the code behind a function of a module, None where the module is not found without running code."""
    sent()
    search = Search()
    found = search.find(where)
    entry = None if found is None else _module(where, found, {})
    if entry is None or entry.file is None:
        return None
    if not search.is_own(where):
        libraries = frozenset({where.partition(".")[0]})
        return Code(function=function, entry=entry, is_own=False, modules={}, needs={}, libraries=libraries)
    modules, needs, libraries = _Closure(search, {}, entry).walk()
    return Code(function=function, entry=entry, is_own=True, modules=modules, needs=needs, libraries=libraries)


def _place(path: Path, content: bytes) -> tuple[Path, str]:
    """Return the folder where the packages of a file start, and its name as a module.

    A file that imports relatively is part of the packages around it; any other is a module of its own.
    """
    folder, names = path.parent, [path.stem]
    level = deepest_level(content)
    while level and folder.name and (len(names) <= level or is_file(folder / "__init__.py")):
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _is_installed_name(name: str) -> bool:
    found = None if "." in name else on_path(name, sys.path)
    return found is not None and found.loader is not None and is_installed(found)


def _module(name: str, spec: ModuleSpec, copies: dict[Path, Path]) -> Module | None:
    places = spec.submodule_search_locations
    folders = None if places is None else tuple(dict.fromkeys(one for place in places for one in _twice(place, copies)))
    if not spec.has_location or spec.origin is None:
        return None if folders is None else Module(name=name, file=None, folders=folders)
    file = Path(spec.origin)
    try:
        content = file.read_bytes() if is_file(file) else spec.loader.get_data(spec.origin)  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return None
    return Module(name=name, file=where_it_lay(file, copies), content=content, folders=folders)


def _twice(place: str, copies: dict[Path, Path]) -> list[str]:
    """Return a package's folder and, if the package was sent along, the folder it was copied from where that exists."""
    original = original_of(Path(place), copies)
    return [place, str(original)] if original is not None and original.is_dir() else [place]


class _Closure:
    """The own modules that an entry reaches."""

    def __init__(self, search: Search, copies: dict[Path, Path], entry: Module):
        self.search, self.copies, self.entry = search, copies, entry
        self.modules = {entry.name: entry}
        self.needs: dict[str, frozenset[str]] = {}
        self.libraries: set[str] = set()

    def walk(self) -> tuple[dict[str, Module], dict[str, frozenset[str]], frozenset[str]]:
        waiting = [self.entry.name]
        while waiting:
            name = waiting.pop()
            if name in self.needs:
                continue
            self.needs[name] = frozenset(self._needed(self.modules[name])) - {name}
            waiting += self.needs[name]
        return self.modules, self.needs, frozenset(self.libraries)

    def _needed(self, module: Module) -> Iterator[str]:
        """Return the own modules that importing and running a module imports."""
        yield from (name for name in _with_parents(module.name)[:-1] if self._take(name))
        for one in imports_of(module.content, module.package) if module.is_source else ():
            if not self.search.is_own(one.module.partition(".")[0]) and one.module not in self.modules:
                self.libraries.add(one.module.partition(".")[0])
                continue
            yield from (name for name in _with_parents(one.module) if self._take(name))
            names = [name for name in one.names if name != STAR]
            if STAR in one.names and one.module in self.modules:
                names += exported(self.modules[one.module].content)
            yield from (found for name in names if self._take(found := f"{one.module}.{name}"))

    def _take(self, name: str) -> bool:
        """Note a module; return whether it is there and the user's own."""
        if name in self.modules:
            return True
        spec = self.search.find(name) if self.search.is_own(name) else None
        module = None if spec is None else _module(name, spec, self.copies)
        if module is None:
            return False
        self.modules[name] = module
        return True


def _with_parents(name: str) -> list[str]:
    """Return a module's packages from the outermost on, and itself.

    >>> _with_parents("a.b.c")
    ['a', 'a.b', 'a.b.c']
    """
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]
