"""Running a network under hooks: what every module returns, and runs in which modules return given values instead."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from stitchgrid.errors import InputError
from stitchgrid.models.counting import FlopCounter
from stitchgrid.models.dry_run import probe_input
from stitchgrid.models.hook_returned import Returned, Wrapping, described, tensor_in
from stitchgrid.models.user_forward import quietly


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCall:
    """One call of a module; its position is the number of calls that ended before it did."""

    path: str
    module: nn.Module
    begin: int  # number of calls that had ended when it began: calls from there to its own position lie inside it
    given: tuple[int, ...] | None  # shape of the first tensor among its arguments
    returned: Returned | None  # the tensor that goes on; None: there is none
    wrapping: Wrapping | None  # the container of that tensor; None: it was returned alone
    same: tuple[int, ...]  # positions of the calls inside that returned this same tensor
    passed_on: bool  # it returned its input
    flops: float  # from the images to its end, one image

    @property
    def slot(self) -> int | None:
        """Which leaf of the container is the tensor that goes on, None where it was returned alone."""
        return None if self.wrapping is None else self.wrapping.slot


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRun:
    """One run of a network."""

    calls: tuple[ModuleCall, ...]  # in order of their end
    same: tuple[int, ...]  # positions of the calls that returned the network's output
    flops: float  # one image
    images: Node | None  # of autograd's graph
    scores: Node | None


class _Watch:
    """Notes the calls of modules while a network runs."""

    def __init__(self, counter: FlopCounter, num_images: int, slots: Mapping[str, int]):
        self.counter, self.num_images, self.slots = counter, num_images, slots
        self.calls: list[ModuleCall] = []
        #: The returned tensors: kept, so that no new tensor takes their identity.
        self.values: list[tuple[Any, int]] = []
        self.running: list[tuple[nn.Module, int, list[tuple[Any, int]]]] = []

    def began(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [_state(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.running.append((module, len(self.calls), given))

    def ended(self, path: str, module: nn.Module, value: Any) -> Any:
        """Note a call; return its value, or a copy of it where the module returned its input and autograd records it.

        In autograd's graph, the copy separates the way through this module from other ways that the tensor takes.
        """
        while self.running[-1][0] is not module:  # calls that ended in an exception that the network caught
            self.running.pop()
        _, begin, given = self.running.pop()
        passed_on = any(_is_same(one, _state(value)) for one in given)
        if passed_on and value.grad_fn is not None:
            value = value.clone()
        returned, wrapping = described(value, self.slots.get(path))
        tensor = tensor_in(value, None if wrapping is None else wrapping.slot)
        self.calls.append(
            ModuleCall(
                path=path,
                module=module,
                begin=begin,
                given=tuple(given[0][0].shape) if given else None,
                returned=returned,
                wrapping=wrapping,
                same=self.same(tensor, begin),
                passed_on=passed_on or any(_is_same(one, _state(tensor)) for one in given),
                flops=self.counter.total / self.num_images,
            )
        )
        self.values.append(_state(tensor))
        return value

    def same(self, value: Any, begin: int = 0) -> tuple[int, ...]:
        state = _state(value)
        return tuple(k for k in range(begin, len(self.calls)) if _is_same(self.values[k], state))


def _state(value: Any) -> tuple[Any, int]:
    """Return a value and a number that grows each time the value is overwritten."""
    return value, value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _is_same(one: tuple[Any, int], other: tuple[Any, int]) -> bool:
    return isinstance(one[0], Tensor) and one[0] is other[0] and one[1] == other[1]


def watch(
    network: nn.Module, images: Tensor, *, gradients: bool, slots: Mapping[str, int] = MappingProxyType({})
) -> HookRun:
    """Run a network and return the calls of its modules, with autograd's graph if `gradients`, else with their costs.

    `slots` says, by path of a module, which leaf of its output goes on; by default the first tensor.
    """
    counter = FlopCounter()
    seen = _Watch(counter, len(images), slots)
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(quietly())
        if gradients:
            images = images.detach().clone().requires_grad_() * 1  # no longer a leaf, which must not be overwritten
        # attention as plain matrix products: devices count fused kernels differently, or not at all
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for path, module in network.named_modules():
            if module is not network:
                begin = module.register_forward_pre_hook(seen.began, with_kwargs=True)
                end = module.register_forward_hook(lambda m, _, value, path=path: seen.ended(path, m, value))
                stack.callback(begin.remove)
                stack.callback(end.remove)
        with nullcontext() if gradients else counter:
            scores = network(images)
    return HookRun(
        calls=tuple(seen.calls),
        same=seen.same(scores),
        flops=counter.total / len(images),
        images=images.grad_fn,
        scores=scores.grad_fn,
    )


class _AllCaptured(BaseException):  # not an Exception, which some networks catch
    """The last activation that was asked for is there."""


Slots = Mapping[str, int | None]  # by path of a module: which leaf of what it returns is taken, None: it is a tensor


def capture(network: nn.Module, slots: Slots, images: Tensor, *, to_end: bool) -> dict[str, Tensor]:
    """Return copies of what the modules at these paths return, and under "" the scores if the run is to the end."""
    with _capturing(network, slots, to_end=to_end) as found:
        try:
            with quietly():
                scores = network(images)
        except _AllCaptured:
            return found
    return found | {"": scores}


@contextmanager
def _capturing(network: nn.Module, slots: Slots, *, to_end: bool = True) -> Iterator[dict[str, Tensor]]:
    """Within a block, collect copies of what the modules at these paths return; `capture` says what `to_end` means."""
    found: dict[str, Tensor] = {}

    def keep(path: str, value: Any) -> None:
        if (tensor := tensor_in(value, slots[path])) is not None:
            found[path] = tensor.clone()  # what comes after may overwrite it
        if not to_end and len(found) == len(slots):
            raise _AllCaptured

    modules = dict(network.named_modules())
    hooks = [modules[path].register_forward_hook(lambda _, __, value, path=path: keep(path, value)) for path in slots]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within a block, replace the forward of modules."""
    own = {module: vars(module).get("forward") for module in replacements}  # None: that of its class
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before


@dataclass(frozen=True, slots=True, kw_only=True)
class Detour:
    """How to run a network from one module's output on, without the work before it."""

    at: ModuleCall
    #: Per module, its calls before; None: this call really runs.
    skipped: Mapping[nn.Module, Sequence[ModuleCall | None]]
    own_memory: bool  # whether the zeros that replace skipped outputs have memory of their own, to be overwritten
    noise: bool = False  # whether the placeholder images are noise, for networks that do not run on zeros
    input_shape: tuple[int, ...]

    def run(self, network: nn.Module, a: Tensor, *, images: Tensor | None = None) -> Tensor:
        """Return the scores of a network with `a` as the module's output.

        `images` run through the part before it and do not change the scores; by default they are zeros or noise.
        """
        made, wrapping = self.at.returned, self.at.wrapping
        assert made is not None
        reached = False

        def give(*_: Any, **__: Any) -> Any:
            nonlocal reached
            reached = True
            tensor = made.laid_out(a)
            return tensor if wrapping is None else wrapping.wrap(tensor, len(a))

        def stand_in(real: Callable[..., Any], calls: Iterator[ModuleCall | None]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                call = None if reached else next(calls, None)
                if call is None or call.returned is None:
                    return real(*args, **kwargs)
                zeros = call.returned.zeros(len(a), a.device, own_memory=self.own_memory)
                return zeros if call.wrapping is None else call.wrapping.wrap(zeros, len(a))

            return forward

        skipping = {module: stand_in(module.forward, iter(calls)) for module, calls in self.skipped.items()}
        with quietly(), _forwards({**skipping, self.at.module: give}):
            scores: Tensor = network(self._blank(network, a) if images is None else images)
        if not reached:
            raise InputError(
                f"{type(network).__name__} did not run {self.at.path!r} on {len(a)} images, as it did when it was cut; "
                "its forward must call the modules at which it is cut whatever the images."
            )
        return scores

    def _blank(self, network: nn.Module, a: Tensor) -> Tensor:
        image = probe_input(network, self.input_shape)[:1].to(a.device)
        images = (image if self.noise else torch.zeros_like(image)).expand(len(a), *self.input_shape)
        return images.clone() if self.own_memory else images


def capture_behind(network: nn.Module, detour: Detour, slots: Slots, a: Tensor) -> dict[str, Tensor]:
    """Return copies of what modules return after the one whose output is `a`, and under "" the scores."""
    with _capturing(network, slots) as found:
        scores = detour.run(network, a)
    return found | {"": scores}


def skipped_before(
    calls: Sequence[ModuleCall], begin: int, skippable: frozenset[int]
) -> dict[nn.Module, list[ModuleCall | None]]:
    """Return, for `Detour`, the outermost skippable calls that had ended when a call began."""
    before: list[tuple[ModuleCall, bool]] = []
    position = begin - 1
    while position >= 0:
        skip = position in skippable
        before.append((calls[position], skip))
        position = (calls[position].begin if skip else position) - 1
    found: dict[nn.Module, list[ModuleCall | None]] = {}
    for call, skip in reversed(before):
        found.setdefault(call.module, []).append(call if skip else None)
    return {module: some for module, some in found.items() if any(some)}


class Patience(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Counts operations, and ends a run that takes more than a limit: a loop that waits for a value may never end."""

    def __init__(self, limit: float = float("inf")):
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.count = limit, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out the operation."""
        self.count += 1
        if self.count > self.limit:
            raise RuntimeError(f"still running after {self.count} operations")
        return func(*args, **(kwargs or {}))
