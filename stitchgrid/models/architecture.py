"""Architecture word -> the function that makes the network, and the digest of the code behind it."""

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from stitchgrid.errors import InputError, JobFileError, nearest, one_line
from stitchgrid.live_networks import LIVE, live_network, live_twin
from stitchgrid.models.code_closure import Code, file_code, module_code
from stitchgrid.models.code_loading import own_world
from stitchgrid.models.huggingface import huggingface_digest, huggingface_function
from stitchgrid.models.live_copy import initialised_copy, live_copy
from stitchgrid.models.module_search import is_own_file
from stitchgrid.models.registry import LIBRARIES, SOURCES, STITCHGRID, library_names, timm_tags
from stitchgrid.models.shipped_code import sent
from stitchgrid.models.weights import state_digest
from stitchgrid.records import HUGGINGFACE, ArchitectureWord, NetworkSpec, architecture_word, digest

FORMS = (
    "stitchgrid:NAME, torchvision:NAME, timm:NAME[.TAG], huggingface:NAME_OR_FOLDER, package.module:function or "
    "FILE.py:function"
)

_held: dict[tuple[str, str], Code] = {}  # (base, architecture) -> code that was checked against the plan


def find_function(spec: NetworkSpec) -> Callable[..., Any]:
    """Return the function that makes the network of `spec`; runs the user's own code where the word names some.

    Raises:
        JobFileError: If there is no such architecture.
        InputError: If an own file or module is missing or does not run.
    """
    where, name = _parts(spec.architecture)
    if where == HUGGINGFACE:
        return huggingface_function(name, spec.base, spec.limits)
    if where in LIBRARIES:
        return _library_function(where, name)
    if where == LIVE:
        return _live_function(name, is_twin=spec.is_twin)
    code = find_code(spec)
    is_own = code is not None and code.is_own
    module = _load(code, spec.architecture) if code is not None and is_own else _import(where, spec.architecture)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise JobFileError(
            f"architecture {spec.architecture!r}: {where} has no function {name!r}; {nearest(name, known)}."
        )
    return own_world(code).bound(function) if code is not None and is_own else function


def _live_function(name: str, *, is_twin: bool) -> Callable[[], Any]:
    if not is_twin:
        return partial(live_copy, live_network(name))
    given = live_twin(name)
    return partial(initialised_copy, live_network(name)) if given is None else partial(live_copy, given)


def code_digest(spec: NetworkSpec) -> str:
    """Return a digest of the code behind an architecture: of all the user's own code, else of the word itself.

    Where the code lies does not matter. Code that imports no other code of the user's is identified by its file alone.
    """
    where, name = ("", "") if spec.is_features else _parts(spec.architecture)
    if spec.is_features or where in LIBRARIES:
        return digest(spec.architecture)
    if where == HUGGINGFACE:
        return huggingface_digest(name, spec.base)
    if where == LIVE:  # its code is not known: its fingerprint says what it computes
        module = live_network(name)
        word = f"{type(module).__module__}.{type(module).__qualname__}"
        # Twins differ by the weights of the twin that was given, else of the module, and by nothing else.
        weights = (state_digest(module if (twin := live_twin(name)) is None else twin),) if spec.is_twin else ()
        return digest(LIVE, word, *weights)
    code = find_code(spec)
    if code is not None:
        is_known = code.is_own or code.entry.is_source
        return code.digest if is_known else digest(spec.architecture)
    source = getattr(_import(where, spec.architecture), "__file__", None)
    if source is not None and source.endswith(".py"):
        return digest(name, Path(source).read_bytes())
    return digest(spec.architecture)


def names_code(spec: NetworkSpec) -> bool:
    """Return whether an architecture names a function of a user's file or module, whose code is then run.

    Raises:
        JobFileError: If there is no such architecture.
    """
    where = "" if spec.is_features else _parts(spec.architecture).origin
    return bool(where) and where not in SOURCES and where != LIVE


def find_code(spec: NetworkSpec) -> Code | None:
    """Return the code behind an architecture as it is now, without running it.

    None for libraries, for live modules, and for what is not found without running anything.

    Raises:
        InputError: If an own file is missing.
    """
    if spec.is_features:
        return None
    where, name = _parts(spec.architecture)
    if where in SOURCES or where == LIVE:
        return None
    if (held := _held.get((spec.base, spec.architecture))) is not None:
        return held
    if not where.endswith(".py"):
        return module_code(where, name)
    try:
        return file_code(Path(spec.base, where), name, base=Path(spec.base))
    except InputError as problem:
        raise InputError(f"architecture {spec.architecture!r}: {problem}") from None


@contextmanager
def holding(spec: NetworkSpec) -> Iterator[None]:
    """Within a block, run the code behind `spec` as it is now, even if its files change meanwhile.

    Raises:
        JobFileError: If there is no such architecture.
        InputError: If an own file is missing.
    """
    code = find_code(spec)
    with holding_codes({} if code is None else {(spec.base, spec.architecture): code}):
        yield


@contextmanager
def holding_codes(codes: Mapping[tuple[str, str], Code]) -> Iterator[None]:
    """Within a block, run this code, by folder and architecture word; code that is held already stays as it is."""
    new = {key: code for key, code in codes.items() if key not in _held}
    _held.update(new)
    try:
        yield
    finally:
        for key in new:
            del _held[key]


def library_of(spec: NetworkSpec) -> str | None:
    """Return the library that the architecture is of, one of SOURCES; None for users' own code and features."""
    where = "" if spec.is_features else _parts(spec.architecture).origin
    return where if where in SOURCES else None


def _parts(word: str) -> ArchitectureWord:
    parts = architecture_word(word)
    if not parts.origin:
        known = [f"{library}:{name}" for library in LIBRARIES for name in library_names(library)]
        raise JobFileError(f"unknown architecture {word!r}; wanted {FORMS}; {nearest(word, known)}.")
    return parts


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


def _load(code: Code, word: str) -> ModuleType:
    """Return the module of a user's own code; it runs now unless it has run before."""
    try:
        return own_world(code).load(code.entry.name)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # the user's code may fail in any way, SystemExit included
        hint = ""
        if isinstance(problem, ModuleNotFoundError):
            hint = " Modules are looked for beside the file, beside the job file, and in PYTHONPATH."
        raise InputError(
            f"architecture {word!r}: {code.entry.file} does not run: {one_line(problem)}{line_of(problem)}.{hint}"
        ) from problem


def line_of(problem: BaseException) -> str:
    """Return where in a user's own code an error was raised, as text that follows its message."""
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if is_own_file(frame.filename)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _import(where: str, word: str) -> ModuleType:
    sent()  # an own package that was sent along comes before one that this node has
    try:
        return importlib.import_module(where)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        hint = nearest(where, SOURCES)
        raise InputError(
            f"architecture {word!r}: module {where!r} cannot be imported ({one_line(problem)}); wanted {FORMS}; {hint}."
        ) from problem


def misfit(function: Callable[..., Any], args: dict[str, Any]) -> str | None:
    """Return what is wrong with calling `function` with `args`, or None; later checks of a library are not seen."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in C
        return None
    try:
        signature.bind(**args)
    except TypeError as problem:
        return f"{problem}; its arguments are {signature}"
    return None
