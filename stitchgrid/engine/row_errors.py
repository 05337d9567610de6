"""Sums over rows of stitched networks, in float64, by group of images: their variance, and their distance to B.

Shape suffixes: S stitched networks, G groups of images, N images, P rows per image, E features of the target.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stitchgrid.engine.groups import Groups, left
from stitchgrid.matchers.alignment import image_blocks
from stitchgrid.moments import exact_mean


class SpreadSum:
    """Total variance of rows (..., N, P, E), summed in float64 about the first batch's mean, by group of images."""

    def __init__(self, groups: Groups):
        self.groups, self.is_empty = groups, True
        self.num_G = self.pivot = self.total = self.square = torch.zeros(())  # `num_G`: of rows

    def add(self, rows: Tensor, start: int) -> None:
        """Add the rows of N images, the first of which is at position `start`, to each of the leading dimensions."""
        num_images, num_rows = rows.shape[-3:-1]
        exact = rows.double()
        if self.is_empty:
            self.pivot = exact_mean(exact.flatten(-3, -2), -2, keepdim=True).unsqueeze(-2)
            self.num_G = self.total = self.square = rows.new_zeros((), dtype=torch.float64)
            self.is_empty = False
        shifted = exact - self.pivot
        self.num_G = self.num_G + num_rows * self.groups.sums(torch.ones(num_images, device=rows.device), start)
        self.total = self.total + self.groups.sums(shifted.sum(-2).movedim(-2, -1), start)
        self.square = self.square + self.groups.sums(shifted.square().sum((-2, -1)), start)

    def trace(self) -> Tensor:
        """Return the trace of the rows' covariance, one number for each of the leading dimensions."""
        return self._trace(self.num_G.sum(), self.total.sum(0), self.square.sum(0))

    def traces(self) -> Tensor:
        """Return the trace without each group of images, (G, ...)."""
        num = left(self.num_G).view(-1, *[1] * (self.square.dim() - 1))
        return self._trace(num, left(self.total), left(self.square))

    def _trace(self, num: Tensor, total: Tensor, square: Tensor) -> Tensor:
        return square / num - (total / num.unsqueeze(-1)).square().sum(-1)


class RowErrors:
    """Distance of T(A) to B, row by row: of maps that are not affine, and of others if moments of A cost more."""

    def __init__(self, positions: Sequence[int], *, groups: Groups, device: torch.device):
        self.positions, self.groups = list(positions), groups  # among the stitches
        zeros_G = torch.zeros(groups.num, dtype=torch.float64, device=device)
        self._errors = {position: zeros_G.clone() for position in positions}
        self._norm_G = zeros_G.clone()
        self._spread = SpreadSum(groups)

    def begin(self, b_NPE: Tensor, start: int) -> None:
        """Take the target's own rows of a batch."""
        self._start = start
        if self.positions:
            self._norm_G += self.groups.sums(squared_norms(b_NPE), start)
            self._spread.add(b_NPE, start)

    def add(self, position: int, t_NPE: Tensor, b_NPE: Tensor) -> None:
        """Take the rows of one stitch."""
        self._errors[position] += self.groups.sums(squared_norms(t_NPE, b_NPE), self._start)

    def not_finite(self) -> list[int]:
        """Return the positions of stitches for which a row of T(A) or of B is infinite or NaN."""
        if not self.positions:
            return []
        are_finite = torch.stack([errors_G.sum() for errors_G in self._errors.values()]).isfinite().tolist()
        return [position for position, is_finite in zip(self._errors, are_finite, strict=True) if not is_finite]

    def metrics(self) -> dict[int, dict[str, float]]:
        """Return residual and r2 of each; NaN where B is 0, or does not vary."""
        if not self.positions:
            return {}
        variance = self._spread.trace() * self._spread.num_G.sum()
        errors_S = torch.stack([errors_G.sum() for errors_G in self._errors.values()])
        return self._told(self._of(errors_S, self._norm_G.sum(), variance))

    def replicates(self) -> dict[int, dict[str, list[float]]]:
        """Return residual and r2 of each without each group of images."""
        if not self.positions:
            return {}
        variance_G = self._spread.traces() * left(self._spread.num_G)
        errors_SG = torch.stack([left(errors_G) for errors_G in self._errors.values()])
        return self._told(self._of(errors_SG, left(self._norm_G), variance_G))

    @staticmethod
    def _of(errors: Tensor, norm: Tensor, variance: Tensor) -> Tensor:
        """Return residual and r2, side by side behind the stitches: (S, 2, ...)."""
        residual = errors / torch.where(norm > 0, norm, torch.nan)
        share = 1 - errors / torch.where(variance > 0, variance, torch.nan)
        return torch.stack([residual, share], dim=1)

    def _told(self, both: Tensor) -> dict[int, dict[str, Any]]:
        rows = zip(self._errors, both.tolist(), strict=True)  # one transfer for all
        return {position: dict(zip(("residual", "r2"), values, strict=True)) for position, values in rows}


def squared_norms(t_NPE: Tensor, b_NPE: Tensor | None = None) -> Tensor:
    """Return ||t||^2 of each image's rows, or ||t - b||^2: (N,), float64, a few images at a time.

    Differences are taken in the rows' own precision; their rounding errors are in proportion to the differences.
    """
    found = []
    others = [None] * len(t_NPE) if b_NPE is None else image_blocks(b_NPE)
    for some_NPE, other_NPE in zip(image_blocks(t_NPE), others, strict=b_NPE is not None):
        apart = (some_NPE if other_NPE is None else some_NPE - other_NPE).flatten(1).double()
        found.append(torch.linalg.vecdot(apart, apart))
    return torch.cat(found)
