"""Means of float64 rows that are exact for equal numbers, and clamping of values that rounding took out of bounds."""

import torch
from torch import Tensor

ROUNDING = 1e-9  # distance beyond a bound up to which a value is set to the bound


def exact_mean(exact: Tensor, dim: int = 0, *, keepdim: bool = False) -> Tensor:
    """Return the mean over float64 rows; the mean of equal float32 numbers is the number itself, so they centre to 0.

    It divides by a tensor, because `Tensor.mean`, and on a GPU also division by a Python number, multiply by a rounded
    reciprocal.
    """
    return exact.sum(dim, keepdim=keepdim) / exact.new_full((), exact.shape[dim])


def within(values: Tensor, lowest: float, highest: float) -> Tensor:
    """Return values, with those that rounding took out of bounds set to the bound; values further out stay visible.

    >>> within(torch.tensor([1 + 1e-12, 1.5, -1e-12], dtype=torch.float64), 0.0, 1.0).tolist()
    [1.0, 1.5, 0.0]
    """
    at_bound = values.clamp(lowest, highest)
    return torch.where((values - at_bound).abs() <= ROUNDING, at_bound, values)
