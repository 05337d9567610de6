"""Linear CKA by the unbiased HSIC of Song et al. 2012."""

from math import nan, sqrt

from torch import Tensor

READS = "flattened"
ROUNDING = 1e-9  # of a self-HSIC, as a share of the matrix's square


def cka_unbiased(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), signed."""
    k_NN, l_NN = hollow_gram(x_ND), hollow_gram(y_NE)
    squares = [hsic(gram, gram) for gram in (k_NN, l_NN)]
    wholes = [(gram**2).sum().item() / len(gram) ** 2 for gram in (k_NN, l_NN)]
    if not all(square > ROUNDING * whole for square, whole in zip(squares, wholes, strict=True)):
        return {"cka_unbiased": nan}
    return {"cka_unbiased": hsic(k_NN, l_NN) / (sqrt(squares[0]) * sqrt(squares[1]))}


def hollow_gram(x_ND: Tensor) -> Tensor:
    """Return the Gram matrix of centred features, its diagonal replaced by zeros."""
    x_ND = x_ND - x_ND.mean(0)
    return (x_ND @ x_ND.mT).fill_diagonal_(0.0)


def hsic(k_NN: Tensor, l_NN: Tensor) -> float:
    """Return the unbiased HSIC of two matrices with diagonals of zeros, by explicit traces and sums."""
    n = len(k_NN)
    trace = (k_NN @ l_NN).trace()
    sums = k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k_NN.sum(0) @ l_NN.sum(0)) / (n - 2)
    return ((trace + sums - cross) / (n * (n - 3))).item()
