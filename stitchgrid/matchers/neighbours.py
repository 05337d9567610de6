"""Nearest neighbours among images by cosine, from Gram matrices, shared by the kinds that compare neighbours.

Shape suffixes: N images, K neighbours of each, B pairs of layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.matchers.gram import Gram

Scored = tuple["Neighbours", "Neighbours"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest images of each image in one layer."""

    nearest_NK: Tensor  # positions
    is_near_NN: Tensor  # the same as booleans
    differ: Tensor  # float64: 1 if some images are nearer than others, else NaN


def neighbours_of(gram: Gram, num_neighbours: int) -> Neighbours:
    """Return each image's nearest others by the cosine of uncentred features, the lower position first in ties.

    Distances that differ only by rounding tie.
    """
    distances_NN = gram.resolved(cosine_distances(gram))
    furthest, nearest = distances_NN.fill_diagonal_(-torch.inf).amax(), distances_NN.fill_diagonal_(torch.inf).amin()
    nearest_NK = distances_NN.sort(dim=1, stable=True).indices[:, :num_neighbours].contiguous()
    return Neighbours(
        nearest_NK=nearest_NK,
        is_near_NN=torch.zeros_like(distances_NN, dtype=torch.bool).scatter_(1, nearest_NK, True),
        differ=torch.where(furthest > nearest, 1.0, torch.nan).double(),
    )


def cosine_distances(gram: Gram) -> Tensor:
    """Return 1 - cosine of all pairs of images, (N, N); 1 for pairs with an image of zeros, as in scikit-learn."""
    assert gram.mean_N is not None
    assert gram.spread_N is not None
    norms_N = (gram.num_features * gram.mean_N.square() + gram.spread_N).sqrt()
    is_zero_N = norms_N == 0
    distances_NN = gram.one_less_cosine(gram.distances_NN, norms_N)
    return distances_NN.masked_fill(is_zero_N[:, None] | is_zero_N, 1.0)


def shared_counts(pairs: Sequence[Scored]) -> Tensor:
    """Return how many neighbours of each image are the same in both layers, (B, N); NaN if none are nearer."""
    counts = [x.is_near_NN.gather(1, y.nearest_NK).sum(1, dtype=torch.float64) * x.differ * y.differ for x, y in pairs]
    return torch.stack(counts)
