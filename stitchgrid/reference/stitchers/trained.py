"""The losses of trained kinds, on whole networks: labels, soft labels, final features, later blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.special import xlogy
from torch import Tensor
from torch.nn import functional as F

from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.select import later_blocks
from stitchgrid.records import Cell, Sweep
from stitchgrid.reference.outputs import loss_of_each


class TextbookMap:
    """A map with any kind of adapter, by its formula."""

    def __init__(self, kind: str, start: Mapping[str, Tensor], *, grid: tuple[int, int] | None = None):
        self.kind, self.start, self.grid = kind, dict(start), grid
        if kind == "affine_bn":
            width = start["weight_1"].shape[1]
            self.start |= {"scale": torch.ones(width), "shift": torch.zeros(width)}
            self.mean, self.variance = torch.zeros(width), torch.ones(width)

    def to(self, device: torch.device) -> None:
        """Bring the map to a device, on which it is then trained."""
        there = {name: tensor.detach().float().to(device) for name, tensor in self.start.items()}
        self.at = {name: tensor.clone().requires_grad_() for name, tensor in there.items()}
        if self.kind == "affine_bn":
            self.mean, self.variance = self.mean.to(device), self.variance.to(device)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are trained."""
        return list(self.at.values())

    def trained(self, a_NPD: Tensor) -> Tensor:
        """Return T(A) in training: batch norm by the batch, whose statistics enter the running ones by a tenth."""
        t_NPE = self._before_norm(a_NPD, self.at)
        if self.kind != "affine_bn":
            return t_NPE
        rows = t_NPE.flatten(0, 1)
        mean, variance = rows.mean(0), rows.var(0, correction=0)
        self.mean = 0.9 * self.mean + 0.1 * mean.detach()
        self.variance = 0.9 * self.variance + 0.1 * rows.var(0, correction=1).detach()
        return self.at["scale"] * (t_NPE - mean) / (variance + 1e-5).sqrt() + self.at["shift"]

    @torch.no_grad()
    def measured(self, a_NPD: Tensor) -> Tensor:
        """Return T(A) of the trained map, in the precision of the rows."""
        at = {name: tensor.detach().to(a_NPD.dtype) for name, tensor in self.at.items()}
        t_NPE = self._before_norm(a_NPD, at)
        if self.kind != "affine_bn":
            return t_NPE
        return at["scale"] * (t_NPE - self.mean) / (self.variance + 1e-5).sqrt() + at["shift"]

    def _before_norm(self, a_NPD: Tensor, at: Mapping[str, Tensor]) -> Tensor:
        if self.kind == "conv3x3":
            assert self.grid is not None
            maps = a_NPD.mT.reshape(len(a_NPD), -1, *self.grid)
            return F.conv2d(maps, at["weight_1"], at["bias_1"], padding=1).flatten(2).mT
        t_NPE = a_NPD @ at["weight_1"] + at.get("bias_1", 0)
        if "weight_2" in at:
            t_NPE = t_NPE.clamp_min(0) @ at["weight_2"] + at["bias_2"]
        return t_NPE


class Follows:
    """What the stitched network h of a cell should reproduce: the labels, or activations of g on the same images."""

    def __init__(self, network: CutNetwork, cell: Cell, sweep: Sweep, params: dict[str, Any]):
        self.network, self.params, self.kind = network, params, sweep.matchers[cell.matcher].kind
        record = sweep.networks[cell.target]
        self.node, self.head = record.layers[cell.target_layer].node, record.head
        self.nodes = self._nodes()
        self.total, self.num = [torch.zeros((), dtype=torch.float64) for _ in self.nodes], 0

    def _nodes(self) -> list[str]:
        """Return the nodes at which h and g are compared."""
        order, end = [cut.node for cut in self.network.cuts], self.network.logits
        if self.kind == "final_feature":
            able = [cut.node for cut in self.network.cuts if cut.can_be_stitched and cut.node != end]
            return [able[-1] if able and order.index(able[-1]) > order.index(self.node) else self.node]
        if self.kind == "functional_alignment":
            return [self.node, *later_blocks(self.network, self.node)]
        return [end]

    def measure(self, x: Tensor) -> None:
        """Add up the squared norms of g's activations on some fit images."""
        self.num += len(x)
        sizes = [a.double().square().sum().cpu() for a in self._of_target(x)]
        self.total = [total + size for total, size in zip(self.total, sizes, strict=True)]

    @torch.no_grad()
    def _of_target(self, x: Tensor) -> list[Tensor]:
        return [a.float().flatten(1) for a in self.network.taps(self.nodes)(x)]

    def _of_stitched(self, t: Tensor) -> list[Tensor]:
        """Return h's activations at the nodes from T(A), one after another: (N, P) each."""
        found, at = [], self.node
        for node in self.nodes:
            if node != at:
                [t] = self.network.behind(at, [node])(t)
                at = node
            found.append(t.float().flatten(1))
        return found

    def losses(self, x: Tensor, t: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss of each image: (N,)."""
        if self.kind == "task_loss":
            return loss_of_each(self._of_stitched(t)[0], labels_N, self.head)
        if self.kind == "soft_label" and self.head.has_classes:
            wanted, said = self._answers(self._of_target(x)[0]), self._answers(self._of_stitched(t)[0])
            return -(wanted * said.log()).sum((1, 2)) / wanted.shape[1]
        both = zip(self._of_stitched(t), self._of_target(x), self.total, strict=True)
        parts = [(h - g).square().sum(1) / (size / self.num).float() for h, g, size in both]
        return torch.stack(parts).mean(0)

    def _answers(self, scores_NK: Tensor) -> Tensor:
        """Return probabilities of all answers to each question, (N, Q, A): one question, or one a label."""
        if self.head.kind in ("binary", "multilabel"):
            odds = torch.logit(scores_NK, eps=torch.finfo(torch.float32).eps) if self.head.is_probability else scores_NK
            yes = torch.sigmoid(odds / self.params["temperature"])
            return torch.stack([yes, 1 - yes], dim=2)
        if self.head.is_probability:
            scores_NK = scores_NK.clamp_min(torch.finfo(torch.float32).tiny).log()
        return F.softmax(scores_NK / self.params["temperature"], dim=1)[:, None]

    def wanted(self, x: Tensor, labels_N: Tensor) -> list[Tensor]:
        """Return what h should reproduce."""
        if self.kind == "task_loss":
            return [labels_N]
        of_target = self._of_target(x)
        return [self._answers(of_target[0])] if self.kind == "soft_label" and self.head.has_classes else of_target

    def constant_loss(self, wanted: Sequence[Tensor]) -> float:
        """Return the mean loss of the best constant prediction."""
        if self.kind == "task_loss":
            shares = [float((wanted[0] == label).double().mean()) for label in range(int(wanted[0].max()) + 1)]
            if self.head.kind == "multilabel":
                return float(sum(-xlogy(p, p) - xlogy(1 - p, 1 - p) for p in shares) / self.network.num_classes)
            return float(sum(-xlogy(p, p) for p in shares))
        if self.kind == "soft_label" and self.head.has_classes:
            mean_QA = wanted[0].double().mean(0).cpu().numpy()
            return float(-xlogy(mean_QA, mean_QA).sum(1).mean())
        shares = [
            (g.double() - g.double().mean(0)).square().sum(1).mean().item() / (size / self.num).item()
            for g, size in zip(wanted, self.total, strict=True)
        ]
        return sum(shares) / len(shares)
