"""Soft matching, Khosla & Williams 2024, as a linear program."""

from math import nan

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron, vstack
from torch import Tensor

READS = "compared"
CONSTANT = 1e-10  # share of the largest deviation up to which a unit's deviation is rounding


def soft_matching(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return the maximum of sum_ij T_ij corr(x_i, y_j) over T >= 0 of row sums 1/D and column sums 1/E."""
    units = []
    for rows in (x_ND.cpu().numpy(), y_NE.cpu().numpy()):
        centred = rows - rows.mean(0)
        lengths = np.linalg.norm(centred, axis=0)
        if not (np.ptp(rows, axis=0) > 0).any():
            return {"soft_matching": nan}
        varies = (np.ptp(rows, axis=0) > 0) & (lengths > CONSTANT * lengths.max())
        units.append(np.divide(centred, lengths, out=np.zeros_like(centred), where=varies))
    correlations_DE = units[0].T @ units[1]
    width_x, width_y = correlations_DE.shape
    of_rows = kron(eye_array(width_x), np.ones((1, width_y)))
    of_columns = kron(np.ones((1, width_x)), eye_array(width_y))
    sums = np.concatenate([np.full(width_x, 1 / width_x), np.full(width_y, 1 / width_y)])
    found = linprog(-correlations_DE.ravel(), A_eq=vstack([of_rows, of_columns]), b_eq=sums, method="highs")
    assert found.success, found.message
    return {"soft_matching": -float(found.fun)}
