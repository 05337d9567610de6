"""Networks whose weights are not float32: run in float32 where their forward allows it, else as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError
from stitchgrid.models.adapt import adapt
from stitchgrid.models.dry_run import probe_run
from stitchgrid.records import Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Types:
    """How a network takes float32 images."""

    said: str = ""  # a notice for users
    casts_to: torch.dtype | None = None  # the type to which its images are cast


def settle_types(module: nn.Module, input_shape: Sequence[int], interface: Interface) -> Types:
    """Let a network take float32 images: by weights in float32, else by its own forward, else by a cast of its images.

    Half and double weights are measured in the job's precision. A network whose forward itself casts to the type of its
    weights does not run with other weights, and is left as it is. Take `state_digest` before this call.

    Raises:
        InputError: If the network runs in none of these ways.
    """
    others = {value: value.data for value in _floating(module) if value.dtype != torch.float32}
    if not others:
        return Types()
    words = ", ".join(sorted({str(data.dtype).removeprefix("torch.") for data in others.values()}))
    for value, data in others.items():
        value.data = data.float()
    if _runs(module, input_shape) is None:
        return Types(said=f"{words} weights, run in float32")
    for value, data in others.items():
        value.data = data
    refusal = _runs(module, input_shape)
    said = f"{words} weights that its forward needs: left as they are, activations are taken in float32"
    if refusal is None:
        return Types(said=said)
    casts_to = next(value.dtype for value in _floating(module) if value.dtype != torch.float32)
    adapt(module, interface, casts_to=casts_to)
    if _runs(module, input_shape) is not None:
        raise refusal
    return Types(said=said, casts_to=casts_to)


def _floating(module: nn.Module) -> list[Tensor]:
    return [value for value in [*module.parameters(), *module.buffers()] if value.is_floating_point()]


def _runs(module: nn.Module, input_shape: Sequence[int]) -> InputError | None:
    """Return the error with which a network refuses float32 images, None where it runs."""
    try:
        probe_run(module, input_shape)
    except InputError as problem:
        return problem
    return None
