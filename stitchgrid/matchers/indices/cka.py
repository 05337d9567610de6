"""Linear centred kernel alignment (Kornblith et al. 2019) of flattened layers.

Shape suffixes: N images, P features of a flattened layer (C*H*W, or tokens*D).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_FEATURES = 4096  # columns multiplied at a time: bounds the copies
BLOCK_NUMBERS = 1 << 30  # of a Gram matrix, multiplied with those of another at a time
BLOCK_IMAGES = 256  # rows multiplied with those before them at a time: half of the products are mirror images


def centred_gram(rows_NP: Tensor) -> Tensor:
    """Return the (N, N) float64 Gram matrix of the rows, features centred.

    The square root of a rounded self-product of uncentred float32 features may be that of a negative number. Hence
    each feature's mean, summed in float64, is taken off before the products; these are taken in the rows' own
    precision, a block of features at a time, and summed in float64. What rounding the mean has left of it is the same
    for all images, and is taken off the matrix.

    >>> centred_gram(torch.tensor([[1.0], [3.0], [5.0]])).diagonal().tolist()
    [4.0, 0.0, 4.0]
    """
    num_images = len(rows_NP)
    gram_NN = torch.zeros(num_images, num_images, dtype=torch.float64, device=rows_NP.device)
    for uncentred_NP in torch.split(rows_NP, BLOCK_FEATURES, dim=1):
        mean_P = uncentred_NP.sum(0, dtype=torch.float64) / num_images
        block_NP = uncentred_NP - mean_P.to(rows_NP.dtype)
        for first in range(0, num_images, BLOCK_IMAGES):
            stop = min(first + BLOCK_IMAGES, num_images)
            gram_NN[first:stop, :stop] += block_NP[first:stop] @ block_NP[:stop].mT
    gram_NN = gram_NN.tril() + gram_NN.tril(-1).mT
    mean_N = gram_NN.mean(0)
    return gram_NN - mean_N[:, None] - mean_N + mean_N.mean()


def cka(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the biased linear CKA of two layers from their centred Gram matrices, of each pair: (B,).

    1 for equal ones, in [0, 1]; NaN where a layer does not vary. It is a number about whole activations: the CKA of
    position rows is another one, and the mean over batches a third. It grows as the number of images falls.
    """
    grams = {id(gram_NN): gram_NN for pair in pairs for gram_NN in pair}
    norms = {key: torch.linalg.norm(gram_NN) for key, gram_NN in grams.items()}  # of a layer, not of a pair
    return torch.stack([_inner(x_NN, y_NN) / (norms[id(x_NN)] * norms[id(y_NN)]) for x_NN, y_NN in pairs])


def _inner(x_NN: Tensor, y_NN: Tensor) -> Tensor:
    """Return the sum of all products of two matrices' numbers; `torch.dot` takes no more than 2^31 - 1 of them."""
    blocks = zip(*(torch.split(gram_NN.flatten(), BLOCK_NUMBERS) for gram_NN in (x_NN, y_NN)), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in blocks]).sum()
