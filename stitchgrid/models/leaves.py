"""Which parts of a network tracing looks into, and which it treats as one operation, whatever they do inside."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)  # of torch.nn, by exact type


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """Modules and functions that are one operation each, whatever they do inside."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Any], ...]


def timm_leaves(module: nn.Module) -> Leaves | None:
    """Return timm's own list of parts that must not be traced into, None for a network without any part of timm."""
    if "timm" not in sys.modules or not any(type(part).__module__.startswith("timm.") for part in module.modules()):
        return None
    layers = import_module("timm.layers")
    return Leaves(modules=tuple(layers.get_notrace_modules()), functions=tuple(layers.get_notrace_functions()))


def encoder_forward(encoder: nn.TransformerEncoder) -> Callable[..., Tensor]:
    """Return the forward of an encoder without its branches on the values and shape of its input.

    Those branches choose other kernels for nested tensors and in training, and guess whether a mask is causal.
    """

    def forward(
        src: Tensor, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
    ) -> Tensor:
        """Return the output of the layers, applied one after the other."""
        if mask is not None or src_key_padding_mask is not None or is_causal:
            raise TypeError("an encoder with masks is not looked into")
        for layer in encoder.layers:
            src = layer(src)
        return src if encoder.norm is None else encoder.norm(src)

    return forward
