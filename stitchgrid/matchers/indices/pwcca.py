"""Projection-weighted canonical correlation analysis (Morcos et al. 2018), from second moments.

Shape suffixes: D features of the source, E of the target, K and L their numerical ranks, M = min(K, L).
"""

from torch import Tensor
from torch.linalg import svd

from stitchgrid.moments import PairMoments


def pwcca(moments: PairMoments) -> tuple[float, float]:
    """Return the distance 1 - sum_k alpha_k rho_k, in [0, 1], and the same with the roles of the layers exchanged.

    NaN where a layer does not vary. rho are the canonical correlations, alpha_k is proportional to sum_j |<h_k, x_j>|
    with h_k the canonical variates of the *source* and x_j its features, over k <= min(rank X, rank Y), and sums to
    one.

    Unlike the code of Balogh & Jelasity (2025), alpha is not normalised over further, arbitrary variates of a source
    that is wider than the target; unlike other published code, rank is judged relative to the largest eigenvalue.
    """
    (values_x_K, axes_x_DK), (values_y_L, axes_y_EL) = moments.x.axes, moments.y.axes
    if not len(values_x_K) or not len(values_y_L):
        return float("nan"), float("nan")
    scales_x_K, scales_y_L = values_x_K.sqrt(), values_y_L.sqrt()
    whitened_KL = (axes_x_DK.mT @ moments.xy_DE @ axes_y_EL) / scales_x_K[:, None] / scales_y_L
    variates_KM, correlations_M, variates_ML = svd(whitened_KL, full_matrices=False)
    return (
        _distance(axes_x_DK * scales_x_K, variates_KM, correlations_M),
        _distance(axes_y_EL * scales_y_L, variates_ML.mT, correlations_M),
    )


def _distance(scaled_axes_DK: Tensor, variates_KM: Tensor, correlations_M: Tensor) -> float:
    projections_DM = scaled_axes_DK @ variates_KM  # x_j'h_k: the rows of X enter through X'X alone
    weights_M = projections_DM.abs().sum(0)
    similarity = (weights_M * correlations_M.clamp(0, 1)).sum() / weights_M.sum()
    return 1.0 - float(similarity)
