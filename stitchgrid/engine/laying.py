"""Laying rows of one layout on another, and the way back: `resize_rows` as a linear operator L, with its adjoint.

Products of rows laid on more positions need none of these: (Lx)'y = x'(L'y), and (Lx)'(Lx) = x'(L'Lx).

Resizing treats the two sides of a grid alone, so on positions L is the Kronecker product of two small matrices, as are
L' and L'L; and what a target's prefix tokens (or a target vector) are made of is the source's prefix tokens and the
mean of its positions, its *summary*.

Shape suffixes: N images, P rows of the source, Q of the target, J those of them made of the summary, S rows of the
summary, D features, H and W the sides of a grid.
"""

import torch
from torch import Tensor

from stitchgrid.matchers.alignment import Layout, keeps_means, resize_rows
from stitchgrid.matchers.catalogue import Rules


class Laying:
    """The operator between two layouts, in float64."""

    def __init__(self, source: Layout, target: Layout, rules: Rules, *, device: torch.device):
        self.source, self.target = source, target
        #: Whether L's weights sum to one for each row, so that means stay means.
        self.keeps_means = keeps_means(target, rules)
        self._head_JS = _head(source, target, rules).to(device)
        grids = zip(source.grid or (1, 1), target.grid or (0, 0), strict=True)
        there = [_side(ours, theirs, rules).to(device) for ours, theirs in grids]
        self._there_HW, self._back_HW = there, [side.mT.contiguous() for side in there]
        self._there_and_back_HW = [side.mT @ side for side in there]

    @property
    def enlarges(self) -> bool:
        """Whether the target has more rows."""
        return self.source.num_rows < self.target.num_rows

    def there(self, x_NPD: Tensor) -> Tensor:
        """Return Lx: (N, Q, D)."""
        laid_NQD = _on_sides(self._there_HW, x_NPD[:, self.source.num_prefix :])
        return torch.cat([self._made(x_NPD), laid_NQD], dim=1) if len(self._head_JS) else laid_NQD

    def back(self, y_NQD: Tensor) -> Tensor:
        """Return L'y: (N, P, D)."""
        num_made = len(self._head_JS)
        return self._joined(y_NQD[:, :num_made], _on_sides(self._back_HW, y_NQD[:, num_made:]))

    def there_and_back(self, x_NPD: Tensor) -> Tensor:
        """Return L'Lx: (N, P, D)."""
        returned_NPD = _on_sides(self._there_and_back_HW, x_NPD[:, self.source.num_prefix :])
        return self._joined(self._made(x_NPD), returned_NPD)

    def _made(self, x_NPD: Tensor) -> Tensor:
        """Return the rows made of the source's summary: (N, J, D)."""
        if not len(self._head_JS):
            return x_NPD[:, :0]
        prefix_NSD, positions_NPD = x_NPD[:, : self.source.num_prefix], x_NPD[:, self.source.num_prefix :]
        return self._head_JS @ torch.cat([prefix_NSD, positions_NPD.mean(1, keepdim=True)], dim=1)

    def _joined(self, made_NJD: Tensor, positions_NPD: Tensor) -> Tensor:
        """Return rows of the source's layout: what its summary gets back, and what its positions do."""
        num_prefix = self.source.num_prefix
        if not num_prefix and not made_NJD.shape[1]:
            return positions_NPD
        summary_NSD = self._head_JS.mT @ made_NJD
        positions_NPD += summary_NSD[:, num_prefix:] / positions_NPD.shape[1]
        return torch.cat([summary_NSD[:, :num_prefix], positions_NPD], dim=1)


def _head(source: Layout, target: Layout, rules: Rules) -> Tensor:
    """Return what a target's prefix, or a target vector, is made of: weights of the source's summary, (J, S)."""
    num_prefix = source.num_prefix
    summaries_PS = torch.zeros(source.num_rows, num_prefix + 1, dtype=torch.float64)
    summaries_PS[:num_prefix, :num_prefix] = torch.eye(num_prefix)
    summaries_PS[num_prefix:, num_prefix] = 1.0
    num_made = target.num_rows if target.grid is None else target.num_prefix
    return resize_rows(summaries_PS[None], source, target, rules)[0, :num_made].contiguous()


def _side(ours: int, theirs: int, rules: Rules) -> Tensor:
    """Return the weights by which one side of a grid becomes one of another length: (theirs, ours)."""
    unit_HH = torch.eye(ours, dtype=torch.float64)
    if not theirs:
        return unit_HH[:0]
    column, resized = Layout(num_prefix=0, grid=(ours, 1)), Layout(num_prefix=0, grid=(theirs, 1))
    return resize_rows(unit_HH[None], column, resized, rules)[0].contiguous()


def _on_sides(sides: list[Tensor], x_NPD: Tensor) -> Tensor:
    """Return rows of a grid of positions, multiplied along its height, then its width."""
    high, wide = sides
    num_images, num_features = len(x_NPD), x_NPD.shape[2]
    x_NPD = high @ x_NPD.reshape(num_images, high.shape[1], wide.shape[1] * num_features)
    x_NPD = wide @ x_NPD.reshape(num_images * len(high), wide.shape[1], num_features)
    return x_NPD.reshape(num_images, len(high) * len(wide), num_features)
