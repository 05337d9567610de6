"""Cutting a network that has no graph: at the outputs of its modules, by hooks on them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError
from stitchgrid.models.axes import AxisReading
from stitchgrid.models.blocks import ACTIVATIONS, block_calls
from stitchgrid.models.cuts import Call, Cut, CutNetwork, Operations, as_seen, head_of, make_layer
from stitchgrid.models.hook_axes import CallReader
from stitchgrid.models.hook_runs import Detour, capture, capture_behind
from stitchgrid.models.hook_trial import NoiseTrial, is_leaf
from stitchgrid.models.user_forward import FAILURES, error_line

_SCORES = "output"  # node of class scores that no module returns


class HookedNetwork(CutNetwork):
    """A network cut by hooks on its modules."""

    way = "hooks"

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, int, int],
        cuts: Sequence[Cut],
        operations: Operations,
        detours: dict[str, Detour],
        reason: str,
        ends_in: str | None = None,
    ):
        super().__init__(module, input_shape, cuts, operations)
        self.reason = reason
        self._detours = detours
        self._ends_in = ends_in

    @property
    def ends_in(self) -> str | None:  # noqa: D102
        return self._ends_in

    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: D102
        keys = ["" if self.cut(node).node == self.logits else node for node in nodes]
        paths = list(dict.fromkeys(key for key in keys if key))
        cuts = {path: self.cut(path) for path in paths}
        slots = {path: self._detours[path].at.slot for path in paths}

        def run(images: Tensor) -> tuple[Tensor, ...]:
            images = images.contiguous()  # its own forward may call `view`, which fails in other memory formats
            found = capture(self.module, slots, images, to_end="" in keys) if keys else {}
            if missing := [path for path in paths if path not in found]:
                raise InputError(
                    f"{type(self.module).__name__} did not run {missing[0]!r} on these images, as it did when it was "
                    "cut; its forward must call the modules at which it is cut whatever the images."
                )
            return tuple(_as_seen(found[key], cuts.get(key)) for key in keys)

        return run

    def suffix(self, node: str) -> nn.Module:  # noqa: D102
        is_end = self.cut(node).node == self.logits
        return nn.Identity() if is_end else _Rest(self.module, self._detours[node])

    def behind(self, node: str, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: D102
        cuts = [self.cut(later) for later in nodes]
        inner = {cut.node: self._detours[cut.node].at.slot for cut in cuts if cut.node != self.logits}

        def run(a: Tensor) -> tuple[Tensor, ...]:
            found = capture_behind(self.module, self._detours[node], inner, a)
            keys = ["" if cut.node == self.logits else cut.node for cut in cuts]
            if missing := [key for key in keys if key not in found]:
                raise InputError(
                    f"{type(self.module).__name__} did not run {missing[0]!r} behind {node!r}, as when it was cut."
                )
            return tuple(_as_seen(found[key], cut if key else None) for key, cut in zip(keys, cuts, strict=True))

        return run


def _as_seen(a: Tensor, cut: Cut | None) -> Tensor:
    if cut is None:  # the scores
        return a.float()
    return a if cut.is_plain else as_seen(a, *cut.own_form)


class _Rest(nn.Module):
    """The rest of a network after one module's output."""

    def __init__(self, network: nn.Module, detour: Detour):
        super().__init__()
        self.network, self.detour = network, detour

    def forward(self, a: Tensor) -> Tensor:
        """Return the class scores."""
        return _as_seen(self.detour.run(self.network, a), None)


def cut_by_hooks(
    module: nn.Module, input_shape: tuple[int, int, int], expected: Tensor, *, reason: str
) -> HookedNetwork:
    """Return a frozen network with its cuts; `expected` are its scores of `probe_input`.

    Raises:
        InputError: If it gives other scores when run again, or cannot be cut before its scores.
    """
    try:
        trial = NoiseTrial(module, input_shape, expected)
    except InputError:
        raise
    except FAILURES as problem:
        raise InputError(
            f"{type(module).__name__} fails when it is run again on noise ({error_line(problem)}); its forward must "
            "do the same whenever it is called, whatever the images."
        ) from problem
    calls = trial.run.calls
    nodes = [call.path for call in calls]
    end = trial.scores_from
    if end is None:
        end = len(calls)
        nodes.append(f"node:{_SCORES}" if _SCORES in nodes else _SCORES)
    detours = {k: detour for k in trial.candidates if k < end and (detour := trial.detour(k)) is not None}
    positions = [*detours, end]
    if len(positions) == 1:
        raise InputError(
            f"none of the {len(set(nodes[: len(calls)]))} modules that {type(module).__name__} runs is called once and "
            "returns a tensor that alone decides the scores; wanted blocks that are modules of their own, called once."
        )
    operations = _operations(trial, nodes)
    cuts = _cuts(trial, positions, operations, num_classes=expected.shape[1])
    found = {nodes[k]: one for k, one in detours.items()}
    heads = [head for k in trial.run.same if (head := head_of(calls[k].module)) is not None]
    return HookedNetwork(module, input_shape, cuts, operations, found, reason, heads[-1] if heads else None)


def _operations(trial: NoiseTrial, nodes: Sequence[str]) -> Operations:
    calls = trial.run.calls
    return Operations(
        nodes=tuple(nodes),
        activations=frozenset(k for k, call in enumerate(calls) if isinstance(call.module, ACTIVATIONS)),
        recurrent=frozenset(k for k, call in enumerate(calls) if isinstance(call.module, nn.RNNBase)),
        calls=tuple(
            Call(
                path=call.path,
                type=type(call.module),
                is_leaf=is_leaf(call.module),
                has_weights=any(True for _ in call.module.parameters()),
                made=frozenset(range(call.begin, k + 1)),
                output=trial.outputs[k],
            )
            for k, call in enumerate(calls)
        ),
    )


def _cuts(trial: NoiseTrial, positions: Sequence[int], operations: Operations, *, num_classes: int) -> list[Cut]:
    calls, reader = trial.run.calls, CallReader(trial.module, trial.run.calls)
    readings = {k: reader.read(k) if k < len(calls) else AxisReading(axes="ND") for k in positions}
    blocks = block_calls(operations.calls, [k for k in positions if readings[k] is not None])
    names = {last: call.path for call, last in blocks if call.output == last}
    cuts = []
    for order, position in enumerate(positions):
        returned = calls[position].returned if position < len(calls) else None
        layer = make_layer(
            name=names.get(position, operations.nodes[position]),
            node=operations.nodes[position],
            depth=order / (len(positions) - 1),
            shape=returned.shape_of_image if returned else (num_classes,),
            flops=calls[position].flops if position < len(calls) else trial.run.flops,
            reading=readings[position],
        )
        own = (returned.images, returned.dtype, returned.order) if returned else (0, torch.float32, ())
        cuts.append(Cut(position=position, layer=layer, images=own[0], dtype=own[1], order=own[2]))
    return cuts
