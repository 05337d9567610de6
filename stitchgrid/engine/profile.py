"""How a stitch's error grows on its way: the relative distance of h to g at every later layer of the target.

Shape suffixes: S stitched networks, N images, K scores.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stitchgrid.engine.workspace import Batch, LayerKey, Workspace
from stitchgrid.matchers.metrics import RESIDUAL_AT, residual_at
from stitchgrid.records import Cell


def later_layers(work: Workspace, target: LayerKey) -> list[LayerKey]:
    """Return the target's selected layers behind one of them, in order of execution."""
    network, layer = target
    return [(network, later) for later in range(layer + 1, len(work.sweep.networks[network].layers))]


def asks_profile(work: Workspace, cell: Cell) -> bool:
    """Return whether a cell asks for the residual at later layers."""
    return RESIDUAL_AT in work.sweep.matchers[cell.matcher].metrics


class Profile:
    """||h_l - g_l||^2 / ||g_l||^2 over all images, uncentred, at every later layer l, for the stitches that ask."""

    def __init__(self, work: Workspace, cells: Sequence[Cell], target: LayerKey):
        self.work, self.target = work, target
        self.asking = [position for position, cell in enumerate(cells) if asks_profile(work, cell)]
        self.layers = later_layers(work, target) if self.asking else []
        zeros = torch.zeros(len(cells), len(self.layers), dtype=torch.float64, device=work.device)
        self._errors, self._norms = zeros, zeros[0].clone() if self.asking else zeros

    def begin(self, batch: Batch) -> None:
        """Take the target's own activations of a batch."""
        self._of_target = [batch.activations[key].double() for key in self.layers]
        for position, b in enumerate(self._of_target):
            self._norms[position] += b.square().sum()

    def run(self, a: Tensor, part: slice, shape: torch.Size) -> Tensor:
        """Return the scores of stacked networks, and take what they make of T(A) at the later layers."""
        network, node = self.work.network(self.target[0]), self.work.layer(self.target).node
        if not any(part.start <= position < part.stop for position in self.asking):
            return self.work.tail(self.target)(a)  # type: ignore[no-any-return]
        nodes = [self.work.layer(key).node for key in self.layers]
        if not nodes or nodes[-1] != network.logits:
            nodes.append(network.logits)
        made = network.behind(node, nodes)(a)
        for position, (h, b) in enumerate(zip(made, self._of_target, strict=False)):
            error_SN = (h.unflatten(0, shape).double() - b).square().flatten(2).sum(2)  # type: ignore[no-untyped-call]
            self._errors[part, position] += error_SN.sum(1)
        return made[-1]

    def metrics(self) -> dict[int, dict[str, float]]:
        """Return the residual at each layer, by the position of the stitches that ask for it; NaN where g is 0."""
        if not self.layers:
            return {}
        undefined = torch.full_like(self._norms, torch.nan)
        told = (self._errors / torch.where(self._norms > 0, self._norms, undefined)).tolist()
        names = [residual_at(self.work.layer(key).name) for key in self.layers]
        return {position: dict(zip(names, told[position], strict=True)) for position in self.asking}
