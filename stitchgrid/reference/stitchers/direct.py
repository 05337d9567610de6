"""Least squares, Balogh & Jelasity 2025."""

import torch
from torch import Tensor


def direct(a_RD: Tensor, b_RE: Tensor, *, rcond: float) -> tuple[Tensor, Tensor]:
    """Return W = pinv(cov A) cov(A, B), eigenvalues below `rcond` of the largest dropped, and b = mean B - mean A W."""
    a_mean_D, b_mean_E = a_RD.mean(0), b_RE.mean(0)
    centred_RD = a_RD - a_mean_D
    covariance_DD, cross_DE = centred_RD.mT @ centred_RD, centred_RD.mT @ (b_RE - b_mean_E)
    weight_DE = torch.linalg.pinv(covariance_DD, rtol=rcond, hermitian=True) @ cross_DE
    return weight_DE, b_mean_E - a_mean_D @ weight_DE
