"""Nearest neighbours among images by cosine, from Gram matrices: what the kinds of neighbourhoods share.

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
    differ: Tensor  # whether some are nearer than others at all: a float64 1, or NaN


def neighbours_of(gram: Gram, num_neighbours: int) -> Neighbours:
    """Return each image's nearest others by the cosine of their features as they are, the lower position first in ties.

    Distances that rounding makes of equal ones tie.
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
    """Return 1 - cosine of all pairs of images, (N, N); 1 from images of zeros, as scikit-learn has it."""
    assert gram.mean_N is not None
    assert gram.spread_N is not None
    norms_N = (gram.num_features * gram.mean_N.square() + gram.spread_N).sqrt()
    is_zero_N = norms_N == 0
    distances_NN = gram.one_less_cosine(gram.distances_NN, norms_N)
    return distances_NN.masked_fill(is_zero_N[:, None] | is_zero_N, 1.0)


def shared_counts(pairs: Sequence[Scored]) -> Tensor:
    """Return how many neighbours each image has in both layers of each pair, (B, N); NaN where none are nearer."""
    counts = [x.is_near_NN.gather(1, y.nearest_NK).sum(1, dtype=torch.float64) * x.differ * y.differ for x, y in pairs]
    return torch.stack(counts)
