"""CKA with Gaussian kernels, Kornblith et al. 2019."""

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from stitchgrid.reference.arithmetic import ratio

READS = "flattened"


def cka_rbf(x_ND: Tensor, y_NE: Tensor, *, bandwidth: float) -> dict[str, float]:
    """Return <K, L> / (||K|| ||L||) of the centred kernels exp(-||x - y||^2 / (2 b^2 median))."""
    kernels = [kernel(rows, bandwidth) for rows in (x_ND, y_NE)]
    norms = [kernel_NN.square().sum().sqrt().item() for kernel_NN in kernels]
    return {"cka_rbf": ratio((kernels[0] * kernels[1]).sum().item(), norms[0] * norms[1])}


def kernel(x_ND: Tensor, bandwidth: float) -> Tensor:
    """Return a layer's kernel matrix, centred; zeros where the median distance is 0."""
    distances_M = pdist(x_ND.cpu().numpy(), "sqeuclidean")
    width = 2 * bandwidth**2 * np.median(distances_M)
    kernel_NN = np.exp(-squareform(distances_M) / (width or np.inf))
    centring_NN = np.eye(len(x_ND)) - 1 / len(x_ND)
    return torch.from_numpy(centring_NN @ kernel_NN @ centring_NN * (width > 0))
