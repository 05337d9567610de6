"""Projection-weighted CCA, Morcos et al. 2018."""

from math import nan

from torch import Tensor
from torch.linalg import svd

from stitchgrid.reference.arithmetic import orthonormal

READS = "compared"


def pwcca(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return 1 - sum_k alpha_k rho_k, alpha_k ~ sum_j |<h_k, x_j>| for the variates h_k of the source; and reversed."""
    x_ND, y_NE = x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)
    basis_x_NK, basis_y_NL = orthonormal(x_ND), orthonormal(y_NE)
    if not basis_x_NK.shape[1] or not basis_y_NL.shape[1]:
        return {"pwcca": nan, "pwcca_reverse": nan}
    left_KM, correlations_M, right_ML = svd(basis_x_NK.mT @ basis_y_NL, full_matrices=False)

    def distance(variates_NM: Tensor, features_ND: Tensor) -> float:
        weights_M = (variates_NM.mT @ features_ND).abs().sum(1)
        return 1.0 - float((weights_M * correlations_M.clamp(0, 1)).sum() / weights_M.sum())

    return {
        "pwcca": distance(basis_x_NK @ left_KM, x_ND),
        "pwcca_reverse": distance(basis_y_NL @ right_ML.mT, y_NE),
    }
