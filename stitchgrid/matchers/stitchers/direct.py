"""Direct matching: least squares between the two representations, in closed form from second moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import UP_TO_LINEAR, UP_TO_ROTATION, About, ClosedForm, Fit, Folds

if TYPE_CHECKING:
    from stitchgrid.moments import PairMoments


class DirectParams(Rules):
    """Least squares."""

    rcond: Annotated[float, Field(gt=0, lt=1)] = 1e-12
    """eigenvalues of the source's covariance below this share of the largest are dropped"""


class Direct(ClosedForm[DirectParams]):
    """The W and b that minimise ||A W + b - B||_F on the fit rows.

    W = pinv(cov(A)) cov(A, B) with eigenvalues of cov(A) below `rcond` of the largest dropped; b = mean(B) - mean(A) W.
    Source: direct matching of Balogh & Jelasity (2025), who compute a float32 `pinv([A 1])` with a tolerance that grows
    with the number of rows; `rcond` reproduces that.
    """

    axes_of = frozenset({"source"})
    about = About(
        kind="direct",
        family="stitcher",
        summary="affine map by least squares between the two representations (DM)",
        source="Balogh & Jelasity 2025",
        use=(
            "Direct matching (DM) is the first stitcher to use. It answers: how much of the target's layer is a linear "
            "function of the source's?"
        ),
        bias=(
            "the residual on the fit rows is too low, 0 where N <= D (on arrays, use `residual_on` with other rows); "
            "the map shrinks what it cannot match, so a high accuracy with a small `variance_ratio` says little"
        ),
        not_when=(
            "N is not above D: the map is one of many (`underdetermined`) and fits by chance, and `ridge` is the "
            "better choice"
        ),
        params=DirectParams,
        metrics=OF_STITCHERS,
        score="residual",
        invariances=(UP_TO_LINEAR, UP_TO_ROTATION - {"shift"}),
    )

    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:  # noqa: ARG002
        """Return the map with the span of the fit rows."""
        return fit_direct(moments, rcond=self.params.rcond)


def fit_direct(moments: PairMoments, *, rcond: float = 1e-12) -> Fit:
    """Return the least-squares map of rows with these moments."""
    import torch

    from stitchgrid.matchers.span import Span
    from stitchgrid.matchers.stitchers.affine import AffineMap
    from stitchgrid.moments import RCOND

    values_K, axes_DK = moments.x.axes if rcond >= RCOND else moments.x.axes_above(rcond)
    inverse_K = torch.where(values_K > rcond * values_K[:1], values_K.reciprocal(), 0.0)
    weight_DE = axes_DK @ (inverse_K[:, None] * (axes_DK.mT @ moments.xy_DE))
    return Fit(
        map=AffineMap(weight_DE=weight_DE, bias_E=moments.mean_y_E - moments.mean_x_D @ weight_DE),
        span=Span(axes_DK=axes_DK, mean_D=moments.mean_x_D, num_rows=moments.num_rows),
    )
