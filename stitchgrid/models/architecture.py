"""Architecture word -> the function that makes the network, and the digest of the code behind it."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from stitchgrid.errors import InputError, JobFileError, nearest
from stitchgrid.models.catalogue import LIBRARIES, STITCHGRID, library_names, timm_tags
from stitchgrid.models.own_code import as_planned, sent
from stitchgrid.paths import is_file
from stitchgrid.records import NetworkSpec, digest

FORMS = "stitchgrid:NAME, torchvision:NAME, timm:NAME[.TAG], package.module:function or FILE.py:function"


def find_function(spec: NetworkSpec) -> Callable[..., Any]:
    """Return the function that makes the network of `spec`; runs the user's own file where the word names one.

    Raises:
        JobFileError: If there is no such architecture.
        InputError: If an own file or module is missing or does not run.
    """
    where, name = _parts(spec.architecture)
    if where in LIBRARIES:
        return _library_function(where, name)
    module = _load_file(_own_file(spec)) if where.endswith(".py") else _import(where, spec.architecture)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise JobFileError(
            f"architecture {spec.architecture!r}: {where} has no function {name!r}; {nearest(name, own)}."
        )
    return function  # type: ignore[no-any-return]


def code_digest(spec: NetworkSpec) -> str:
    """Return a digest of the code behind an architecture: the content of an own file or module, else the word itself.

    Where the file lies does not matter. What it imports is not part of it.
    """
    where, name = _parts(spec.architecture)
    if where in LIBRARIES:
        return digest(spec.architecture)
    if where.endswith(".py"):
        return digest(name, _own_file(spec).read_bytes())
    source = getattr(_import(where, spec.architecture), "__file__", None)
    if source is not None and source.endswith(".py"):
        return digest(name, Path(source).read_bytes())
    return digest(spec.architecture)


def own_code_digest(spec: NetworkSpec) -> str | None:
    """Return the `code_digest` of a user's own file or module as it is now, without running it.

    None for libraries, and for what is not found without running anything.
    """
    where, name = _parts(spec.architecture)
    if where in LIBRARIES:
        return None
    path = as_planned(Path(spec.base, where)) if where.endswith(".py") else _module_file(where)
    return digest(name, path.read_bytes()) if path is not None and is_file(path) else None


def _module_file(where: str) -> Path | None:
    """Return the file of a module; its packages are not imported."""
    folders: Sequence[str] | None = None
    file = None
    parts = where.split(".")
    for depth in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: depth + 1]), folders)
        if found is None:
            return None
        folders, file = found.submodule_search_locations, found.origin
    return None if file is None else Path(file)


def library_of(spec: NetworkSpec) -> str | None:
    """Return the library that the architecture is of: stitchgrid, torchvision or timm; None for users' own code."""
    where = _parts(spec.architecture)[0]
    return where if where in LIBRARIES else None


def _parts(word: str) -> tuple[str, str]:
    where, colon, name = word.rpartition(":")
    if not (colon and where and name):
        known = [f"{library}:{name}" for library in LIBRARIES for name in library_names(library)]
        raise JobFileError(f"unknown architecture {word!r}; wanted {FORMS}; {nearest(word, known)}.")
    return where, name


def _library_function(library: str, name: str) -> Callable[..., Any]:
    if library == "timm" and importlib.util.find_spec("timm") is None:
        raise JobFileError(f"architecture 'timm:{name}' needs timm, which is not installed; pip install timm.")
    known = library_names(library)
    plain, _, tag = name.partition(".") if library == "timm" else (name, "", "")
    if plain not in known:
        raise JobFileError(f"unknown architecture '{library}:{name}'; {nearest(plain, known)}.")
    if tag and tag not in (tags := timm_tags(plain)):
        raise JobFileError(f"timm has no weights {tag!r} of {plain!r}; {nearest(tag, tags)}.")
    if library == "stitchgrid":
        where, function = STITCHGRID[name].split(":")
        return getattr(importlib.import_module(where), function)  # type: ignore[no-any-return]
    if library == "timm":
        return partial(importlib.import_module("timm").create_model, name)
    return importlib.import_module("torchvision.models").get_model_builder(name)  # type: ignore[no-any-return]


def _own_file(spec: NetworkSpec) -> Path:
    path = as_planned(Path(spec.base, _parts(spec.architecture)[0]))
    if not is_file(path):
        raise InputError(f"architecture {spec.architecture!r}: there is no file {path}; paths start at the job file.")
    return path


def _load_file(path: Path) -> ModuleType:
    """Return the file as a module, run once per path and content."""
    name = f"stitchgrid_own_{digest(str(path.resolve()), path.read_bytes())[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.util.spec_from_file_location(name, path)
    assert loader is not None, path
    assert loader.loader is not None, path
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module  # dataclasses in the file look their module up while it is run
    try:
        loader.loader.exec_module(module)
    except Exception as problem:  # the user's code may fail in any way
        del sys.modules[name]
        hint = ""
        if isinstance(problem, ModuleNotFoundError):
            hint = " An own file has to be self-contained, or be part of a package: package.module:function."
        raise InputError(f"{path} does not run: {type(problem).__name__}: {problem}.{hint}") from problem
    return module


def _import(where: str, word: str) -> ModuleType:
    sent()  # an own package that was sent along comes before one that this node has
    try:
        return importlib.import_module(where)
    except Exception as problem:  # the user's code may fail in any way
        hint = nearest(where, LIBRARIES)
        raise InputError(
            f"architecture {word!r}: module {where!r} cannot be imported ({type(problem).__name__}: {problem}); "
            f"wanted {FORMS}; {hint}."
        ) from problem


def misfit(function: Callable[..., Any], args: dict[str, Any]) -> str | None:
    """Return what is wrong with calling `function` with `args`, or None; what a library checks later is not seen."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in C
        return None
    try:
        signature.bind(**args)
    except TypeError as problem:
        return f"{problem}; its arguments are {signature}"
    return None
