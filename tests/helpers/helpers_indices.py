"""The indices by their definitions, on explicit float64 matrices of the same rows."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def hsic_cka(x: Matrix, y: Matrix) -> float:
    """Kornblith et al. 2019, as written: tr(KHLH) with the n x n centring matrix H."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    gram_x, gram_y = x @ x.T, y @ y.T
    hsic = lambda a, b: np.trace(a @ h @ b @ h)  # noqa: E731
    return float(hsic(gram_x, gram_y) / np.sqrt(hsic(gram_x, gram_x) * hsic(gram_y, gram_y)))


def span(x: Matrix) -> Matrix:
    """Return an orthonormal basis of the centred columns, judged by singular values of the explicit matrix."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return u[:, s > 1e-6 * s[0]]


def explicit_pwcca(x: Matrix, y: Matrix) -> float:
    """Morcos et al. 2018, as written: CCA by SVD of orthonormal bases, variates as n-vectors."""
    basis_x, basis_y = span(x), span(y)
    u, rho, _ = np.linalg.svd(basis_x.T @ basis_y, full_matrices=False)
    assert len(rho) == min(basis_x.shape[1], basis_y.shape[1])
    variates = basis_x @ u
    alpha = np.abs(variates.T @ (x - x.mean(0))).sum(1)
    return float(1 - (alpha / alpha.sum() * rho).sum())


def unit(x: Matrix) -> Matrix:
    centred = x - x.mean(0)
    return centred / np.linalg.norm(centred)


def explicit_procrustes(x: Matrix, y: Matrix) -> float:
    return float(2 - 2 * np.linalg.svd(unit(x).T @ unit(y), compute_uv=False).sum())
