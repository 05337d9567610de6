"""Representational similarity analysis, Kriegeskorte, Mur & Bandettini 2008."""

from math import nan

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import Tensor

from stitchgrid.reference.arithmetic import without_rounding

READS = "flattened"


def rsa(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return Spearman's correlation of the distances 1 - r of all pairs of images."""
    distances = []
    for rows in (x_ND.cpu().numpy(), y_NE.cpu().numpy()):
        if (np.ptp(rows, axis=1) == 0).any():
            return {"rsa": nan}
        centred = rows - rows.mean(1, keepdims=True)
        units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        distances.append(without_rounding(pdist(units, "sqeuclidean") / 2))  # 1 - r with all its digits
    if any(np.ptp(distances_M) == 0 for distances_M in distances):
        return {"rsa": nan}
    return {"rsa": float(spearmanr(*distances).statistic)}
