"""The eigenvectors of a scatter matrix that carry its numerical rank: least squares and CCA agree on it."""

import torch
from torch import Tensor

RCOND = 1e-12  # eigenvalues below this share of the largest are rounding, not variance


def principal_axes(scatter_DD: Tensor, rcond: float = RCOND) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (K,) and eigenvectors (D, K) of a symmetric scatter matrix, largest first, K its rank.

    A matrix of zeros has rank 0.

    >>> values_K, axes_DK = principal_axes(torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)))
    >>> values_K.tolist(), tuple(axes_DK.shape)
    ([4.0, 1.0], (3, 2))
    """
    values_D, axes_DD = torch.linalg.eigh(scatter_DD)
    keep = (values_D > rcond * values_D[-1]) & (values_D > 0)
    return values_D[keep].flip(0), axes_DD[:, keep].flip(1)
