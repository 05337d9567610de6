"""Low-rank sources: a layer's rows projected on the top principal axes of its rows on fit images.

Source: the sensitivity test of Ding, Denain & Steinhardt (2021). Their code truncates each batch separately; here the
axes and the mean are those of the fit images, and the mean is added back.

Shape suffixes: R rows, D features of the layer, E of the target's, r directions kept.
"""

from dataclasses import dataclass

from torch import Tensor

from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.moments import PairMoments, Side

TIE = 1e-6  # difference of the eigenvalues at the cut, as a share of the largest, below which rounding decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """x -> (x - m) V V' + m: rows projected on the span of V about the mean of the fit rows, all float64."""

    mean_D: Tensor
    basis_Dr: Tensor  # V, orthonormal columns
    is_tied: bool  # the eigenvalues on both sides of the cut are equal up to rounding
    is_short: bool  # the fit rows have fewer directions than asked for: all of them are kept

    def __call__(self, x_RD: Tensor) -> Tensor:
        """Return rows (..., D) projected, in their own precision."""
        return self.coordinates(x_RD) @ self.basis_Dr.mT.to(x_RD.dtype) + self.mean_D.to(x_RD.dtype)

    def coordinates(self, x_RD: Tensor) -> Tensor:
        """Return (x - m) V of rows (..., D), in their own precision: a rotation of the projected ones about m."""
        return (x_RD - self.mean_D.to(x_RD.dtype)) @ self.basis_Dr.to(x_RD.dtype)

    def of_side(self, side: Side) -> Side:
        """Return the moments that a layer would have if its rows had been projected.

        The rows may have been resampled or pooled before, since a projection of features commutes with averages over
        rows.
        """
        inner_rr = self.basis_Dr.mT @ side.scatter_DD @ self.basis_Dr
        return Side(
            mean_D=self.mean_D + self.basis_Dr @ (self.basis_Dr.mT @ (side.mean_D - self.mean_D)),
            scatter_DD=self.basis_Dr @ inner_rr @ self.basis_Dr.mT,
            basis_Dr=self.basis_Dr,
        )

    def of_moments(self, moments: PairMoments, source: Side | None = None) -> PairMoments:
        """Return the moments that a pair would have if the source's rows had been projected.

        `source` is the source's `of_side`, if it is known already.
        """
        source = source or self.of_side(moments.x)
        xy_DE = self.basis_Dr @ (self.basis_Dr.mT @ moments.xy_DE)
        return PairMoments(num_rows=moments.num_rows, x=source, y=moments.y, xy_DE=xy_DE)

    def before(self, stitch: AffineMap) -> AffineMap:
        """Return the map of unreduced rows that projects them before `stitch`: T'(x) = T((x - m) V V' + m)."""
        weight_DE = self.basis_Dr @ (self.basis_Dr.mT @ stitch.weight_DE)
        bias_E = stitch.bias_E + self.mean_D @ (stitch.weight_DE - weight_DE)
        return AffineMap(weight_DE=weight_DE, bias_E=bias_E)


def reduction_to(rank: int, fit: Side) -> Reduction:
    """Return the projection on the top `rank` principal axes of a layer's fit rows, or on all if there are fewer.

    >>> import torch
    >>> spread = torch.diag(torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64))
    >>> fit = Side(mean_D=torch.ones(3, dtype=torch.float64), scatter_DD=spread)
    >>> reduction_to(1, fit)(torch.tensor([5.0, 2.0, 3.0])).tolist()
    [5.0, 1.0, 1.0]
    """
    values_K, axes_DK = fit.axes
    num_axes = len(values_K)
    is_tied = rank < num_axes and bool(values_K[rank - 1] - values_K[rank] <= TIE * values_K[0])
    return Reduction(
        mean_D=fit.mean_D,
        basis_Dr=axes_DK[:, :rank].contiguous(),
        is_tied=is_tied,
        is_short=num_axes < rank,
    )
