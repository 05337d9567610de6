"""Orthogonal Procrustes analysis, Schonemann 1966."""

import numpy as np
import torch
from torch import Tensor


def orthogonal(a_RD: Tensor, b_RE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the W with orthonormal rows and the b that map A nearest to B: the polar factor of the centred A'B."""
    a, b = (rows - rows.mean(0) for rows in (a_RD, b_RE))
    left, _, right = np.linalg.svd((a.mT @ b).cpu().numpy(), full_matrices=False)
    weight_DE = torch.from_numpy(left @ right).to(a_RD)
    return weight_DE, b_RE.mean(0) - a_RD.mean(0) @ weight_DE
