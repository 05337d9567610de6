"""Versions of the installed libraries that decide what a network computes."""

from functools import cache
from importlib.metadata import packages_distributions

from stitchgrid.models.architecture import find_code, library_of
from stitchgrid.models.facts import installed_version
from stitchgrid.records import NetworkSpec

_ALWAYS = ("torch", "torchvision")
_LIBRARIES = {"timm": {"timm"}, "huggingface": {"transformers"}}  # by the word of an architecture


def library_versions(spec: NetworkSpec) -> dict[str, str]:
    """Return distribution -> version of the libraries of a network's code, sorted; torch and torchvision always.

    For users' own code, these are the libraries that it imports itself, not those that they import in turn.

    Raises:
        InputError: If an own file is missing.
    """
    code = find_code(spec)
    imported = _LIBRARIES.get(library_of(spec) or "", set()) if code is None else code.libraries
    names = {*_ALWAYS, *(name for module in imported for name in _homes(module))} - {"stitchgrid"}
    return {name: found for name in sorted(names) if (found := installed_version(name)) is not None}


def _homes(module: str) -> list[str]:
    """Return the distributions of a top-level module: mostly one of its name, else all have to be looked through."""
    return [module] if installed_version(module) is not None else _distributions().get(module, [])


@cache
def _distributions() -> dict[str, list[str]]:
    """Return top-level module -> distributions."""
    return dict(packages_distributions())
