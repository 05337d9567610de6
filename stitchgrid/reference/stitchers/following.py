"""The loss of kinds that are trained to reproduce the target's own activations, on whole networks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stitchgrid.models.cuts import CutNetwork
from stitchgrid.records import Cell, Sweep


class Follows:
    """What a cell's stitched network h should reproduce: the outputs of g on the same images, unless a kind differs."""

    def __init__(self, network: CutNetwork, cell: Cell, sweep: Sweep, params: dict[str, Any]):
        self.network, self.params = network, params
        record = sweep.networks[cell.target]
        self.node, self.head = record.layers[cell.target_layer].node, record.head
        self.nodes = self.compared()
        self.total, self.num = [torch.zeros((), dtype=torch.float64) for _ in self.nodes], 0

    def compared(self) -> list[str]:
        """Return the nodes at which h and g are compared."""
        return [self.network.logits]

    def measure(self, x: Tensor) -> None:
        """Add up the squared norms of g's activations on some fit images."""
        self.num += len(x)
        sizes = [a.double().square().sum().cpu() for a in self.of_target(x)]
        self.total = [total + size for total, size in zip(self.total, sizes, strict=True)]

    @torch.no_grad()
    def of_target(self, x: Tensor) -> list[Tensor]:
        """Return g's activations at the nodes: (N, P) each."""
        return [a.float().flatten(1) for a in self.network.taps(self.nodes)(x)]

    def of_stitched(self, t: Tensor) -> list[Tensor]:
        """Return h's activations at the nodes from T(A), one after another: (N, P) each."""
        found, at = [], self.node
        for node in self.nodes:
            if node != at:
                [t] = self.network.behind(at, [node])(t)
                at = node
            found.append(t.float().flatten(1))
        return found

    def losses(self, x: Tensor, t: Tensor, labels_N: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of each image, (N,): ||h - g||^2 / ||g||^2, the mean over the nodes."""
        both = zip(self.of_stitched(t), self.of_target(x), self.total, strict=True)
        parts = [(h - g).square().sum(1) / (size / self.num).float() for h, g, size in both]
        return torch.stack(parts).mean(0)

    def wanted(self, x: Tensor, labels_N: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Return what h should reproduce."""
        return self.of_target(x)

    def constant_loss(self, wanted: Sequence[Tensor]) -> float:
        """Return the mean loss of the best constant prediction."""
        shares = [
            (g.double() - g.double().mean(0)).square().sum(1).mean().item() / (size / self.num).item()
            for g, size in zip(wanted, self.total, strict=True)
        ]
        return sum(shares) / len(shares)
