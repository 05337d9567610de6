"""Means of float64 rows without rounding where there is none, and values that rounding brought out of their bounds."""

import torch
from torch import Tensor

ROUNDING = 1e-9  # beyond its bounds, up to which an index is at them


def exact_mean(exact: Tensor, dim: int = 0, *, keepdim: bool = False) -> Tensor:
    """Return the mean over float64 rows; that of equal float32 numbers is the number itself, so they centre to 0.

    Hence a division, and by a tensor: `Tensor.mean`, and on a GPU division by a number of the host, multiply by a
    rounded reciprocal.
    """
    return exact.sum(dim, keepdim=keepdim) / exact.new_full((), exact.shape[dim])


def within(values: Tensor, lowest: float, highest: float) -> Tensor:
    """Return values with those that rounding brought out of their bounds at them; what is further out stays to be seen.

    >>> within(torch.tensor([1 + 1e-12, 1.5, -1e-12], dtype=torch.float64), 0.0, 1.0).tolist()
    [1.0, 1.5, 0.0]
    """
    at_bound = values.clamp(lowest, highest)
    return torch.where((values - at_bound).abs() <= ROUNDING, at_bound, values)
