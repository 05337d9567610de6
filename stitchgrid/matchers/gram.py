"""Gram matrices of flattened layers: the products of all images with all, from which many indices are made.

Shape suffixes: N images, P features of a flattened layer (C*H*W, or tokens*D).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from stitchgrid.moments import exact_mean

K = TypeVar("K")

Rows = Tensor | Sequence[Tensor]  # (N, P), or some after others: (n, P) each

BLOCK_FEATURES = 4096  # columns multiplied at a time: bounds the copies
LARGEST_POWER = 126  # of two, that float32 has with either sign
SMALLEST_TRACE = 1e-25  # of products of float32 numbers, none of which that counts is too small for float32
ROUNDING = {torch.float32: 2.0**-21, torch.float64: 2.0**-44}  # of products of rows, as a share of their squares
BLOCK_IMAGES = 256  # rows multiplied with those before them at a time: half of the products are mirror images


@dataclass(frozen=True, kw_only=True)
class Gram:
    """What a layer's flattened activations on N images say of these, two by two, all float64."""

    centred_NN: Tensor  # products, each feature's mean taken off
    num_features: int = 0
    #: Of each image, where a kind asks for it: the mean of its numbers, and the sum of their squared distances from it.
    mean_N: Tensor | None = None
    spread_N: Tensor | None = None
    rounding: float = ROUNDING[torch.float32]  # of the products, as a share of the images' squares

    @cached_property
    def distances_NN(self) -> Tensor:
        """Squared Euclidean distances; 0 where it is not more than rounding."""
        squares_N = self.centred_NN.diagonal()
        return self.above_rounding(squares_N[:, None] + squares_N - 2 * self.centred_NN).fill_diagonal_(0.0)

    def of_images(self, images_M: Tensor) -> "Gram":
        """Return what it says of some of the images, in an order of their own, centred on these."""
        centred_MM = _of_images(self.centred_NN, images_M)
        if len(images_M) < len(self.centred_NN):
            mean_M = centred_MM.mean(0)
            centred_MM.sub_(mean_M[:, None]).sub_(mean_M - mean_M.mean())
        found = Gram(
            centred_NN=centred_MM,
            num_features=self.num_features,
            mean_N=None if self.mean_N is None else self.mean_N[images_M],
            spread_N=None if self.spread_N is None else self.spread_N[images_M],
            rounding=self.rounding,
        )
        if "distances_NN" in vars(self):  # they are the same, whatever the mean
            vars(found)["distances_NN"] = _of_images(self.distances_NN, images_M)
        return found

    def above_rounding(self, distances_NN: Tensor) -> Tensor:
        """Return squared distances, or what is left of them, with 0 where that is not more than products' rounding."""
        squares_N = self.centred_NN.diagonal()
        return distances_NN.masked_fill(distances_NN <= self.rounding * (squares_N[:, None] + squares_N), 0.0)

    def one_less_cosine(self, distances_NN: Tensor, lengths_N: Tensor) -> Tensor:
        """Return 1 - cos of all pairs of vectors of which the squared distances and lengths are known; NaN from zeros.

        It is (||u - v||^2 - (||u|| - ||v||)^2) / (2 ||u|| ||v||): a difference of small numbers for vectors that are
        nearly the same, where 1 less a cosine would be one of large ones. 0 and 2 are exact.
        """
        near_NN = self.above_rounding(distances_NN - (lengths_N[:, None] - lengths_N).square())
        far_NN = self.above_rounding((lengths_N[:, None] + lengths_N).square() - distances_NN)
        values_NN = near_NN / (2 * lengths_N[:, None] * lengths_N)
        return values_NN.masked_fill((far_NN == 0) & (near_NN > 0), 2.0)

    def resolved(self, distances: Tensor) -> Tensor:
        """Return distances in whole multiples of what rounding makes of their mean, so that equal ones are."""
        step = 2 * self.rounding * distances.mean()
        return (distances / torch.where(step > 0, step, 1.0)).round()


def _of_images(matrix_NN: Tensor, images_M: Tensor) -> Tensor:
    return matrix_NN.index_select(0, images_M).index_select(1, images_M)


def pairs_of_images(matrix_NN: Tensor) -> Tensor:
    """Return what a matrix has of all pairs of images i < j, row by row.

    >>> pairs_of_images(torch.tensor([[0, 1, 2], [1, 0, 3], [2, 3, 0]])).tolist()
    [1, 2, 3]
    """
    return matrix_NN[torch.ones_like(matrix_NN, dtype=torch.bool).triu(1)]


def spreads(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return each image's mean of its numbers, and their squared distance from it, of parts (n, P): (N,), float64.

    >>> [told_N.tolist() for told_N in spreads([torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 5.0]])])]
    [[2.0, 5.0], [2.0, 0.0]]
    """
    means, squares = [], []
    for part_NP in parts:
        exact_NP = part_NP.double()
        means.append(exact_mean(exact_NP, 1))
        squares.append((exact_NP - means[-1][:, None]).square().sum(1))
    return torch.cat(means), torch.cat(squares)


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


def centred_grams(layers: Mapping[K, Callable[[], Rows]]) -> dict[K, Tensor]:
    """Return the `centred_gram` of the rows that each layer gives when it is asked, once or twice: one transfer."""
    grams = {key: _gram(read()) for key, read in layers.items()}
    traces = torch.stack([gram_NN.trace() for gram_NN in grams.values()]).tolist() if grams else []
    for key, trace in zip(list(grams), traces, strict=True):
        if not SMALLEST_TRACE < trace < torch.inf:
            grams[key] = _scaled_gram(layers[key]())
    return grams


def product_type(dtype: torch.dtype) -> torch.dtype:
    """Return in which precision rows of a type are multiplied: their own, float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _blocks(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a few features of all rows, float32 or more precise, and the means that are to be taken off."""
    parts = [rows] if isinstance(rows, Tensor) else rows
    exact_enough = product_type(parts[0].dtype)
    for first in range(0, parts[0].shape[1], BLOCK_FEATURES):
        some = [part_NP[:, first : first + BLOCK_FEATURES] for part_NP in parts]
        block_NP = (some[0] if len(some) == 1 else torch.cat(some)).to(exact_enough)
        yield block_NP, block_NP.sum(0, dtype=torch.float64) / len(block_NP)


def _gram(rows: Rows) -> Tensor:
    return _centred(block_NP - mean_P.to(block_NP.dtype) for block_NP, mean_P in _blocks(rows))


def _centred(blocks: Iterable[Tensor]) -> Tensor:
    gram_NN = _products(blocks)
    mean_N = gram_NN.mean(0)
    return gram_NN - mean_N[:, None] - mean_N + mean_N.mean()


def _scaled_gram(rows: Rows) -> Tensor:
    """Return the matrix of rows of which float32 does not hold the squares."""
    power = _power_of_two(torch.stack([_largest(*block) for block in _blocks(rows)]).amax())
    scaled = (
        block_NP * (1 / power).to(block_NP.dtype) - (mean_P / power).to(block_NP.dtype)
        for block_NP, mean_P in _blocks(rows)
    )
    return _centred(scaled) * power * power


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
