"""Direct matching: least squares between the two representations, in closed form from second moments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.moments import RCOND, PairMoments

LEAK = 1e-7  # share of the source's variance outside the fitted span from which a fit counts as underdetermined


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectFit:
    """A least-squares map with the span of the source rows it was fitted on."""

    stitch: AffineMap
    axes_DK: Tensor  # orthonormal; K is the numerical rank of the fit rows, whatever `rcond` dropped of it
    mean_D: Tensor
    num_rows: int

    def unseen_share(self, evaluation: PairMoments) -> Tensor:
        """Return the share of the source's variance on the evaluation rows outside of the span of the fit rows.

        All of it where no map could miss the fit rows. Rows are not rank: ten upsampled images give thousands of rows
        and a rank of forty, and channels that are dead on all images need no rows. Hence the judgement is by the fit
        rows' rank, and by what of the evaluation rows lies outside of their span.
        """
        shift_D = evaluation.mean_x_D - self.mean_D
        spread_DD = evaluation.xx_DD + evaluation.num_rows * shift_D.outer(shift_D)
        total = spread_DD.trace()
        if self.axes_DK.shape[1] >= self.num_rows - 1:
            return torch.ones_like(total)
        return 1.0 - (self.axes_DK * (spread_DD @ self.axes_DK)).sum() / total


def fit_direct(moments: PairMoments, *, rcond: float = RCOND) -> DirectFit:
    """Return the W and b that minimise ||A W + b - B||_F on the rows of the moments.

    W = pinv(cov(A)) cov(A, B) with eigenvalues of cov(A) below `rcond` of the largest dropped; b = mean(B) - mean(A) W.
    Source: direct matching of Balogh & Jelasity (2025), who solve float32 `pinv([A 1])` with a tolerance that grows
    with the number of rows; `rcond` reproduces that.
    """
    values_K, axes_DK = moments.x.axes if rcond >= RCOND else moments.x.axes_above(rcond)
    inverse_K = torch.where(values_K > rcond * values_K[:1], values_K.reciprocal(), 0.0)
    weight_DE = axes_DK @ (inverse_K[:, None] * (axes_DK.mT @ moments.xy_DE))
    return DirectFit(
        stitch=AffineMap(weight_DE=weight_DE, bias_E=moments.mean_y_E - moments.mean_x_D @ weight_DE),
        axes_DK=axes_DK,
        mean_D=moments.mean_x_D,
        num_rows=moments.num_rows,
    )
