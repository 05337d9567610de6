"""Maps that are trained, with any kind of adapter, by their formulas.

Shape suffixes: N images, P rows per image, D features of the source, E of the target.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


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
