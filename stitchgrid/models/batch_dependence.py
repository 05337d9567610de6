"""Find the module of a network that makes an image depend on the others of its batch, by hooks on all modules."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stitchgrid.models.cuts import CutNetwork

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_NO_STATISTICS = "without running statistics (track_running_stats)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """The first module whose output depends on the batch although its input does not."""

    module: str  # its path
    type: str
    cause: str  # what it does, as far as its type tells


@dataclass(frozen=True, slots=True)
class _Call:
    path: str
    module: nn.Module
    given: list[Tensor]
    returned: list[Tensor]


@torch.no_grad()
def find_blame(
    network: CutNetwork, images: Tensor, *, precision: Callable[[], AbstractContextManager[None]], tolerance: float
) -> Blame | None:
    """Return the innermost module at fault; None if it cannot be found.

    Args:
        network: The network.
        images: Images (N, C, H, W), some of which the network maps differently in another batch.
        precision: Makes the context that sets the precision in which the network runs.
        tolerance: Relative difference that rounding may make.
    """
    try:
        together = _watch(network, images, precision)
        parts = [images[::2], images[1::2]]  # each with half of the neighbours
        apart = [_watch(network, part, precision) for part in parts if len(part)]
    except Exception:  # the network is refused in any case: a failure here must not hide why
        return None
    if any([call.path for call in calls] != [call.path for call in together] for calls in apart):
        return None
    whole = len(images)
    for position, call in enumerate(together):  # calls that ended first come first, so inner ones before outer ones
        others = [calls[position] for calls in apart]
        if _differ(call.returned, [one.returned for one in others], whole, tolerance) and not _differ(
            call.given, [one.given for one in others], whole, tolerance
        ):
            return Blame(module=call.path or "its own forward", type=type(call.module).__name__, cause=_cause(call))
    return None


def batch_norms_told(network: nn.Module) -> str:
    """Return why a network may fail on a single image, and what to do: "; the likely cause ..."; empty if unknown."""
    found = [path or "the network" for path, module in network.named_modules() if _normalises_by_batch(module)]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"; the likely cause is {found[0]}{more}, which normalises by the batch at hand: a BatchNorm {_NO_STATISTICS}. "
        "Train the network with running statistics, or with a norm of each image, such as GroupNorm"
    )


def _normalises_by_batch(module: nn.Module) -> bool:
    return isinstance(module, _BATCH_NORM) and module.running_mean is None


def _watch(network: CutNetwork, images: Tensor, precision: Callable[[], AbstractContextManager[None]]) -> list[_Call]:
    """Return what every module was given and returned, in the order in which calls ended."""
    calls: list[_Call] = []
    with ExitStack() as stack:
        for path, module in network.module.named_modules():

            def note(module: nn.Module, args: object, kwargs: object, value: object, path: str = path) -> None:
                given = [one.detach().clone() for one in _tensors((args, kwargs))]
                calls.append(_Call(path, module, given, [one.detach().clone() for one in _tensors(value)]))

            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        stack.enter_context(precision())
        network.whole(images)
    return calls


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _differ(together: list[Tensor], apart: list[list[Tensor]], num_images: int, tolerance: float) -> bool:
    """Return whether an image's values differ between batches; tensors without an axis of images are left out."""
    for position, whole in enumerate(together):
        parts = [some[position] if position < len(some) else None for some in apart]
        if any(part is None for part in parts) or not whole.is_floating_point():
            continue
        for axis in range(whole.dim()):
            sizes = [part.shape[axis] if part is not None and part.dim() == whole.dim() else -1 for part in parts]
            if whole.shape[axis] == num_images and sum(sizes) == num_images:
                for first, part in enumerate(parts):
                    assert part is not None
                    mine = whole.movedim(axis, 0)[first::2]
                    if mine.shape != part.movedim(axis, 0).shape or _far(mine, part.movedim(axis, 0), tolerance):
                        return True
                break
    return False


def _far(one: Tensor, other: Tensor, tolerance: float) -> bool:
    size = one.double().abs().amax()
    return bool((one.double() - other.double()).abs().amax() > tolerance * size)


def _cause(call: _Call) -> str:
    module = call.module
    if _normalises_by_batch(module):
        return f"normalises by the batch at hand: it is a BatchNorm {_NO_STATISTICS}"
    if isinstance(module, nn.Softmax | nn.LogSoftmax) and module.dim == 0:
        return "is a softmax over the axis of the images"
    own = any(True for _ in module.children())
    what = "its own forward" if own else "it"
    return (
        f"computes something over the batch: {what} may normalise by the batch at hand "
        "(functional.batch_norm(training=True), a norm, mean or softmax over the axis of the images), branch on a "
        "value of the whole batch, or share out a limited capacity"
    )
