"""A device beside the CPU that needs no hardware: what lies there meets nothing that lies elsewhere.

Its tensors hide CPU tensors, with which their operations are carried out. Operations on tensors of both devices are
refused where a GPU would refuse them, and what makes the host wait for the device is counted; what only a GPU's own
kernels would refuse is not known here. `appear` changes torch for the whole process, before its first backward pass:
`in_process_of_its_own` keeps that from other tests.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

IS_POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # not in every torch
NAME = "elsewhere"
MOVING = frozenset({"copy_", "_to_copy"})  # may see both devices
ARRIVALS = "arrivals"  # among what is counted: what comes there from the CPU
INDEXING = frozenset({"index", "index_put_", "_index_put_impl_"})  # what lies there, by what may lie here
JOINING = frozenset({"cat", "stack"})  # refuse even single numbers of the other device
WAITING = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "bincount", "unique_dim", "_unique2"}
)


class ElsewhereTensor(Tensor):
    """A tensor of that device."""

    hidden: Tensor

    @staticmethod
    def __new__(cls, hidden: Tensor) -> "ElsewhereTensor":
        return Tensor._make_wrapper_subclass(
            cls,
            hidden.shape,
            strides=hidden.stride(),
            storage_offset=hidden.storage_offset(),
            dtype=hidden.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, hidden: Tensor):
        self.hidden = hidden

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operation comes to, on the device where it belongs."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, ElsewhereTensor)]
    name, asked = func.overloadpacket.__name__, kwargs.get("device")
    if there and not _may_meet(name, args, tensors):
        raise RuntimeError(f"{func}: tensors on two devices")
    if asked is not None:
        is_there, kwargs = torch.device(asked).type == NAME, {**kwargs, "device": torch.device("cpu")}
    else:
        is_there = isinstance(args[0], ElsewhereTensor) if name in MOVING else bool(there)
    if is_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU draws nothing there")
    args, kwargs = tree_map(lambda x: x.hidden if isinstance(x, ElsewhereTensor) else x, (args, kwargs))
    out = func(*args, **kwargs)
    if not is_there:
        return out
    known = {id(tensor.hidden): tensor for tensor in there}  # of operations in place

    def shown(x: Any) -> Any:
        return known[id(x)] if id(x) in known else ElsewhereTensor(x) if isinstance(x, Tensor) else x

    return tree_map(shown, out)


def _may_meet(name: str, args: Any, tensors: list[Tensor]) -> bool:
    """Return whether an operation takes these tensors, some of which lie there."""
    here = [tensor for tensor in tensors if not isinstance(tensor, ElsewhereTensor)]
    if name in MOVING:
        return True
    if name in INDEXING:
        return isinstance(args[0], ElsewhereTensor) and all(
            isinstance(value, ElsewhereTensor) or not value.dim() for value in args[2:3]
        )
    return not here if name in JOINING else not any(tensor.dim() for tensor in here)


class _Operations(TorchDispatchMode):
    """Carries out what names the device without a tensor of it, and counts what the host waits for, by operation."""

    def __init__(self, waits: Counter[str]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        source = args[1] if name == "copy_" else args[0] if args else None
        if isinstance(source, ElsewhereTensor):
            leaves = name == "_to_copy" and torch.device(kwargs.get("device") or NAME).type == "cpu"
            leaves = leaves or (name == "copy_" and not isinstance(args[0], ElsewhereTensor))
            masks = args[1] if name in INDEXING else ()
            by_mask = any(isinstance(mask, ElsewhereTensor) and mask.dtype == torch.bool for mask in masks)
            self.waits[name] += leaves or by_mask or name in WAITING
        elif isinstance(source, Tensor) and name in MOVING:  # from pageable memory a GPU's copies wait for it, too
            asked = torch.device(kwargs.get("device") or "cpu")
            arrives = isinstance(args[0], ElsewhereTensor) if name == "copy_" else asked.type == NAME
            self.waits[ARRIVALS] += arrives
        return _carried_out(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """Does in two steps what torch does below the operations seen above."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return func(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(NAME)
        if func is torch.matmul and isinstance(kwargs.get("out"), ElsewhereTensor):
            return kwargs["out"].copy_(torch.matmul(*args))
        return func(*args, **kwargs)


def appear() -> torch.device:
    """Let the device be there for the rest of the process, and return it."""

    class Backend(backend_registration._DummyBackendModule):  # type: ignore[misc,name-defined]
        def device_count(self) -> int:
            return 1

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

        def get_rng_state(self, device: object = None) -> Tensor:  # it draws nothing
            return torch.zeros(1)

        def set_rng_state(self, state: Tensor, device: object = None) -> None:
            pass

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())  # type: ignore[attr-defined]
    return torch.device(NAME, 0)


@contextmanager
def working_there() -> Iterator[Counter[str]]:
    """Let the device work, and count what the host waits for."""
    waits = Counter[str]()
    with _Operations(waits), _Functions():
        yield waits


def moved(module: M) -> M:
    """Return a frozen module whose weights lie on the device."""
    module = deepcopy(module)
    for part in module.modules():
        for name, value in [*part._parameters.items()]:
            if value is not None:
                part._parameters[name] = nn.Parameter(ElsewhereTensor(value.data), requires_grad=False)
        for name, value in [*part._buffers.items()]:
            if value is not None:
                part._buffers[name] = ElsewhereTensor(value)
    return module


def in_process_of_its_own(function: Callable[[], T]) -> T:
    """Return what a function of a module returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result()
