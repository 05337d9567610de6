"""The affine map of most stitchers, and its errors from second moments.

Shape suffixes: R rows, D features of the source's layer, E of the target's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.moments import PairMoments

ROUNDING = 2.0**-24  # of a float32 number
NEGLIGIBLE = 1e-7  # share of a squared error


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineMap:
    """T(a) = a W + b: a 1x1 convolution on feature maps, one linear map for all tokens."""

    weight_DE: Tensor
    bias_E: Tensor

    def __call__(self, a_RD: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return T(a), (..., E), for rows (..., D), in their own precision, and in `out` if it is given."""
        weight_DE, bias_E = self.weight_DE.to(a_RD.dtype), self.bias_E.to(a_RD.dtype)
        if out is None:
            return a_RD @ weight_DE + bias_E
        return torch.matmul(a_RD, weight_DE, out=out).add_(bias_E)

    def double(self) -> "AffineMap":
        """Return the map in float64, detached from any graph."""
        return AffineMap(weight_DE=self.weight_DE.detach().double(), bias_E=self.bias_E.detach().double())

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that are trained."""
        yield self.weight_DE
        yield self.bias_E

    def frozen(self) -> "AffineMap":
        """Return the map as it is measured."""
        return self.double()


def squared_error(stitch: AffineMap, moments: PairMoments) -> Tensor:
    """Return ||T(A) - B||_F^2 over the rows the moments were summed over."""
    weight_DE, bias_E = stitch.weight_DE.double(), stitch.bias_E.double()
    offset_E = moments.mean_x_D @ weight_DE + bias_E - moments.mean_y_E
    explained = (weight_DE * (moments.xx_DD @ weight_DE - 2.0 * moments.xy_DE)).sum()
    return moments.yy_EE.trace() + explained + moments.num_rows * offset_E.square().sum()


def residual(stitch: AffineMap, moments: PairMoments, *, error: Tensor | None = None) -> Tensor:
    """Return ||T(A) - B||_F^2 / ||B||_F^2, B uncentred: 0 where the map reproduces the target; NaN where B is 0.

    It is a ratio of sums over all rows, so the batch size cannot change it; "DM (struct.)" of Balogh & Jelasity (2025)
    averages the ratio over batches. Rounding may take an exact match to (-1e-12, 0), which is returned as 0. `error` is
    the `squared_error`, if it is known already.
    """
    norm = moments.yy_EE.trace() + moments.num_rows * moments.mean_y_E.square().sum()
    error = squared_error(stitch, moments) if error is None else error
    value = error / torch.where(norm > 0, norm, torch.nan)
    return torch.where((value > -1e-12) & (value < 0), 0.0, value)


def r_squared(stitch: AffineMap, moments: PairMoments, *, error: Tensor | None = None) -> Tensor:
    """Return 1 - ||T(A) - B||^2 / ||B - mean(B)||^2, the mean per feature over these rows; NaN for a constant B.

    `error` is the `squared_error`, if it is known already.
    """
    variance = moments.yy_EE.trace()
    error = squared_error(stitch, moments) if error is None else error
    return 1.0 - error / torch.where(variance > 0, variance, torch.nan)


def is_exact_enough(stitch: AffineMap, moments: PairMoments) -> Tensor:
    """Return whether float32 products of rows give ||T(A) - B||^2 to 1e-7 on the rows the moments were summed over.

    T(A) is a sum of products, each with a rounding error of about 2^-24 of it; the squares of these errors add up. They
    matter if the map is large, or T(A) far from zero, compared with the error T(A) - B.
    """
    weight_DE = stitch.weight_DE.double()
    squares_D = moments.xx_DD.diagonal() / moments.num_rows + moments.mean_x_D.square()
    squares = moments.yy_EE.trace() / moments.num_rows + moments.mean_y_E.square().sum()
    squares = squares + len(weight_DE) * (squares_D @ weight_DE.square()).sum()
    return ROUNDING**2 * squares <= NEGLIGIBLE * squared_error(stitch, moments) / moments.num_rows
