"""Ridge regression between the two representations, with a given strength or one from cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stitchgrid.matchers.metrics import FROM_ZERO, OF_STITCHERS, Metric
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, ClosedForm, Fit, Folds, Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.stitchers.affine import AffineMap
    from stitchgrid.moments import PairMoments

NUM_FOLDS = 5  # groups of fit images, each left out once: image k belongs to group k modulo their number
STRENGTHS = tuple(10.0**power for power in range(-8, 3))  # tried, weakest first
EQUAL = 1e-12  # relative difference of errors that is within rounding
STRENGTH = Metric(name="strength", better="neither", bounds=FROM_ZERO, has_replicates=False, has_null=False)


class RidgeParams(Rules):
    """Least squares with a penalty on large weights."""

    strength: Literal["cv"] | Annotated[float, Field(ge=0)] = "cv"
    """of the penalty, in units of the mean variance of the source's features; `cv`: by cross-validation"""


class Ridge(ClosedForm[RidgeParams]):
    """The W and b that minimise ||A W + b - B||^2 + strength * tr(A'A) / C * ||W||^2 on the fit rows.

    A and B are centred, C is the source's width, and b is not penalised. Cross-validation takes the strength of
    `STRENGTHS` whose maps have the lowest squared error on groups of fit images that they were not fitted on; of equal
    errors (to 1e-12) the strongest. A strength at an end of the list is flagged `strength_at_end`: the best may lie
    outside of it.
    """

    axes_of = frozenset({"source"})
    about = About(
        kind="ridge",
        family="stitcher",
        summary="affine map by ridge regression, with cross-validation",
        source="Hoerl & Kennard 1970",
        use=(
            "Least squares for few fit images: the penalty keeps the map small. By default the strengths 1e-8 to 1e2 "
            "are tried on fifths of the fit images left out; the metric `strength` says which was taken."
        ),
        bias=(
            'the map shrinks towards the mean of the target; `strength = "cv"` chooses how much, on rows left out of '
            "the fit"
        ),
        not_when=(
            "you want the residual of the best affine map: use `direct`; with many images the two agree, with few they "
            "do not"
        ),
        params=RidgeParams,
        metrics=(*OF_STITCHERS, STRENGTH),
        score="residual",
        invariances=(UP_TO_ROTATION, UP_TO_ROTATION - {"shift"}),
    )

    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:
        """Return the map with its strength.

        Raises:
            ValueError: If cross-validation has fewer than two groups of images.
        """
        import torch

        from stitchgrid.matchers.stitchers.affine import squared_error

        if self.params.strength != "cv":
            strength = moments.xy_DE.new_tensor(self.params.strength)
            return Fit(map=_ridge(moments, strength), values={"strength": strength})
        if not folds:
            raise ValueError("cross-validation of ridge needs 2 fit images at least; give a strength, or more images.")
        strengths_S = moments.xy_DE.new_tensor(STRENGTHS)
        errors = [
            torch.stack([squared_error(_ridge(training, strength), left_out) for training, left_out in folds]).sum()
            for strength in strengths_S
        ]
        errors_S = torch.stack(errors)
        equals_S = errors_S <= (1 + EQUAL) * errors_S.min()
        best = len(STRENGTHS) - 1 - equals_S.flip(0).int().argmax()  # the last of them: `argmax` takes the first
        strength = strengths_S[best]
        at_end = (best == 0) | (best == len(STRENGTHS) - 1)
        return Fit(map=_ridge(moments, strength), values={"strength": strength}, doubts={"strength_at_end": at_end})

    def refit(self, fit: Fit, moments: PairMoments) -> AffineMap:
        """Return the map for other rows, with the strength of `fit`."""
        return _ridge(moments, fit.values["strength"])

    @property
    def num_folds(self) -> int:
        """Number of groups into which fit images are divided for cross-validation; 0 if the strength is given."""
        return NUM_FOLDS if self.params.strength == "cv" else 0

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the maps that are tried."""
        num_maps = 1 + self.num_folds * len(STRENGTHS)
        return num_maps * 6.0 * sizes.source**2 * sizes.target


def _ridge(moments: PairMoments, strength: Tensor) -> AffineMap:
    from stitchgrid.matchers.stitchers.affine import AffineMap

    values_K, axes_DK = moments.x.axes
    penalty = strength * moments.xx_DD.trace() / len(moments.xx_DD)
    weight_DE = axes_DK @ ((axes_DK.mT @ moments.xy_DE) / (values_K + penalty)[:, None])
    return AffineMap(weight_DE=weight_DE, bias_E=moments.mean_y_E - moments.mean_x_D @ weight_DE)
