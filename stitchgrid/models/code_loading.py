"""Runs users' own code: from exactly the bytes of its digest, and each network's modules apart from all others'.

Python keeps one module per name, in sys.modules. Two networks may each have a module `blocks`, and a file may be edited
between two launches of one process. So each network's code runs in a world of its own: the world's modules are in
sys.modules while its code is imported and networks are built, and import statements of its code find them at any time.
Modules that are equal in two worlds, with all that they import, are one module. Outside of worlds, sys.modules shows
the modules of the latest world, so that pickle and inspect find them; a name that stands for different files in worlds
that are in use is not shown.
"""

import builtins
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from threading import RLock, get_ident
from types import ModuleType
from typing import Any
from weakref import WeakSet

from stitchgrid.models.code_closure import Code, Module
from stitchgrid.models.module_loader import CompiledLoader, SourceLoader
from stitchgrid.models.module_search import NEVER_OWN, is_installed, on_path
from stitchgrid.models.process_guard import Defaults
from stitchgrid.records import digest

_LOCK = RLock()
_worlds: dict[str, "World"] = {}  # in the order in which they were made
_active: list["World"] = []  # innermost last
_thread: list[int] = []  # the thread in which these worlds are active
_shown: dict[str, "World"] = {}  # top-level name -> the world whose modules sys.modules shows outside
_loaded: dict[str, ModuleType] = {}  # `Code.key` -> the module


def own_world(code: Code) -> "World":
    """Return the world of a network's own code; it is made at the first request."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    key = digest(code.entry.name, *map(str, code.folders), *sorted(code.key(name) for name in code.modules))
    if key not in _worlds:
        _worlds[key] = World(code)
    return _worlds[key]


class World:
    """The modules of one network's own code."""

    def __init__(self, code: Code):
        self.code = code
        self.keys = {name: code.key(name) for name in code.modules}
        self.tops = {_top(name) for name in code.modules}
        self.modules: dict[str, ModuleType] = {}
        self.users: WeakSet[Any] = WeakSet()  # networks made by it that are in use
        self.defaults = Defaults()
        self.builtins = {**vars(builtins), "__import__": self._import}

    def load(self, name: str) -> ModuleType:
        """Return a module of this world; it runs now unless it has run before."""
        with self.active():
            if name not in self.modules:
                try:
                    with self.defaults.noting():
                        import_module(name)
                except BaseException:
                    for new in [one for one in sys.modules if _top(one) in self.tops and one not in self.modules]:
                        del sys.modules[new]  # half of it may have been run
                    raise
            return sys.modules[name]

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of this world's that runs in it."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.active(), self.defaults():
                made = function(*args, **kwargs)
            self._note(made)
            return made

        return call

    def _note(self, made: Any) -> None:
        """Remember a network made by this world for as long as it is in use."""
        for one in (made, *(getattr(made, name, None) for name in ("_orig_mod", "module"))):
            if hasattr(type(one), "named_parameters"):  # a network, and not its class or a function
                self.users.add(one)

    def place(self, top: str) -> str:
        """Return where a top-level module of this world lies."""
        module = self.modules.get(top)
        known = self.code.modules.get(top)
        return str(known.file or known.folders) if known else str(getattr(module, "__file__", None))

    def _import(
        self,
        name: str,
        globals: Any = None,  # the signature of __import__
        locals: Any = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        """Import as an import statement of this world's own code does."""
        top = _top(name)
        is_common = level == 0 and top not in self.tops and top in sys.modules and top not in _shown
        if is_common or (_active and _active[-1].has(globals)):
            return builtins.__import__(name, globals, locals, fromlist, level)
        with self.active():
            return builtins.__import__(name, globals, locals, fromlist, level)

    def has(self, namespace: Any) -> bool:
        """Return whether a namespace is one of its modules'."""
        name = namespace.get("__name__") if isinstance(namespace, dict) else None
        module = sys.modules.get(name) if isinstance(name, str) and _top(name) in self.tops else None
        return module is not None and vars(module) is namespace

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within a block, have this world's modules in sys.modules, and no own modules of other worlds."""
        with _LOCK:
            if _active and _active[-1] is self:
                yield
                return
            hidden = _take_out(self.tops | _shown.keys())
            self._put_in()
            _active.append(self)
            _thread[:] = [get_ident()]
            try:
                with self.defaults.searching():
                    yield
            finally:
                _active.pop()
                self._keep(_take_out(self.tops | _shown.keys()))
                if _active:
                    sys.modules.update(hidden)
                else:
                    self._show(hidden)

    def _put_in(self) -> None:
        for name, key in self.keys.items():
            if name not in self.modules and key in _loaded:
                self.modules[name] = _loaded[key]
        sys.modules.update(self.modules)
        for name in {*self.keys, *self.modules}:
            self._attach(name)

    def _attach(self, name: str) -> None:
        """Set a submodule of this world as the attribute of its package, which another world may share."""
        parent, _, last = name.rpartition(".")
        if parent not in self.modules:
            return
        space, module = vars(self.modules[parent]), self.modules.get(name)
        seen = space.get(last)
        is_submodule = isinstance(seen, ModuleType) and seen.__name__ == name
        if module is not None and (is_submodule or last not in space):
            space[last] = module
        elif module is None and is_submodule:
            del space[last]

    def _keep(self, found: dict[str, ModuleType]) -> None:
        self.modules = {name: module for name, module in found.items() if _top(name) in self.tops}
        for name, module in self.modules.items():
            if name in self.keys:
                _loaded.setdefault(self.keys[name], module)

    def _show(self, hidden: dict[str, ModuleType]) -> None:
        """Put into sys.modules what code outside worlds is to see; `hidden` is what was there before."""
        for top in self.tops | _shown.keys() | {_top(name) for name in hidden}:
            hidden_modules = {name: module for name, module in hidden.items() if _top(name) == top}
            own_modules = {name: module for name, module in self.modules.items() if _top(name) == top}
            shown = _shown.get(top)
            is_foreign = any(
                shown is None or shown.modules.get(name) is not one for name, one in hidden_modules.items()
            )
            if not own_modules or is_foreign:
                sys.modules.update(hidden_modules)
                if is_foreign:
                    _shown.pop(top, None)
            elif self._rivals(top):
                _shown.pop(top, None)
            else:
                sys.modules.update(
                    {**hidden_modules, **own_modules}
                    if hidden_modules.get(top) is own_modules.get(top)
                    else own_modules
                )
                _shown[top] = self

    def _rivals(self, top: str) -> set[str]:
        others = [world for world in _worlds.values() if world is not self and top in world.tops and len(world.users)]
        return {world.place(top) for world in others} - {self.place(top)}

    def find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """Return the spec of an own module that is imported while this world is active, None for all others."""
        if name in self.code.modules:
            return self._spec(self.code.modules[name])
        top = _top(name)
        if top in NEVER_OWN or top == self.code.not_beside or (path is not None and top not in self.tops):
            return None
        folders = [*map(str, self.code.folders), *self.defaults.extra_paths()]
        found = on_path(name, folders if path is None else path)
        if found is None or is_installed(found):
            return None
        self.tops.add(top)
        if found.origin is None or not found.origin.endswith(".py"):
            return found
        file = Path(found.origin)  # a module that the syntax did not show: taken as its file is now
        inside = None if found.submodule_search_locations is None else tuple(found.submodule_search_locations)
        return self._spec(Module(name=name, file=file, content=file.read_bytes(), folders=inside))

    def _spec(self, module: Module) -> ModuleSpec:
        if module.file is None:
            namespace = ModuleSpec(module.name, None, is_package=True)
            namespace.submodule_search_locations = list(module.folders or ())
            return namespace
        inside = None if module.folders is None else list(module.folders)
        kind = SourceLoader if module.is_source else CompiledLoader
        loader: Loader = kind(module.name, str(module.file), module.content, self.builtins)
        spec = spec_from_file_location(module.name, module.file, loader=loader, submodule_search_locations=inside)
        assert spec is not None, module.name
        return spec


class _Finder:
    """Finds modules of own code: of the world that is active, else of the only one that has the name."""

    is_stitchgrids = True

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: Any = None) -> ModuleSpec | None:
        # Never waits for the lock: Python holds a lock of its own for the module that another thread may wait for.
        if not _active:
            return _find_outside(name, path)
        return _active[-1].find(name, path) if _thread == [get_ident()] else None


def _find_outside(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Return the spec of an own module that is imported by name while networks run."""
    if _top(name) in NEVER_OWN or (path is not None and _top(name) not in _shown):
        return None
    if path is not None:
        return _shown[_top(name)].find(name, path)
    found = _candidates(name)
    if len(found) > 1:
        gc.collect()  # networks that nobody uses any more may still be there
        found = _candidates(name)
    if len(found) > 1:
        raise ImportError(
            f"networks of this process have different modules {name!r} ({', '.join(sorted(found))}), and which one is "
            "meant is not clear: import it by an import statement, or rename one of them",
            name=name,
        )
    for world, spec in found.values():
        _shown[name] = world
        if (module := world.modules.get(name)) is not None:
            sys.modules.update({one: it for one, it in world.modules.items() if _top(one) == name})
            spec.loader = _Loaded(module)
        return spec
    return None


def _candidates(name: str) -> dict[str, tuple[World, ModuleSpec]]:
    """Return the top-level modules with a name in worlds that are in use, by the place where they lie."""
    return {
        str(spec.origin or spec.submodule_search_locations): (world, spec)
        for world in _worlds.values()
        if len(world.users) and (spec := world.find(name, None)) is not None
    }


class _Loaded(Loader):
    """Loads a module that has run before."""

    def __init__(self, module: ModuleType):
        self.module = module

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass


def _top(name: str) -> str:
    return name.partition(".")[0]


def _take_out(tops: set[str]) -> dict[str, ModuleType]:
    names = [name for name in list(sys.modules) if _top(name) in tops]
    return {name: sys.modules.pop(name) for name in names}
