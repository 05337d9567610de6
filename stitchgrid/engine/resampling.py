"""Resampling of rows from one layout to another: `resize_rows` as a linear operator L, with its adjoint L'.

Products of rows on more positions do not need these rows themselves: (Lx)'y = x'(L'y), and (Lx)'(Lx) = x'(L'Lx).

Resizing treats the two sides of a grid separately, so on positions L is the Kronecker product of two small matrices, as
are L' and L'L. A target's prefix tokens (or a target vector) are made of the source's *summary*: its prefix tokens and
the mean of its positions. On a CPU torch's own kernels for bilinear interpolation, which skip the many zeros among L's
weights, are up to twelve times as fast as products with L's matrices. On a GPU the kernel for L' would sum in an order
that changes from run to run, so matrices are used there.

Shape suffixes: N images, P rows of the source, Q of the target, J those of them made of the summary, S rows of the
summary, D features, H and W the sides of a grid.
"""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stitchgrid.matchers.alignment import on_sides, resize_rows, side_weights
from stitchgrid.matchers.layouts import Grid, Layout, keeps_means
from stitchgrid.matchers.params import Rules

# Time that a kernel takes for one position of its result (L) or of its input (L'), in multiplications of a product.
# Measured with 26 images of 32 features, grids of 4 x 4 to 30 x 30, one thread of an AMD EPYC.
KERNEL_COST, ADJOINT_KERNEL_COST = 5, 8


@lru_cache(maxsize=1024)
def resampling(source: Layout, target: Layout, rules: Rules, device: torch.device) -> "Resampling":
    """Return the operator between two layouts, whose matrices are brought to a device once."""
    return Resampling(source, target, rules, device=device)


class Resampling:
    """The operator between two layouts, in float64."""

    def __init__(self, source: Layout, target: Layout, rules: Rules, *, device: torch.device):
        self.source, self.target = source, target
        #: Whether L's weights sum to one for each row, so that means stay means.
        self.keeps_means = keeps_means(target, rules)
        self._head_JS = _head(source, target, rules).to(device)
        source_grid, target_grid = source.grid or (1, 1), target.grid or (0, 0)
        sides = zip(source_grid, target_grid, strict=True)
        self._there_HW = [side_weights(*lengths, rules).to(device) for lengths in sides]
        self._back_HW = [side.mT.contiguous() for side in self._there_HW]
        self._there_and_back_HW = [side.mT @ side for side in self._there_HW]
        has_kernels = device.type == "cpu" and rules.resize == "bilinear" and None not in (source.grid, target.grid)
        costs = KERNEL_COST * prod(target_grid), ADJOINT_KERNEL_COST * prod(target_grid)
        self._resizes = has_kernels and costs[0] < _cost(source_grid, target_grid)
        self._returns = has_kernels and costs[1] < _cost(target_grid, source_grid)
        self._goes_both_ways = self._resizes and self._returns and sum(costs) < _cost(source_grid, source_grid)

    def matvec(self, x_NPD: Tensor) -> Tensor:
        """Return Lx: (N, Q, D)."""
        laid_NQD = self._resized(x_NPD[:, self.source.num_prefix :])
        return torch.cat([self._made(x_NPD), laid_NQD], dim=1) if len(self._head_JS) else laid_NQD

    def rmatvec(self, y_NQD: Tensor) -> Tensor:
        """Return L'y: (N, P, D)."""
        num_made = len(self._head_JS)
        return self._joined(y_NQD[:, :num_made], self._returned(y_NQD[:, num_made:]))

    def normal(self, x_NPD: Tensor) -> Tensor:
        """Return L'Lx: (N, P, D)."""
        positions_NPD = x_NPD[:, self.source.num_prefix :]
        if self._goes_both_ways:
            returned_NPD = self._returned(self._resized(positions_NPD))
        else:
            returned_NPD = on_sides(self._there_and_back_HW, positions_NPD)
        return self._joined(self._made(x_NPD), returned_NPD)

    def _resized(self, x_NPD: Tensor) -> Tensor:
        """Return positions of the source's grid, resized to the target's grid."""
        if not self._resizes:
            return on_sides(self._there_HW, x_NPD)
        assert self.source.grid is not None
        assert self.target.grid is not None
        return _rows(interpolate(_maps(x_NPD, self.source.grid), self.target.grid, mode="bilinear"))

    def _returned(self, y_NQD: Tensor) -> Tensor:
        """Return the part of L'y that falls on the positions of the source's grid."""
        if not self._returns:
            return on_sides(self._back_HW, y_NQD)
        assert self.source.grid is not None
        assert self.target.grid is not None
        maps_NDHW, shape = _maps(y_NQD, self.target.grid), (len(y_NQD), y_NQD.shape[2], *self.source.grid)
        return _rows(torch.ops.aten.upsample_bilinear2d_backward(maps_NDHW, self.target.grid, shape, False))

    def _made(self, x_NPD: Tensor) -> Tensor:
        """Return the rows made of the source's summary: (N, J, D)."""
        if not len(self._head_JS):
            return x_NPD[:, :0]
        prefix_NSD, positions_NPD = x_NPD[:, : self.source.num_prefix], x_NPD[:, self.source.num_prefix :]
        return self._head_JS @ torch.cat([prefix_NSD, positions_NPD.mean(1, keepdim=True)], dim=1)

    def _joined(self, made_NJD: Tensor, positions_NPD: Tensor) -> Tensor:
        """Return rows of the source's layout: L'y of its summary and of its positions, joined."""
        num_prefix = self.source.num_prefix
        if not num_prefix and not made_NJD.shape[1]:
            return positions_NPD
        summary_NSD = self._head_JS.mT @ made_NJD
        positions_NPD += summary_NSD[:, num_prefix:] / positions_NPD.shape[1]
        return torch.cat([summary_NSD[:, :num_prefix], positions_NPD], dim=1)


def _head(source: Layout, target: Layout, rules: Rules) -> Tensor:
    """Return the weights of the source's summary in a target's prefix, or in a target vector: (J, S)."""
    num_prefix = source.num_prefix
    summaries_PS = torch.zeros(source.num_rows, num_prefix + 1, dtype=torch.float64)
    summaries_PS[:num_prefix, :num_prefix] = torch.eye(num_prefix)
    summaries_PS[num_prefix:, num_prefix] = 1.0
    num_made = target.num_rows if target.grid is None else target.num_prefix
    return resize_rows(summaries_PS[None], source, target, rules)[0, :num_made].contiguous()


def _cost(source_grid: Grid, target_grid: Grid) -> int:
    """Return how many multiplications per feature `on_sides` needs to resize one grid to another."""
    return target_grid[0] * source_grid[0] * source_grid[1] + prod(target_grid) * source_grid[1]


def _maps(x_NPD: Tensor, grid: Grid) -> Tensor:
    """Return positions as maps: a view, in the channels-last memory format, for which torch has the faster kernels."""
    return x_NPD.reshape(len(x_NPD), *grid, -1).permute(0, 3, 1, 2)


def _rows(maps_NDHW: Tensor) -> Tensor:
    return maps_NDHW.permute(0, 2, 3, 1).flatten(1, 2)
