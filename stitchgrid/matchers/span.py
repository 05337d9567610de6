"""The span of the rows on which a map was fitted, outside of which least squares says nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.moments import PairMoments

LEAK = 1e-7  # share of the source's variance outside the fitted span from which a fit counts as underdetermined


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a source's fit rows lie."""

    axes_DK: Tensor  # orthonormal; K is the numerical rank of the fit rows, whatever a fit dropped of it
    mean_D: Tensor
    num_rows: int

    @property
    def is_whole(self) -> bool:
        """Whether no row of the source can lie outside of it."""
        num_features, rank = self.axes_DK.shape
        return rank == num_features < self.num_rows - 1

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
