"""Orthogonal Procrustes distance (Ding, Denain & Steinhardt 2021), from second moments."""

import torch

from stitchgrid.moments import PairMoments


def procrustes(moments: PairMoments) -> float:
    """Return 2 - 2 ||X'Y||_* for both sides centred and scaled to unit Frobenius norm, in [0, 2].

    No root and no factor 1/2: published variants differ by both. NaN where a layer does not vary.
    """
    norms = moments.xx_DD.trace().sqrt() * moments.yy_EE.trace().sqrt()
    return float(2.0 - 2.0 * torch.linalg.matrix_norm(moments.xy_DE, ord="nuc") / norms)
