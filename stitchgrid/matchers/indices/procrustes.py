"""Orthogonal Procrustes distance (Ding, Denain & Steinhardt 2021), from second moments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stitchgrid.moments import PairMoments, together, within


def procrustes(pairs: Sequence[PairMoments]) -> Tensor:
    """Return 2 - 2 ||X'Y||_* for both sides centred and scaled to unit Frobenius norm, in [0, 2], of each pair: (B,).

    No root and no factor 1/2: published variants differ by both. NaN where a layer does not vary.
    """
    return together(_procrustes, pairs, lambda moments: (moments.xy_DE.shape,))


def _procrustes(pairs: Sequence[PairMoments]) -> Tensor:
    nuclear_B = torch.linalg.svdvals(torch.stack([m.xy_DE for m in pairs])).sum(1)
    variances_2B = torch.stack([torch.stack([m.xx_DD.trace(), m.yy_EE.trace()]) for m in pairs], dim=1)
    return within(2.0 - 2.0 * nuclear_B / variances_2B.sqrt().prod(0), 0.0, 2.0)
