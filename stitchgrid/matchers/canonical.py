"""Canonical correlation analysis from second moments, shared by PWCCA, SVCCA and mean CCA.

Shape suffixes: B pairs, D features of the source, E of the target, K and L the directions of each that are used,
M = min(K, L).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.moments import PairMoments, find_axes, together

Axes = tuple[Tensor, Tensor]  # eigenvalues (K,) and eigenvectors (D, K) of a side's scatter, largest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """The moments of a pair of layers, and the principal directions of each layer that are used."""

    moments: PairMoments
    x: Axes
    y: Axes

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of both sides' axes; pairs with equal shapes are decomposed together."""
        return self.x[1].shape, self.y[1].shape


def all_directions(pairs: Sequence[PairMoments]) -> list[Directions]:
    """Return pairs with all directions of each side, up to its numerical rank."""
    find_axes(side for moments in pairs for side in (moments.x, moments.y))
    return [Directions(moments=moments, x=moments.x.axes, y=moments.y.axes) for moments in pairs]


def stacked(axes: Sequence[Axes]) -> tuple[Tensor, Tensor]:
    """Return the square roots of the eigenvalues of all sides, (B, K), and their axes, (B, D, K)."""
    values, vectors = zip(*axes, strict=True)
    return torch.stack(values).sqrt(), torch.stack(vectors)


def whitened_products(pairs: Sequence[Directions]) -> Tensor:
    """Return the products of both sides' whitened directions, (B, K, L), whose singular values are the correlations."""
    scales_x_BK, axes_x_BDK = stacked([pair.x for pair in pairs])
    scales_y_BL, axes_y_BEL = stacked([pair.y for pair in pairs])
    xy_BDE = torch.stack([pair.moments.xy_DE for pair in pairs])
    return (axes_x_BDK.mT @ xy_BDE @ axes_y_BEL) / scales_x_BK[:, :, None] / scales_y_BL[:, None, :]


def mean_correlations(pairs: Sequence[Directions]) -> Tensor:
    """Return the mean canonical correlation of each pair, (B,), over the lower number of directions; NaN if it is 0."""
    return together(_mean_correlations, pairs, lambda pair: pair.shapes)


def _mean_correlations(pairs: Sequence[Directions]) -> Tensor:
    """Return `mean_correlations` of pairs with equal widths and numbers of directions; NaN without directions."""
    products_BKL = whitened_products(pairs)
    if not products_BKL.numel():
        return products_BKL.new_full((len(pairs),), torch.nan)
    correlations_BM: Tensor = torch.linalg.svdvals(products_BKL)
    return correlations_BM.clamp(0.0, 1.0).mean(1)
