"""Freeze a network: eval mode that stays, no gradients for weights, no operations in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.user_forward import FAILURES, error_line


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    """Ignore the request, because a frozen network's statistics and dropout must not move, but note it."""
    if mode:
        self.asked_to_train = True  # type: ignore[assignment]  # Module has no such attribute
    return self


def freeze(module: nn.Module) -> nn.Module:
    """Freeze `module` and return it: train() has no effect, parameters get no gradients, no operation is in place.

    Operations in place are off, because layers must not overwrite a cached activation before them. Attention's fast
    path is off (for the whole process), because it changes values by 4e-6 depending on whether gradients are wanted.
    Switching operations in place off changes what a network computes if it uses a tensor after overwriting it; few
    networks do, and cutting a network finds out (`as_its_author_wrote_it`).

    Raises:
        InputError: If it is a TorchScript module, or cannot be brought into eval mode.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{getattr(module, 'original_name', type(module).__name__)} is a TorchScript module, which cannot be cut; "
            "give the module it was scripted from."
        )
    try:
        module.eval().requires_grad_(False)
    except FAILURES as problem:
        raise InputError(
            f"{type(module).__name__} cannot be frozen ({error_line(problem)}); give the module that it was made "
            "from, as it was before it was exported or packed."
        ) from problem
    for part in module.modules():
        vars(part).pop("asked_to_train", None)
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]  # some modules have it, Module does not
            part.was_inplace = True  # type: ignore[assignment]
        # on the instance: a subclass would no longer be recognised as a module of torch.nn when traced
        part.train = MethodType(_stay_in_eval, part)  # type: ignore[method-assign]
    torch.backends.mha.set_fastpath_enabled(False)
    return module


def check_stays_in_eval(module: nn.Module) -> None:
    """Check that the forward of a frozen network, which has run, puts no part of it into training mode.

    Raises:
        InputError: If it does: its scores are made by statistics of the batch at hand, or by chance.
    """
    for path, part in module.named_modules():
        if part.training or vars(part).pop("asked_to_train", False):
            what = f"{path} ({type(part).__name__})" if path else "itself"
            raise InputError(
                f"the forward of {type(module).__name__} puts {what} into training mode, where scores depend on the "
                "other images of a batch, or on chance; take train() out of its forward."
            )


def thaw(module: nn.Module) -> nn.Module:
    """Undo `freeze` but for eval mode and gradients, and return the module: another process can load and train it."""
    for part in module.modules():
        for name in ("train", "asked_to_train"):
            vars(part).pop(name, None)
        if vars(part).pop("was_inplace", False):
            part.inplace = True  # type: ignore[assignment]
    return module


@contextmanager
def as_its_author_wrote_it(module: nn.Module) -> Iterator[None]:
    """Within a block, switch the operations in place on again that `freeze` switched off."""
    overwriting = [part for part in module.modules() if getattr(part, "was_inplace", False)]
    try:
        for part in overwriting:
            part.inplace = True  # type: ignore[assignment]
        yield
    finally:
        for part in overwriting:
            part.inplace = False  # type: ignore[assignment]
