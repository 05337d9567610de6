"""Linear centred kernel alignment (Kornblith et al. 2019) of flattened layers.

Shape suffixes: N images, P features of a flattened layer (C*H*W, or tokens*D).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from stitchgrid.moments import within

K = TypeVar("K")

BLOCK_FEATURES = 4096  # columns multiplied at a time: bounds the copies
BLOCK_NUMBERS = 1 << 30  # of a Gram matrix, multiplied with those of another at a time
LARGEST_POWER = 126  # of two, that float32 has with either sign
SMALLEST_TRACE = 1e-25  # of products of float32 numbers, none of which that counts is too small for float32
BLOCK_IMAGES = 256  # rows multiplied with those before them at a time: half of the products are mirror images


def centred_gram(rows_NP: Tensor) -> Tensor:
    """Return the (N, N) float64 Gram matrix of the rows, features centred.

    The square root of a rounded self-product of uncentred float32 features may be that of a negative number. Hence
    each feature's mean, summed in float64, is taken off before the products; these are taken in the rows' own
    precision, a block of features at a time, and summed in float64. What rounding the mean has left of it is the same
    for all images, and is taken off the matrix. Activations of 1e20 or 1e-40 are finite, their squares are not: where
    these leave the range of float32, rows are multiplied by a power of two first, and the matrix by its inverse.

    >>> centred_gram(torch.tensor([[1.0], [3.0], [5.0]])).diagonal().tolist()
    [4.0, 0.0, 4.0]
    """
    return centred_grams({None: lambda: rows_NP})[None]


def centred_grams(layers: Mapping[K, Callable[[], Tensor]]) -> dict[K, Tensor]:
    """Return the `centred_gram` of the rows that each layer gives when it is asked, once or twice: one transfer."""
    grams = {key: _gram(*_centred(read())) for key, read in layers.items()}
    traces = torch.stack([gram_NN.trace() for gram_NN in grams.values()]).tolist() if grams else []
    for key, trace in zip(list(grams), traces, strict=True):
        if not SMALLEST_TRACE < trace < torch.inf:
            grams[key] = _scaled_gram(*_centred(layers[key]()))
    return grams


def _centred(rows_NP: Tensor) -> tuple[Sequence[Tensor], list[Tensor]]:
    """Return blocks of features of the rows, float32 or more precise, and the means that are to be taken off."""
    exact_enough = torch.promote_types(rows_NP.dtype, torch.float32)
    blocks = torch.split(rows_NP.to(exact_enough), BLOCK_FEATURES, dim=1)
    return blocks, [block_NP.sum(0, dtype=torch.float64) / len(rows_NP) for block_NP in blocks]


def _gram(blocks: Sequence[Tensor], means: Sequence[Tensor]) -> Tensor:
    parts = zip(blocks, means, strict=True)
    gram_NN = _products(block_NP - mean_P.to(block_NP.dtype) for block_NP, mean_P in parts)
    mean_N = gram_NN.mean(0)
    return gram_NN - mean_N[:, None] - mean_N + mean_N.mean()


def _scaled_gram(blocks: Sequence[Tensor], means: Sequence[Tensor]) -> Tensor:
    """Return the matrix of rows of which float32 does not hold the squares."""
    largest = torch.stack([_largest(*block) for block in zip(blocks, means, strict=True)]).amax()
    power = _power_of_two(largest)
    scale = (1 / power).to(blocks[0].dtype)
    return _gram([block_NP * scale for block_NP in blocks], [mean_P / power for mean_P in means]) * power * power


def _products(blocks: Iterable[Tensor]) -> Tensor:
    """Return the products of all rows with all, of blocks of their features: (N, N), float64."""
    total_NN: Tensor | None = None
    for block_NP in blocks:
        num_images = len(block_NP)
        if total_NN is None:
            total_NN = torch.zeros(num_images, num_images, dtype=torch.float64, device=block_NP.device)
        for first in range(0, num_images, BLOCK_IMAGES):
            stop = min(first + BLOCK_IMAGES, num_images)
            total_NN[first:stop, :stop] += block_NP[first:stop] @ block_NP[:stop].mT
    assert total_NN is not None, "rows have at least one feature"
    return total_NN.tril() + total_NN.tril(-1).mT


def _largest(rows_NP: Tensor, mean_P: Tensor) -> Tensor:
    """Return the largest distance of a number from its feature's mean, float64."""
    lowest_P, highest_P = torch.aminmax(rows_NP, dim=0)
    return torch.maximum(highest_P - mean_P, mean_P - lowest_P).amax()


def _power_of_two(number: Tensor) -> Tensor:
    """Return the power of two above a float64 number from 0 on, 1 for 0, as far as float32 has it and its inverse."""
    mantissa, _ = torch.frexp(number)  # a power of two divided by an exponential would not be exact everywhere
    return torch.where(number > 0, number / mantissa, 1.0).clamp(2.0**-LARGEST_POWER, 2.0**LARGEST_POWER)


def cka(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the biased linear CKA of two layers from their centred Gram matrices, of each pair: (B,).

    1 for equal ones, in [0, 1], where rounding cannot bring it out; NaN where a layer does not vary. It is a number
    about whole activations: the CKA of position rows is another one, and the mean over batches a third. It grows as the
    number of images falls.
    """
    grams = {id(gram_NN): gram_NN for pair in pairs for gram_NN in pair}
    norms = {key: torch.linalg.norm(gram_NN) for key, gram_NN in grams.items()}  # of a layer, not of a pair
    found_B = torch.stack([_inner(x_NN, y_NN) / (norms[id(x_NN)] * norms[id(y_NN)]) for x_NN, y_NN in pairs])
    return within(found_B, 0.0, 1.0)


def _inner(x_NN: Tensor, y_NN: Tensor) -> Tensor:
    """Return the sum of all products of two matrices' numbers; `torch.dot` takes no more than 2^31 - 1 of them."""
    blocks = zip(*(torch.split(gram_NN.flatten(), BLOCK_NUMBERS) for gram_NN in (x_NN, y_NN)), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in blocks]).sum()
