"""Mergeable float64 second moments of two sets of features over the same rows.

Least squares, CCA, Procrustes and linear regression need nothing else, and moments add up over batches, workers and
machines: one pass over the images serves every layer pair, exactly, in memory that does not depend on their number.

Shape suffixes: R rows, X features of all sources side by side, Y features of all targets, D and E those of one layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

NOT_FINITE = "look at the network's weights, and at the job's precision"  # what to do about inf and NaN


RCOND = 1e-12  # eigenvalues below this share of the largest are rounding, not variance


def principal_axes(scatter_DD: Tensor, rcond: float = RCOND) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (K,) and eigenvectors (D, K) of a symmetric scatter matrix, largest first, K its rank.

    A matrix of zeros has rank 0. Least squares and CCA agree on the rank, since both ask here.

    >>> values_K, axes_DK = principal_axes(torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)))
    >>> values_K.tolist(), tuple(axes_DK.shape)
    ([4.0, 1.0], (3, 2))
    """
    values_D, axes_DD = torch.linalg.eigh(scatter_DD)
    keep = (values_D > rcond * values_D[-1]) & (values_D > 0)
    return values_D[keep].flip(0), axes_DD[:, keep].flip(1)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One layer's share of the moments of all its pairs; what depends on it alone is computed once."""

    mean_D: Tensor
    scatter_DD: Tensor  # (x - mean)'(x - mean), a sum, not an average

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Its `principal_axes`."""
        return principal_axes(self.scatter_DD)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMoments:
    """Centred second moments of one layer pair, all float64."""

    num_rows: int
    x: Side
    y: Side
    xy_DE: Tensor

    @property
    def mean_x_D(self) -> Tensor:
        """Mean of the source's rows."""
        return self.x.mean_D

    @property
    def mean_y_E(self) -> Tensor:
        """Mean of the target's rows."""
        return self.y.mean_D

    @property
    def xx_DD(self) -> Tensor:
        """Scatter of the source's rows."""
        return self.x.scatter_DD

    @property
    def yy_EE(self) -> Tensor:
        """Scatter of the target's rows."""
        return self.y.scatter_DD

    def swapped(self) -> "PairMoments":
        """Return the moments with the two sides exchanged."""
        return PairMoments(num_rows=self.num_rows, x=self.y, y=self.x, xy_DE=self.xy_DE.mT)


class MomentSums:
    """Sums over rows of sources `x` (one block of columns each), targets `y`, and all products x'y.

    Products of a source with itself are kept per block, since no index needs those of two different sources.
    Rows are taken about a pivot, the mean of the first rows seen, so that a large offset does not cost precision.

    >>> x, y = torch.randn(100, 5), torch.randn(100, 3)
    >>> whole, half = MomentSums([2, 3], [3]), MomentSums([2, 3], [3])
    >>> whole.add([x[:, :2], x[:, 2:]], [y])
    >>> for part in (slice(0, 50), slice(50, 100)):
    ...     half.add([x[part, :2], x[part, 2:]], [y[part]])
    >>> torch.allclose(whole.pair(1, 0).xy_DE, half.pair(1, 0).xy_DE)
    True
    """

    def __init__(self, x_widths: Sequence[int], y_widths: Sequence[int], *, device: str | torch.device = "cpu"):
        self.num_rows = 0
        self.x_slices = _slices(x_widths)
        self.y_slices = _slices(y_widths)
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        num_x, num_y = sum(x_widths), sum(y_widths)
        self.pivot_x_X, self.pivot_y_Y = zeros(num_x), zeros(num_y)
        self.sum_x_X, self.sum_y_Y = zeros(num_x), zeros(num_y)
        self.xx = [zeros(width, width) for width in x_widths]
        self.yy = [zeros(width, width) for width in y_widths]
        self.xy_XY = zeros(num_x, num_y)
        self._sides: dict[tuple[str, int], Side] = {}  # until more rows come

    def add(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
        """Add rows: one (..., width) tensor per source and per target, of any floating type."""
        x_RX, y_RY = _side_by_side(x), _side_by_side(y)
        if not len(x_RX):
            return
        self._sides.clear()
        if not self.num_rows:
            self.pivot_x_X, self.pivot_y_Y = exact_mean(x_RX), exact_mean(y_RY)
        x_RX -= self.pivot_x_X
        y_RY -= self.pivot_y_Y
        self.num_rows += len(x_RX)
        self.sum_x_X += x_RX.sum(0)
        self.sum_y_Y += y_RY.sum(0)
        for xx, columns in zip(self.xx, self.x_slices, strict=True):
            xx.addmm_(x_RX[:, columns].mT, x_RX[:, columns])
        for yy, columns in zip(self.yy, self.y_slices, strict=True):
            yy.addmm_(y_RY[:, columns].mT, y_RY[:, columns])
        self.xy_XY.addmm_(x_RX.mT, y_RY)

    def merge(self, other: "MomentSums") -> None:
        """Add the rows that `other` has seen; its pivot may differ."""
        if not other.num_rows:
            return
        self._sides.clear()
        if not self.num_rows:
            self.pivot_x_X, self.pivot_y_Y = other.pivot_x_X.clone(), other.pivot_y_Y.clone()
        shift_x_X, shift_y_Y = other.pivot_x_X - self.pivot_x_X, other.pivot_y_Y - self.pivot_y_Y
        rows = other.num_rows
        for mine, theirs, columns in zip(self.xx, other.xx, self.x_slices, strict=True):
            mine.add_(_moved(theirs, rows, other.sum_x_X[columns], shift_x_X[columns]))
        for mine, theirs, columns in zip(self.yy, other.yy, self.y_slices, strict=True):
            mine.add_(_moved(theirs, rows, other.sum_y_Y[columns], shift_y_Y[columns]))
        self.xy_XY += (
            other.xy_XY
            + torch.outer(other.sum_x_X, shift_y_Y)
            + torch.outer(shift_x_X, other.sum_y_Y)
            + rows * torch.outer(shift_x_X, shift_y_Y)
        )
        self.sum_x_X += other.sum_x_X + rows * shift_x_X
        self.sum_y_Y += other.sum_y_Y + rows * shift_y_Y
        self.num_rows += rows

    def pair(self, source: int, target: int) -> PairMoments:
        """Return the centred moments of one source block and one target block.

        Raises:
            ValueError: If no row has been added, or an activation was infinite or NaN.
        """
        if not self.num_rows:
            raise ValueError("moments of a layer pair need at least one row, got none; call add() first.")
        columns_x, columns_y = self.x_slices[source], self.y_slices[target]
        sum_x_D, sum_y_E = self.sum_x_X[columns_x], self.sum_y_Y[columns_y]
        return PairMoments(
            num_rows=self.num_rows,
            x=self._side("x", source, self.pivot_x_X[columns_x], sum_x_D, self.xx[source]),
            y=self._side("y", target, self.pivot_y_Y[columns_y], sum_y_E, self.yy[target]),
            xy_DE=self.xy_XY[columns_x, columns_y] - torch.outer(sum_x_D, sum_y_E) / self.num_rows,
        )

    def _side(self, name: str, position: int, pivot_D: Tensor, sum_D: Tensor, products_DD: Tensor) -> Side:
        if (name, position) not in self._sides:
            if not torch.isfinite(products_DD.trace()):
                raise ValueError(f"moments of a layer pair need finite activations, got inf or NaN; {NOT_FINITE}.")
            self._sides[name, position] = Side(
                mean_D=pivot_D + sum_D / self.num_rows,
                scatter_DD=products_DD - torch.outer(sum_D, sum_D) / self.num_rows,
            )
        return self._sides[name, position]


def exact_mean(exact_RX: Tensor) -> Tensor:
    """Return the mean over float64 rows; that of equal float32 numbers is the number itself, so they centre to 0.

    Hence a division: `Tensor.mean` multiplies by a rounded 1/R on some devices.
    """
    return exact_RX.sum(0) / len(exact_RX)


def pair_moments(x_RD: Tensor, y_RE: Tensor) -> PairMoments:
    """Return the centred moments of two matrices with the same rows."""
    sums = MomentSums([x_RD.shape[1]], [y_RE.shape[1]], device=x_RD.device)
    sums.add([x_RD], [y_RE])
    return sums.pair(0, 0)


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """Return float64 rows with the features of all tensors, copied once whatever their strides."""
    widths = [tensor.shape[-1] for tensor in tensors]
    rows = torch.empty(*tensors[0].shape[:-1], sum(widths), dtype=torch.float64, device=tensors[0].device)
    for tensor, columns in zip(tensors, _slices(widths), strict=True):
        rows[..., columns] = tensor
    return rows.flatten(0, -2)


def _slices(widths: Sequence[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]


def _moved(products: Tensor, rows: int, total: Tensor, shift: Tensor) -> Tensor:
    """Return sum (z + shift)(z + shift)' from sum z z', sum z and the number of rows."""
    cross = torch.outer(total, shift)
    return products + cross + cross.mT + rows * torch.outer(shift, shift)
