"""R^2 of least squares, Kornblith et al. 2019."""

from math import nan

from torch import Tensor

from stitchgrid.reference.arithmetic import orthonormal

READS = "compared"


def linear_regression(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return 1 - ||Y - P Y||^2 / ||Y||^2 for the projection P on the columns of X, both centred."""
    basis_NK, y_NE = orthonormal(x_ND - x_ND.mean(0)), y_NE - y_NE.mean(0)
    whole = y_NE.square().sum().item()
    rest_NE = y_NE - basis_NK @ (basis_NK.mT @ y_NE)
    return {"linear_regression": 1 - rest_NE.square().sum().item() / whole if whole > 0 else nan}
