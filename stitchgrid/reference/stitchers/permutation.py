"""One unit for one unit, Li et al. 2015."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def permutation(a_RD: Tensor, b_RE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the permutation W and the b that map A nearest to B, by the squared distances of all units."""
    a, b = (rows - rows.mean(0) for rows in (a_RD, b_RE))
    costs = (a[:, :, None] - b[:, None, :]).square().sum(0) if len(a) < 1000 else -2 * a.mT @ b
    rows, columns = linear_sum_assignment(costs.cpu().numpy())
    weight_DE = a_RD.new_zeros(len(rows), len(rows))
    weight_DE[torch.from_numpy(rows), torch.from_numpy(columns)] = 1
    return weight_DE, b_RE.mean(0) - a_RD.mean(0) @ weight_DE
