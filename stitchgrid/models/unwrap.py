"""The result of a user's function -> the network itself, without wrappers for training or speed."""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stitchgrid.errors import InputError

_WRAPPERS = (  # kind, attribute that holds the network
    (nn.DataParallel, "module"),
    (nn.parallel.DistributedDataParallel, "module"),
    (torch.optim.swa_utils.AveragedModel, "module"),
)


def unwrapped(made: Any, word: str) -> nn.Module:
    """Return the network in the result of an architecture's function; `word` is the architecture, for errors.

    Raises:
        InputError: If it is not a network, or one of torch.jit, which has no Python code.
    """
    module = unwrapped_from(made, f"{word} returned")
    for part in module.modules():
        part._compiled_call_impl = None  # undoes module.compile(): the module itself is cut and run
    return module


def unwrapped_from(made: Any, begin: str) -> nn.Module:
    """Return the network without its wrappers, unchanged; `begin` is how an error about it begins.

    Raises:
        InputError: If it is not a network, or one of torch.jit, which has no Python code.
    """
    while True:
        inner = next((getattr(made, name) for kind, name in (*_compiled(), *_WRAPPERS) if isinstance(made, kind)), None)
        if inner is None:
            break
        made = inner
    if isinstance(made, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise InputError(
            f"{begin} a network that torch.jit has compiled ({type(made).__name__}), which cannot be cut; "
            "return the network as it was before torch.jit.script or trace."
        )
    if not isinstance(made, nn.Module):
        raise InputError(f"{begin} {_described(made)}; wanted a torch.nn.Module.")
    found: nn.Module = made
    return found


def _compiled() -> Iterator[tuple[type, str]]:
    """Yield the class of compiled networks; nothing where the compiler was not imported, so that none can exist."""
    if (compiler := sys.modules.get("torch._dynamo.eval_frame")) is not None:
        yield compiler.OptimizedModule, "_orig_mod"


def _described(made: Any) -> str:
    if made is None:
        return "nothing (None): a `return` is missing, it seems"
    if inspect.isclass(made):
        return f"the class {made.__name__}, not an instance of it: write {made.__name__}()"
    if inspect.isroutine(made) or type(made).__name__ == "partial":
        return f"a function ({getattr(made, '__name__', 'partial')}), not what it returns"
    if isinstance(made, dict) or hasattr(made, "keys"):
        return f"a {type(made).__name__}, such as a state dict is, not the network it belongs to"
    if isinstance(made, tuple | list):
        return f"a {type(made).__name__} of {len(made)} ({', '.join(type(one).__name__ for one in made[:4])})"
    return f"a {type(made).__name__}"
