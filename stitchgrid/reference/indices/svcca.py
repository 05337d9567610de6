"""SVCCA, Raghu et al. 2017, with variance measured by eigenvalues."""

from math import nan

import torch
from torch import Tensor

READS = "compared"


def svcca(x_ND: Tensor, y_NE: Tensor, *, variance: float) -> dict[str, float]:
    """Return the mean canonical correlation of the top left singular vectors of both layers."""
    top_x_NK, top_y_NL = top_vectors(x_ND - x_ND.mean(0), variance), top_vectors(y_NE - y_NE.mean(0), variance)
    if not top_x_NK.shape[1] or not top_y_NL.shape[1]:
        return {"svcca": nan}
    return {"svcca": torch.linalg.svdvals(top_x_NK.mT @ top_y_NL).clamp(0, 1).mean().item()}


def top_vectors(x_ND: Tensor, variance: float) -> Tensor:
    """Return the fewest left singular vectors (N, K) that carry a share of the variance; none for a layer of zeros."""
    vectors: Tensor
    vectors, scales_D, _ = torch.linalg.svd(x_ND, full_matrices=False)
    squares_D = scales_D.square()
    if not squares_D.sum() > 0:
        return vectors[:, :0]
    enough_D = squares_D.cumsum(0) >= (variance - 1e-12) * squares_D.sum()
    return vectors[:, : int(enough_D.double().argmax()) + 1]
