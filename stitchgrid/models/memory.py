"""Networks that do not fit into memory: how much they need, and how much there is."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import finalize

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError, is_out_of_memory
from stitchgrid.models.dry_run import probe_input
from stitchgrid.models.user_forward import FAILURES, quietly

if sys.platform != "win32":
    import resource


class OutOfMemoryError(InputError):
    """A network does not fit into memory; workers recognise the error by this name and try its unit once more."""


@contextmanager
def memory_told(what: str, *, device: torch.device, count: Callable[[], int | None]) -> Iterator[None]:
    """Turn a lack of memory within the block into an error that names the bytes that `count` finds are needed.

    Raises:
        OutOfMemoryError: If there is not enough memory.
    """
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        needed, asked = count(), re.search(r"tried to allocate (\d+) bytes", str(problem))
        if needed is not None:
            need = f"needs {_gib(needed)} for its weights alone"
        elif asked is not None:
            need = f"asked for {_gib(int(asked[1]))} at once"
        else:
            need = "does not fit into memory"
        raise OutOfMemoryError(
            f"{what} {need}, and {_there_is(device)}; make it smaller by its `args`, or compute where there is more."
        ) from problem


def count_bytes(module: nn.Module) -> int:
    """Return the bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in [*module.parameters(), *module.buffers()])


def kept_bytes(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the bytes that one image's forward pass keeps for the backward pass to the input, without weights.

    0 where gradients cannot pass: training through such a network fails with an error of its own.
    """
    own = {value.untyped_storage().data_ptr() for value in [*module.parameters(), *module.buffers()]}
    there: set[int] = set()  # addresses of the counted tensors that still exist
    sizes: list[int] = []

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in own and place not in there:
            there.add(place)
            sizes.append(storage.nbytes())
            finalize(storage, there.discard, place)

    images = probe_input(module, input_shape)
    try:
        with quietly(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
            module(images.requires_grad_() * 1)
    except FAILURES as problem:  # a network's own forward may raise anything
        if is_out_of_memory(problem):
            raise
        return 0
    return sum(sizes) // len(images)


def move(module: nn.Module, device: torch.device, name: str) -> nn.Module:
    """Return the network on another device; `name` is the model's, for the error.

    Raises:
        OutOfMemoryError: If it does not fit there.
    """
    with memory_told(f"model {name!r}", device=device, count=lambda: count_bytes(module)):
        return module.to(device)


def _there_is(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{_gib(free)} of the {_gib(total)} of {device} are free"
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, named = min(_process_limits(), default=(there, ""))
    if limit < there:
        return f"this process may take no more than {_gib(limit)} (a limit of its shell: {named}), of {_gib(there)}"
    return f"this machine has {_gib(there)}"


def _process_limits() -> Iterator[tuple[int, str]]:
    """Yield the limits on the memory of this process, in bytes, each with the command that sets it."""
    if sys.platform == "win32":
        return
    for kind, command in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            yield limit, command


def _gib(num_bytes: int) -> str:
    gib = num_bytes / 2**30
    return f"{gib:,.0f} GiB" if gib >= 10 else f"{gib:.2g} GiB"
