"""Counts floating-point operations while code runs, by torch's own table of their costs.

At its first use, torch's counter loads torch's compiler, only to switch it off within the counter. For a small network
this takes longer than everything else. Where the compiler is not loaded, nothing has to be switched off.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_OPERATIONS: Mapping[Any, Callable[..., float]] = flop_registry


class FlopCounter:
    """Counts multiplications and additions of products and convolutions while it is entered; it can be entered once.

    A network that calls the compiler itself has to run once before the counter is made.
    """

    def __init__(self) -> None:
        self._mode = FlopCounterMode(display=False) if "torch._dynamo" in sys.modules else _Mode()
        self._entered = ExitStack()

    @property
    def total(self) -> float:
        """Number of operations counted so far."""
        return float(self._mode.get_total_flops())

    def __enter__(self) -> "FlopCounter":
        self._entered.enter_context(self._mode)
        return self

    def __exit__(self, *raised: object) -> None:
        self._entered.close()


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as torch's counter does, without a list of the modules that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._total = 0.0

    def get_total_flops(self) -> float:
        return self._total

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if (count := _OPERATIONS.get(func._overloadpacket)) is not None:
            self._total += count(*args, **kwargs, out_val=made)
        return made
