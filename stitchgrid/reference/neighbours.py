"""The nearest neighbours of images."""

import numpy as np
from scipy.spatial.distance import cdist
from torch import Tensor

from stitchgrid.reference.arithmetic import without_rounding


def nearest(x_ND: Tensor, k: int) -> list[set[int]] | None:
    """Return the positions of each image's k nearest others by cosine, the lower position first in ties.

    None if no image is nearer than another.
    """
    rows = x_ND.cpu().numpy()
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    distances_NN = cdist(units, units, "sqeuclidean") / 2  # 1 - cosine with all its digits
    is_zero = norms[:, 0] == 0
    distances_NN[is_zero, :] = distances_NN[:, is_zero] = 1.0
    distances_NN = without_rounding(distances_NN)
    if np.ptp(distances_NN[~np.eye(len(rows), dtype=bool)]) == 0:
        return None
    np.fill_diagonal(distances_NN, np.inf)
    order_NN = np.argsort(distances_NN, axis=1, kind="stable")
    return [set(row[:k].tolist()) for row in order_NN]
