"""Mean canonical correlation, Raghu et al. 2017."""

from math import nan

import torch
from torch import Tensor

from stitchgrid.reference.arithmetic import orthonormal

READS = "compared"


def mean_cca(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return the mean of the min(rank X, rank Y) canonical correlations."""
    basis_x_NK, basis_y_NL = orthonormal(x_ND - x_ND.mean(0)), orthonormal(y_NE - y_NE.mean(0))
    if not basis_x_NK.shape[1] or not basis_y_NL.shape[1]:
        return {"mean_cca": nan}
    return {"mean_cca": torch.linalg.svdvals(basis_x_NK.mT @ basis_y_NL).clamp(0, 1).mean().item()}
