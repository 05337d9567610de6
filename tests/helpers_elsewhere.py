"""A device beside the CPU that needs no hardware: what lies there meets nothing that lies elsewhere.

Its tensors hide CPU tensors, with which their operations are carried out. An operation on tensors of both devices is
refused, as a GPU would refuse it, and what is read from there to the host is counted. `appear` changes torch for the
whole process, before its first backward pass: `in_process_of_its_own` keeps that from other tests.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
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
BETWEEN = frozenset({"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"})  # may see both devices
READING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"})  # the host waits for it


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
    if there and name not in BETWEEN and any(t.dim() and not isinstance(t, ElsewhereTensor) for t in tensors):
        raise RuntimeError(f"{func}: tensors on two devices")
    if asked is not None:
        is_there, kwargs = torch.device(asked).type == NAME, {**kwargs, "device": torch.device("cpu")}
    else:
        is_there = isinstance(args[0], ElsewhereTensor) if name in BETWEEN else bool(there)
    args, kwargs = tree_map(lambda x: x.hidden if isinstance(x, ElsewhereTensor) else x, (args, kwargs))
    out = func(*args, **kwargs)
    if not is_there:
        return out
    known = {id(tensor.hidden): tensor for tensor in there}  # of operations in place

    def shown(x: Any) -> Any:
        return known[id(x)] if id(x) in known else ElsewhereTensor(x) if isinstance(x, Tensor) else x

    return tree_map(shown, out)


class _Operations(TorchDispatchMode):
    """Carries out what names the device without a tensor of it, and counts what the host reads, by operation."""

    def __init__(self, read: Counter[str]):
        super().__init__()
        self.read = read

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        source = args[1] if name == "copy_" else args[0] if args else None
        if isinstance(source, ElsewhereTensor):
            leaves = name == "_to_copy" and torch.device(kwargs.get("device") or NAME).type == "cpu"
            leaves = leaves or (name == "copy_" and not isinstance(args[0], ElsewhereTensor))
            by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
            self.read[name] += leaves or by_mask or name in READING
        return _carried_out(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """Does in two steps what torch does below the operations seen above."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return func(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(NAME)
        if func is torch.matmul and kwargs.get("out") is not None:
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
    """Let the device work, and count what the host reads from it."""
    read = Counter[str]()
    with _Operations(read), _Functions():
        yield read


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
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function)
