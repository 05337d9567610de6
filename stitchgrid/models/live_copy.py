"""A live module -> a module of its own that has the same weights, so that the user's own is never touched."""

from copy import deepcopy

from torch import Tensor, nn

from stitchgrid.errors import InputError, is_out_of_memory, one_line


def live_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters lie in the memory of the module's own, on their device.

    Mode, hooks, settings and gradients of the copy are its own. Buffers are copied: a forward may write into them.

    Raises:
        InputError: If Python cannot copy it.
    """
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for part in module.modules():  # what a pass has left behind, with its graph, is not copied by Python
        left = (value for value in vars(part).values() if isinstance(value, Tensor) and value.grad_fn is not None)
        memo |= {id(value): value.detach() for value in left}
    try:
        made: nn.Module = deepcopy(module, memo)
    except Exception as problem:  # a module may hold anything
        if is_out_of_memory(problem):
            raise
        raise InputError(
            f"{type(module).__name__} cannot be copied by copy.deepcopy ({one_line(problem)}), and what you give is "
            "never changed itself; take out what it holds besides layers, such as open files, locks or generators."
        ) from problem
    return made
