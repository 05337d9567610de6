"""What timm says must not be looked into when one of its networks is traced."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """Modules and functions that are one operation each, whatever they do inside."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Any], ...]


def timm_leaves(module: nn.Module) -> Leaves | None:
    """Return timm's own list of what its networks need untouched, None for a network without any part of timm."""
    if "timm" not in sys.modules or not any(type(part).__module__.startswith("timm.") for part in module.modules()):
        return None
    layers = import_module("timm.layers")
    return Leaves(modules=tuple(layers.get_notrace_modules()), functions=tuple(layers.get_notrace_functions()))
