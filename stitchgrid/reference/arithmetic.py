"""Small things that many definitions share."""

import torch
from torch import Tensor

RANK = 1e-12  # singular values squared below this share of the largest are rounding


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN where that is undefined."""
    return part / whole if whole > 0 else float("nan")


def mean(hits_N: Tensor) -> float:
    """Return the share of hits."""
    return hits_N.double().mean().item()


def total_variance(x_ND: Tensor) -> float:
    """Return the trace of the covariance."""
    return (x_ND - x_ND.mean(0)).square().sum().item()


def orthonormal(x_RD: Tensor) -> Tensor:
    """Return an orthonormal basis (R, K) of the columns, K their numerical rank."""
    basis_RD: Tensor
    basis_RD, scales_D, _ = torch.linalg.svd(x_RD, full_matrices=False)
    keeps_D: Tensor = (scales_D.square() > RANK * scales_D[:1].square()) & (scales_D > 0)
    return basis_RD[:, keeps_D]
