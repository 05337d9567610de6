"""The span of the rows on which a map was fitted; outside of it, least squares does not determine the map."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.moments import PairMoments

LEAK = 1e-7  # share of the source's variance outside the fitted span from which a fit counts as underdetermined


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The span of a source's fit rows about their mean."""

    axes_DK: Tensor  # orthonormal; K is the numerical rank of the fit rows, even if the fit dropped some axes
    mean_D: Tensor
    num_rows: int

    @property
    def is_whole(self) -> bool:
        """Whether no row of the source can lie outside of it."""
        num_features, rank = self.axes_DK.shape
        return rank == num_features < self.num_rows - 1

    def unseen_share(self, evaluation: PairMoments) -> Tensor:
        """Return the share of the source's variance on the evaluation rows that lies outside of the fit rows' span.

        It is 1 if the rank is so high that a map fits the rows exactly, whatever the target. The number of rows alone
        does not tell: ten upsampled images give thousands of rows with a rank of forty, and channels that are 0 on all
        images need no rows. So it depends on the fit rows' rank, and on the evaluation rows outside of their span.
        """
        shift_D = evaluation.mean_x_D - self.mean_D
        spread_DD = evaluation.xx_DD + evaluation.num_rows * shift_D.outer(shift_D)
        total = spread_DD.trace()
        if self.axes_DK.shape[1] >= self.num_rows - 1:
            return torch.ones_like(total)
        return 1.0 - (self.axes_DK * (spread_DD @ self.axes_DK)).sum() / total
