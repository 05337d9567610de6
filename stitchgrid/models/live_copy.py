"""A live module -> a copy with the same weights or newly initialised ones: the user's module is never changed."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError, is_out_of_memory, one_line


def live_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module; its parameters share the memory of the module's own, on their device.

    Mode, hooks, settings and gradients of the copy are its own. Buffers are copied: a forward may write into them.

    Raises:
        InputError: If Python cannot copy it.
    """
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for part in module.modules():  # Python does not copy tensors with a graph, which a pass may have left
        left = (value for value in vars(part).values() if isinstance(value, Tensor) and value.grad_fn is not None)
        memo |= {id(value): value.detach() for value in left}
    try:
        made: nn.Module = deepcopy(module, memo)
    except Exception as problem:  # a module may hold anything
        if is_out_of_memory(problem):
            raise
        raise InputError(
            f"{type(module).__name__} cannot be copied by copy.deepcopy ({one_line(problem)}), and the module you give "
            "is never changed itself; remove what it holds besides layers, such as open files, locks or generators."
        ) from problem
    return made


@torch.no_grad()
def initialised_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module with weights as they are before any training, drawn by torch's default generator.

    The `reset_parameters` of every module is called, in order, parts before the module that holds them: values that
    the outer module sets for its parts then remain.

    Raises:
        InputError: If a module with parameters has no `reset_parameters`, or Python cannot copy the module.
    """
    made = live_copy(module)
    for tensor in made.parameters():
        tensor.data = tensor.data.clone()  # in memory of its own
    _draw(made)
    return made


def _draw(module: nn.Module, path: str = "") -> None:
    for name, part in module.named_children():
        _draw(part, f"{path}{name}.")
    draw = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if draw is not None:
        draw()
    elif own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise InputError(
            f"{path}{own[0]} belongs to {type(module).__name__}, which has no reset_parameters that would initialise "
            "it; give an untrained module yourself: untrained={NAME: MODULE}."
        )
