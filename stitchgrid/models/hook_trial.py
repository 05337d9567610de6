"""Trials of a network that has no graph: at which of its modules it can be cut, and how it is run from there on.

A module's output is a cut if the network, given a captured output in its place, returns the scores that belong to it,
whatever images run before it: noise, other noise, zeros. In addition, autograd's graph shows whether another path
bypasses the module. Scores do not show this where a head's weights are still zero.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from stitchgrid.errors import InputError
from stitchgrid.models.dry_run import probe_input
from stitchgrid.models.hook_returned import Returned, Wrapping, images_axis
from stitchgrid.models.hook_runs import Detour, HookRun, ModuleCall, Patience, capture, skipped_before, watch
from stitchgrid.models.user_forward import FAILURES, error_line, quietly

_LOOKED_INTO = (  # of torch.nn, by exact type
    nn.Sequential,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.Transformer,
)


_NUM_IMAGES = (2, 3, 2)  # of the runs


class NoiseTrial:
    """What some runs of a network on noise show."""

    def __init__(self, module: nn.Module, input_shape: Sequence[int], expected: Tensor):
        self.module, self.input_shape = module, input_shape
        images = probe_input(module, input_shape)
        more = torch.cat([images.flip(0), images[:1] / 2])  # 3: no fixed size looks like the number of images
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
        self.others = -noise.to(images.device, images.dtype)  # of other sign, for branches on a sum
        self.graph = self._watch(more)
        if slots := self._slots():
            self.graph = self._watch(more, slots)
        self.run = watch(module, images, gradients=False, slots=slots)
        self.runs = (self.run, self.graph, self._watch(self.others, slots))
        self.turns = [_by_turn(run.calls) for run in self.runs]
        self.run = replace(self.run, calls=tuple(map(self._with_images, self.turns[0], self.run.calls)))
        self.turns[0] = _by_turn(self.run.calls)
        self.depends = _leads(self.graph, around=None)  # if not, autograd's graph shows nothing
        self._check_scores(images, expected)
        self.outputs = self._outputs()
        self.candidates = self._candidates()
        self.scores_from = self._scores_from()
        self.skippable = self._skippable()
        taken = {self.run.calls[k].path: self.run.calls[k].slot for k in self.candidates}
        with torch.no_grad(), Patience() as patience:
            self.captured = [capture(module, taken, some, to_end=True) for some in (images, more)]
        self.limit = 5 * patience.count

    def _check_scores(self, images: Tensor, expected: Tensor) -> None:
        with torch.no_grad():
            again, other = (_scores(self.module, some) for some in (images, self.others))
        if not _close(again, expected):
            raise InputError(
                f"{self._name} does not give the same scores when it is run again, with no module in place; its "
                "forward must not be random in eval mode (dropout without `training=self.training`) or use a tensor "
                "after overwriting it in place."
            )
        if _close(other, expected) and not self.depends:
            raise InputError(f"the output of {self._name} does not depend on its input.")

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _watch(self, images: Tensor, slots: Mapping[str, int] = MappingProxyType({})) -> HookRun:
        try:
            return watch(self.module, images, gradients=True, slots=slots)
        except FAILURES:  # some operations refuse gradients
            pass
        try:
            return watch(self.module, images, gradients=False, slots=slots)
        except FAILURES as problem:
            raise InputError(
                f"{self._name} fails on {len(images)} images of noise ({error_line(problem)}), though "
                "not on others; its forward must take any number of images and any values."
            ) from problem

    def _slots(self) -> dict[str, int]:
        """Return, for modules that return several tensors, which one all paths pass through, if it is not the first.

        Empty where autograd's graph does not show it.
        """
        found: dict[str, int] = {}
        for call in self.graph.calls:
            if call.returned is None or call.wrapping is None or call.wrapping.is_plain or call.path in found:
                continue
            if not _leads(self.graph, around=call.returned.made_by, number=call.returned.number):
                continue
            others = [
                k
                for k, other in enumerate(call.wrapping.others)
                if isinstance(other, Returned)
                and other.made_by
                and not _leads(self.graph, around=other.made_by, number=other.number)
            ]
            if others and len(call.wrapping.others[others[0]].shape) > 1:
                found[call.path] = others[0]
        return found

    def _outputs(self) -> list[int | None]:
        """Return, for each call, the position of the call that its output is attributed to.

        It is the last call inside it that returned the same tensor and whose module is called only once, else the call
        itself. A call that returned its input has none, unless it is a layer of torch.nn.
        """
        found: list[int | None] = []
        for k, call in enumerate(self.run.calls):
            inside = [output for same in call.same if (output := found[same]) is not None and self._is_once(output)]
            own = None if call.passed_on and not is_leaf(call.module) else k
            found.append(inside[-1] if inside else own)
        return found

    def _is_once(self, position: int) -> bool:
        path = self.run.calls[position].path
        return all((path, 0) in run and (path, 1) not in run for run in self.turns)

    def _images_axis(self, path: str, turn: int) -> int | None:
        """Return the axis of images in what a module returned; None where not every run has the same single one."""
        calls = [run.get((path, turn)) for run in self.turns]
        first = calls[0]
        shapes = [call.returned.shape if call and call.returned else None for call in calls]
        if first is None or any((call is None or call.slot is None) != (first.slot is None) for call in calls):
            return None
        if first.wrapping and not all(call and first.wrapping.is_like(call.wrapping) for call in calls):
            return None
        return images_axis(shapes, _NUM_IMAGES)

    def _with_images(self, key: tuple[str, int], call: ModuleCall) -> ModuleCall:
        images = self._images_axis(*key)
        if images is None or call.returned is None:
            return call
        wrapping = call.wrapping and self._wrapped_images(key, call.wrapping)
        return replace(call, returned=call.returned.of(images), wrapping=wrapping)

    def _wrapped_images(self, key: tuple[str, int], wrapping: Wrapping) -> Wrapping:
        """Return the container of a tensor, with the axes of images of the other tensors in it."""
        runs = [run[key].wrapping for run in self.turns]

        def told(k: int, one: object) -> object:
            if not isinstance(one, Returned):
                return one
            return one.of(images_axis([run.others[k].shape for run in runs if run], _NUM_IMAGES))

        return replace(wrapping, others=tuple(told(k, one) for k, one in enumerate(wrapping.others)))

    def _keeps_images_apart(self, path: str, turn: int) -> bool:
        """Return whether a module's call returns a tensor with an axis of images in every run."""
        return self._images_axis(path, turn) is not None

    def _made_by(self, path: str, turn: int) -> Node | None:
        call = self.turns[1].get((path, turn))
        return call.returned.made_by if call and call.returned else None

    def _candidates(self) -> list[int]:
        """Return the positions of the calls whose outputs may be cuts."""
        return [
            k
            for k, call in enumerate(self.run.calls)
            if self.outputs[k] == k
            and self._is_once(k)
            and self._keeps_images_apart(call.path, 0)
            and not (self.depends and _leads(self.graph, around=self._made_by(call.path, 0)))
        ]

    def _scores_from(self) -> int | None:
        """Return the position of the candidate whose output is the network's in every run."""
        returning = [{run.calls[k].path for k in run.same} for run in self.runs]
        found = [k for k in self.candidates if all(self.run.calls[k].path in paths for paths in returning)]
        return found[-1] if found else None

    def _skippable(self) -> frozenset[int]:
        """Return the positions of the calls that can return zeros instead: they only carry values of the images."""
        turns = _by_turn(self.run.calls)
        return frozenset(
            position
            for position, (key, call) in enumerate(turns.items())
            if self._keeps_images_apart(*key)
            and (not self.depends or self._made_by(*key) is not None)
            and (call.wrapping is None or call.wrapping.is_plain)
        )

    def detour(self, position: int) -> Detour | None:
        """Return how to run the network from a call's output on, the cheapest way that works; None if there is none."""
        call = self.run.calls[position]
        size = tuple(self.input_shape)
        whole = Detour(at=call, skipped={}, own_memory=True, input_shape=size)
        if not self._is_right(lambda a: whole.run(self.module, a, images=self.others), self.captured[:1], call):
            return None
        skipped = skipped_before(self.run.calls, call.begin, self.skippable)
        ways = (
            replace(whole, skipped=skipped, own_memory=False),
            replace(whole, skipped=skipped),
            replace(whole, noise=True),
        )
        for detour in ways:
            if self._is_right(lambda a, detour=detour: detour.run(self.module, a), self.captured, call):  # type: ignore[misc]
                return detour
        return None

    def _is_right(
        self, rest: Callable[[Tensor], Tensor], captured: Sequence[dict[str, Tensor]], call: ModuleCall
    ) -> bool:
        images = call.returned.images if call.returned else 0
        try:
            with torch.no_grad(), Patience(self.limit):
                return all(_close(rest(found[call.path].movedim(images, 0)), found[""]) for found in captured)
        except torch.OutOfMemoryError:
            raise
        except FAILURES:  # a network that gets unexpected values may raise anything
            return False


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is one operation, as when a network is traced: a layer of torch.nn or torchvision."""
    home = type(module).__module__
    return home.startswith("torchvision.ops") or (home.startswith("torch.nn") and type(module) not in _LOOKED_INTO)


def _by_turn(calls: Sequence[ModuleCall]) -> dict[tuple[str, int], ModuleCall]:
    """Return calls by their module's path and the number of its earlier calls, in the order in which they ended."""
    num = Counter[str]()
    found = {}
    for call in calls:
        found[call.path, num[call.path]] = call
        num[call.path] += 1
    return found


def _leads(run: HookRun, *, around: Node | None, number: int | None = None) -> bool:
    """Return whether a path of gradients leads from the scores to the images without passing through `around`.

    With `number`, the path must avoid only that tensor of those that the node made: recurrent layers make several.
    """
    seen: set[Node | None] = {around, None} if number is None else {None}
    waiting = [run.scores]
    while waiting:
        node = waiting.pop()
        if node is run.images and node not in seen:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            edges = ((one, k) for one, k in node.next_functions)
            waiting.extend(one for one, k in edges if number is None or (one, k) != (around, number))
    return False


def _scores(module: nn.Module, images: Tensor) -> Tensor:
    with quietly():
        scores: Tensor = module(images)
    return scores


def _close(came: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(came.float(), wanted.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
