"""Share of the target's variance that is linear in the source (Kornblith et al. 2019), from second moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import UP_TO_LINEAR, UP_TO_ROTATION, About, MomentIndex, Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.moments import PairMoments


class LinearRegression(MomentIndex[NoParams]):
    """R^2 of least squares from the source to the target on the rows compared, with intercept, in [0, 1].

    Features are weighted by their variance: 1 - ||Y - XW||^2 / ||Y||^2, both centred. It is fitted and measured on the
    same rows. NaN where the target does not vary; 0 where only the source does not. Some published code predicts the
    source from the target under this name.
    """

    axes_of = frozenset({"source"})
    about = About(
        kind="linear_regression",
        family="index",
        summary="R^2 of the target from the source by least squares, weighted by variance",
        source="Kornblith et al. 2019",
        use="How much of the target a linear map of the source explains on the same images that it was fitted on.",
        bias=(
            "R^2 on the fit rows is too high, and only grows when features are added: about D / (N - 1) for unrelated "
            "rows, 1 where N - 1 <= D"
        ),
        not_when="N is not well above D: use `r2` of `direct`, which is measured on other images",
        metrics=(Metric(name="linear_regression", better="higher", bounds=UNIT),),
        score="linear_regression",
        invariances=(UP_TO_LINEAR, UP_TO_ROTATION),
    )

    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return `linear_regression` of each pair."""
        from stitchgrid.moments import find_axes, together

        find_axes(moments.x for moments in pairs)
        values_B = together(_r_squared, pairs, lambda moments: (moments.x.axes[1].shape, moments.xy_DE.shape))
        return {"linear_regression": values_B}

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the products of the source's axes with both sides' products."""
        return 2.0 * sizes.source**2 * sizes.target


def _r_squared(pairs: Sequence[PairMoments]) -> Tensor:
    """Return R^2 of pairs of equal widths and ranks of the source, (B,)."""
    import torch

    from stitchgrid.moments import within

    values_BK = torch.stack([moments.x.axes[0] for moments in pairs])
    axes_BDK = torch.stack([moments.x.axes[1] for moments in pairs])
    scores_BKE = axes_BDK.mT @ torch.stack([moments.xy_DE for moments in pairs])
    explained_B = (scores_BKE / values_BK.sqrt()[:, :, None]).square().sum((1, 2))
    variance_B = torch.stack([moments.yy_EE.trace() for moments in pairs])
    return within(explained_B / variance_B, 0.0, 1.0)
