"""Small functions that many definitions share."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOTHING = 1e-24  # above half of the squared distance that rounding leaves between two equal unit vectors
TIE = 1e-12  # difference of distances, as a share of their mean, that is within rounding
RANK = 1e-12  # singular values squared below this share of the largest are rounding


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN unless `whole` is positive."""
    return part / whole if whole > 0 else float("nan")


def mean(hits_N: Tensor) -> float:
    """Return the share of hits."""
    return hits_N.double().mean().item()


def total_variance(x_ND: Tensor) -> float:
    """Return the trace of the scatter matrix: the sum of squared distances from the mean row."""
    return (x_ND - x_ND.mean(0)).square().sum().item()


def orthonormal(x_RD: Tensor) -> Tensor:
    """Return an orthonormal basis (R, K) of the columns, K their numerical rank."""
    basis_RD: Tensor
    basis_RD, scales_D, _ = torch.linalg.svd(x_RD, full_matrices=False)
    keeps_D: Tensor = (scales_D.square() > RANK * scales_D[:1].square()) & (scales_D > 0)
    return basis_RD[:, keeps_D]


def without_rounding(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return distances of unit vectors in multiples of 1e-12 of their mean, so that equal ones tie."""
    distances = np.where(distances > NOTHING, distances, 0.0)
    return np.round(distances / (TIE * (distances.mean() or 1.0)))
