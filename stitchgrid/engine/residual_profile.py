"""How a stitch's error grows behind it: relative distance of the stitched h to the target's g at every later layer.

Shape suffixes: S stitched networks, G groups of images, N images, L later layers, K scores.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stitchgrid.engine.groups import Groups, left
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.metrics import RESIDUAL_AT, residual_at
from stitchgrid.records import Cell
from stitchgrid.statistics.base import LayerKey


def later_layers(work: Workspace, target: LayerKey) -> list[LayerKey]:
    """Return the target's selected layers behind one of them, in order of execution."""
    network, layer = target
    return [(network, later) for later in range(layer + 1, len(work.sweep.networks[network].layers))]


def asks_profile(work: Workspace, cell: Cell) -> bool:
    """Return whether a cell asks for the residual at later layers."""
    return RESIDUAL_AT in work.sweep.matchers[cell.matcher].metrics


class Profile:
    """||h_l - g_l||^2 / ||g_l||^2 over all images, uncentred, at every later layer l, for the stitches that ask."""

    def __init__(self, work: Workspace, cells: Sequence[Cell], target: LayerKey, *, groups: Groups):
        self.work, self.target, self.groups = work, target, groups
        self.asking = [position for position, cell in enumerate(cells) if asks_profile(work, cell)]
        self.layers = later_layers(work, target) if self.asking else []
        shape = groups.num, len(cells), len(self.layers)
        self._errors_GSL = torch.zeros(shape, dtype=torch.float64, device=work.device)
        self._norms_GL = self._errors_GSL.new_zeros(groups.num, len(self.layers))

    def begin(self, batch: Batch) -> None:
        """Take the target's own activations of a batch."""
        self._start = batch.start
        self._of_target = [batch.activations[key].double() for key in self.layers]
        for position, b in enumerate(self._of_target):
            self._norms_GL[:, position] += self.groups.sums(b.square().flatten(1).sum(1), self._start)

    def run(self, a: Tensor, part: slice, shape: torch.Size) -> Tensor:
        """Run stacked networks on T(A); return their scores, and add up their errors at the later layers."""
        network, node = self.work.network(self.target[0]), self.work.layer(self.target).node
        if not any(part.start <= position < part.stop for position in self.asking):
            return self.work.tail(self.target)(a)  # type: ignore[no-any-return]
        nodes = [self.work.layer(key).node for key in self.layers]
        if not nodes or nodes[-1] != network.logits:
            nodes.append(network.logits)
        made = network.behind(node, nodes)(a)
        for position, (h, b) in enumerate(zip(made, self._of_target, strict=False)):
            error_SN = (h.unflatten(0, shape).double() - b).square().flatten(2).sum(2)  # type: ignore[no-untyped-call]
            self._errors_GSL[:, part, position] += self.groups.sums(error_SN, self._start)
        return made[-1]

    def metrics(self) -> dict[int, dict[str, float]]:
        """Return the residual at each layer, by the position of the stitches that ask for it; NaN where g is 0."""
        return self._told(_relative(self._errors_GSL.sum(0), self._norms_GL.sum(0)))

    def replicates(self) -> dict[int, dict[str, list[float]]]:
        """Return the residual at each layer without each group of images."""
        return self._told(_relative(left(self._errors_GSL), left(self._norms_GL)[:, None]).permute(1, 2, 0))

    def _told(self, residuals: Tensor) -> dict[int, dict[str, Any]]:
        """Return residuals, (S, L, ...), by position and name."""
        if not self.layers:
            return {}
        told = residuals.tolist()
        names = [residual_at(self.work.layer(key).name) for key in self.layers]
        return {position: dict(zip(names, told[position], strict=True)) for position in self.asking}


def _relative(errors: Tensor, norms: Tensor) -> Tensor:
    return errors / torch.where(norms > 0, norms, torch.nan)
