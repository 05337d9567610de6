"""Reduced-rank regression: the best map whose image has few dimensions (Izenman 1975)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import UP_TO_LINEAR, UP_TO_ROTATION, About, ClosedForm, Fit, Folds, Sizes
from stitchgrid.matchers.stitchers.direct import fit_direct

if TYPE_CHECKING:
    from stitchgrid.moments import PairMoments

EIGEN = 10.0  # operations of an eigendecomposition of a symmetric matrix, in cubes of its side, roughly


class ReducedRankParams(Rules):
    """Least squares of low rank."""

    map_rank: Annotated[int, Field(ge=1)] = 8
    """of the map; `rank` is the source's own reduction"""


class ReducedRank(ClosedForm[ReducedRankParams]):
    """W = W_LS V V', V the top `map_rank` eigenvectors of the centred covariance of the fitted values A W_LS.

    It minimises ||A W + b - B||_F on the fit rows among the maps of that rank; b = mean(B) - mean(A) W.
    """

    axes_of = frozenset({"source"})
    about = About(
        kind="reduced_rank",
        family="stitcher",
        summary="affine map of low rank by least squares",
        source="Izenman 1975",
        use="Least squares through a bottleneck: how many directions does the target need from the source?",
        bias=(
            "the residual on the fit rows is too low, the more so the higher the rank (on arrays, use `residual_on` "
            "with other rows)"
        ),
        not_when=(
            "you have no reason for one rank: the residual falls as the rank grows; compare several `map_rank`, beside "
            "`direct`"
        ),
        params=ReducedRankParams,
        metrics=OF_STITCHERS,
        score="residual",
        invariances=(UP_TO_LINEAR, UP_TO_ROTATION - {"shift"}),
    )

    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:  # noqa: ARG002
        """Return the map with the span of the fit rows."""
        import torch

        from stitchgrid.matchers.stitchers.affine import AffineMap

        best = fit_direct(moments)
        full_DE = best.map.weight_DE
        _, axes_EE = torch.linalg.eigh(full_DE.mT @ moments.xx_DD @ full_DE)
        kept_Er = axes_EE[:, -self.params.map_rank :]
        weight_DE = (full_DE @ kept_Er) @ kept_Er.mT
        bias_E = moments.mean_y_E - moments.mean_x_D @ weight_DE
        return Fit(map=AffineMap(weight_DE=weight_DE, bias_E=bias_E), span=best.span)

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the decomposition of the fitted values' covariance."""
        return EIGEN * sizes.target**3 + 2.0 * sizes.source * sizes.target * (sizes.source + sizes.target)
