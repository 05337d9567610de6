"""Projection-weighted canonical correlation analysis (Morcos et al. 2018), from second moments.

Shape suffixes: B pairs, D features of the source, E of the target, K and L their numerical ranks, M = min(K, L).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.indices.mean_cca import CORRELATIONS
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import UP_TO_LINEAR, About, MomentIndex, Sizes, svd_flops

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.canonical import Directions
    from stitchgrid.moments import PairMoments


class PWCCA(MomentIndex[NoParams]):
    """The distance 1 - sum_k alpha_k rho_k, in [0, 1], and with the roles of the layers exchanged.

    NaN where a layer does not vary. rho are the canonical correlations, alpha_k is proportional to sum_j |<h_k, x_j>|
    with h_k the canonical variates of the *source* and x_j its features, over k <= min(rank X, rank Y), and sums to
    one. If correlations below 1 tie, the variates are not unique, nor is the value: rounding decides.

    Unlike the code of Balogh & Jelasity (2025), alpha is not normalised over further, arbitrary variates of a source
    that is wider than the target; unlike other published code, rank is judged relative to the largest eigenvalue.
    """

    axes_of = frozenset({"source", "target"})
    about = About(
        kind="pwcca",
        family="index",
        summary="projection-weighted CCA distance, weighted by the source",
        source="Morcos et al. 2018",
        use=(
            "For layers that are the same up to any linear map; directions are weighted by how much the source uses "
            "them."
        ),
        bias=(
            CORRELATIONS
            + "; the distance is then too low; it is 0 between a layer and its own reduction, so it does not see lost "
            "directions"
        ),
        not_when=(
            "N is not well above D + E: its intervals are then too narrow or too wide (`stitchgrid manual evidence`); "
            "or where (x, y) and (y, x) must give the same value"
        ),
        metrics=tuple(Metric(name=name, better="lower", bounds=UNIT) for name in ("pwcca", "pwcca_reverse")),
        score="pwcca",
        invariances=(frozenset({"shift", "scaling", "permutation"}), UP_TO_LINEAR),
    )

    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return `pwcca` and `pwcca_reverse` of each pair."""
        from stitchgrid.matchers.canonical import all_directions
        from stitchgrid.moments import together

        both_B2 = together(_pwcca, all_directions(pairs), lambda pair: pair.shapes)
        return {"pwcca": both_B2[:, 0], "pwcca_reverse": both_B2[:, 1]}

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the decomposition of a pair's whitened products."""
        return svd_flops(sizes.source, sizes.target)


def _pwcca(pairs: Sequence[Directions]) -> Tensor:
    """Return the distances of pairs with equal widths and ranks, in both directions: (B, 2)."""
    import torch

    from stitchgrid.matchers.canonical import stacked, whitened_products

    whitened_BKL = whitened_products(pairs)
    if not whitened_BKL.numel():
        return whitened_BKL.new_full((len(pairs), 2), torch.nan)
    variates_BKM, correlations_BM, variates_BML = torch.linalg.svd(whitened_BKL, full_matrices=False)
    scales_x_BK, axes_x_BDK = stacked([pair.x for pair in pairs])
    scales_y_BL, axes_y_BEL = stacked([pair.y for pair in pairs])
    forth_B = _distance(axes_x_BDK * scales_x_BK[:, None, :], variates_BKM, correlations_BM)
    back_B = _distance(axes_y_BEL * scales_y_BL[:, None, :], variates_BML.mT, correlations_BM)
    return torch.stack([forth_B, back_B], dim=1)


def _distance(scaled_axes_BDK: Tensor, variates_BKM: Tensor, correlations_BM: Tensor) -> Tensor:
    from stitchgrid.moments import within

    projections_BDM = scaled_axes_BDK @ variates_BKM  # x_j'h_k: the rows of X enter through X'X alone
    weights_BM = projections_BDM.abs().sum(1)
    return within(1.0 - (weights_BM * correlations_BM.clamp(0, 1)).sum(1) / weights_BM.sum(1), 0.0, 1.0)
