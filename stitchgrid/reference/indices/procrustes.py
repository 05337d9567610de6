"""Orthogonal Procrustes distance, Ding, Denain & Steinhardt 2021."""

import torch
from torch import Tensor

from stitchgrid.reference.arithmetic import ratio

READS = "compared"


def procrustes(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return 2 - 2 ||X'Y||_* of both sides centred and scaled to unit Frobenius norm."""
    x_ND, y_NE = x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)
    norms = x_ND.square().sum().sqrt() * y_NE.square().sum().sqrt()
    return {"procrustes": 2 - 2 * ratio(torch.linalg.svdvals(x_ND.mT @ y_NE).sum().item(), norms.item())}
