"""Reduced-rank regression, Izenman 1975."""

import numpy as np
import torch
from torch import Tensor


def reduced_rank(a_RD: Tensor, b_RE: Tensor, *, map_rank: int) -> tuple[Tensor, Tensor]:
    """Return least squares followed by the projection on the top principal axes of the fitted rows."""
    a, b = ((rows - rows.mean(0)).cpu().numpy() for rows in (a_RD, b_RE))
    full = np.linalg.pinv(a, rcond=1e-6) @ b
    axes = np.linalg.svd(a @ full, full_matrices=False)[2][:map_rank]
    weight_DE = torch.from_numpy(full @ axes.T @ axes).to(a_RD)
    return weight_DE, b_RE.mean(0) - a_RD.mean(0) @ weight_DE
