"""Projection-weighted canonical correlation analysis (Morcos et al. 2018), from second moments.

Shape suffixes: D features of the source, E of the target, K and L their numerical ranks, M = min(K, L).
"""

from torch import Tensor
from torch.linalg import svd

from stitchgrid.matchers.spectral import principal_axes
from stitchgrid.moments import PairMoments


def pwcca(moments: PairMoments) -> float:
    """Return the distance 1 - sum_k alpha_k rho_k, in [0, 1]; NaN where a layer does not vary.

    rho are the canonical correlations, alpha_k is proportional to sum_j |<h_k, x_j>| with h_k the canonical variates
    of the *source* and x_j its features, over k <= min(rank X, rank Y), and sums to one.

    Unlike the code of Balogh & Jelasity (2025), alpha is not normalised over further, arbitrary variates of a source
    that is wider than the target; unlike other published code, rank is judged relative to the largest eigenvalue.
    """
    values_x_K, axes_x_DK = principal_axes(moments.xx_DD)
    values_y_L, axes_y_EL = principal_axes(moments.yy_EE)
    if not len(values_x_K) or not len(values_y_L):
        return float("nan")
    scales_x_K, scales_y_L = values_x_K.sqrt(), values_y_L.sqrt()
    whitened_KL = (axes_x_DK.mT @ moments.xy_DE @ axes_y_EL) / scales_x_K[:, None] / scales_y_L
    variates_KM, correlations_M, _ = svd(whitened_KL, full_matrices=False)
    projections_DM: Tensor = (axes_x_DK * scales_x_K) @ variates_KM  # x_j'h_k: the rows of X enter through X'X alone
    weights_M = projections_DM.abs().sum(0)
    similarity = (weights_M * correlations_M.clamp(0, 1)).sum() / weights_M.sum()
    return 1.0 - float(similarity)
