"""Gram matrices of flattened layers: the products of all pairs of images, from which many indices are computed.

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

Rows = Tensor | Sequence[Tensor]  # (N, P), or consecutive parts of it, (n, P) each

BLOCK_FEATURES = 4096  # columns multiplied at a time: bounds the copies
LARGEST_POWER = 126  # of two, that float32 has with either sign
SMALLEST_TRACE = 1e-25  # of products of float32 numbers; below it, some that matter may be too small for float32
ROUNDING = {torch.float32: 2.0**-21, torch.float64: 2.0**-44}  # of products of rows, as a share of their squares
BLOCK_IMAGES = 256  # rows multiplied with those before them at a time: half of the products are mirror images


@dataclass(frozen=True, kw_only=True)
class Gram:
    """Products of a layer's flattened activations for all pairs of N images, and what indices need besides; float64."""

    centred_NN: Tensor  # products of features after their means are subtracted
    num_features: int = 0
    #: Of each image, where a kind asks for it: the mean of its numbers, and the sum of their squared distances from it.
    mean_N: Tensor | None = None
    spread_N: Tensor | None = None
    rounding: float = ROUNDING[torch.float32]  # of the products, as a share of the images' squares

    @cached_property
    def distances_NN(self) -> Tensor:
        """Squared Euclidean distances; 0 for those within rounding."""
        squares_N = self.centred_NN.diagonal()
        return self.above_rounding(squares_N[:, None] + squares_N - 2 * self.centred_NN).fill_diagonal_(0.0)

    def of_images(self, images_M: Tensor) -> "Gram":
        """Return the Gram matrix of some of the images, in the order of `images_M`, centred on these images."""
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
        if "distances_NN" in vars(self):  # distances do not depend on the mean
            vars(found)["distances_NN"] = _of_images(self.distances_NN, images_M)
        return found

    def above_rounding(self, distances_NN: Tensor) -> Tensor:
        """Return squared distances, or differences of such, with 0 for those within the rounding of products."""
        squares_N = self.centred_NN.diagonal()
        return distances_NN.masked_fill(distances_NN <= self.rounding * (squares_N[:, None] + squares_N), 0.0)

    def one_less_cosine(self, distances_NN: Tensor, lengths_N: Tensor) -> Tensor:
        """Return 1 - cos of all pairs of vectors from their squared distances and lengths; NaN for zero vectors.

        It is (||u - v||^2 - (||u|| - ||v||)^2) / (2 ||u|| ||v||). For vectors that are nearly equal this is a
        difference of small numbers, which loses fewer digits than 1 - cos. 0 and 2 are exact.
        """
        near_NN = self.above_rounding(distances_NN - (lengths_N[:, None] - lengths_N).square())
        far_NN = self.above_rounding((lengths_N[:, None] + lengths_N).square() - distances_NN)
        values_NN = near_NN / (2 * lengths_N[:, None] * lengths_N)
        return values_NN.masked_fill((far_NN == 0) & (near_NN > 0), 2.0)

    def resolved(self, distances: Tensor) -> Tensor:
        """Return distances as whole multiples of the rounding error of their mean, so that equal ones tie."""
        step = 2 * self.rounding * distances.mean()
        return (distances / torch.where(step > 0, step, 1.0)).round()


def _of_images(matrix_NN: Tensor, images_M: Tensor) -> Tensor:
    return matrix_NN.index_select(0, images_M).index_select(1, images_M)


def pairs_of_images(matrix_NN: Tensor) -> Tensor:
    """Return the entries of a matrix for all pairs of images i < j, row by row.

    >>> pairs_of_images(torch.tensor([[0, 1, 2], [1, 0, 3], [2, 3, 0]])).tolist()
    [1, 2, 3]
    """
    return matrix_NN[torch.ones_like(matrix_NN, dtype=torch.bool).triu(1)]


def spreads(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of each image's numbers, and the sum of their squared distances from it: (N,) each, float64.

    `parts` are (n, P) each, N images in all.

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

    Products of uncentred float32 features can round to negative squares. So each feature's mean, summed in float64, is
    subtracted before the products. The products are computed in the rows' own precision, a block of features at a time,
    and summed in float64. The rounding error of the mean is the same for all images, and is subtracted from the matrix.
    Activations of 1e20 or 1e-40 are finite, but float32 cannot hold their squares. Such rows are divided by a power of
    two first, and the matrix is multiplied by its square.

    >>> centred_gram(torch.tensor([[1.0], [3.0], [5.0]])).diagonal().tolist()
    [4.0, 0.0, 4.0]
    """
    return centred_grams({None: lambda: rows_NP})[None]


def centred_grams(layers: Mapping[K, Callable[[], Rows]]) -> dict[K, Tensor]:
    """Return the `centred_gram` of each layer's rows, which are read once or, out of float32's range, twice."""
    grams = {key: _gram(read()) for key, read in layers.items()}
    traces = torch.stack([gram_NN.trace() for gram_NN in grams.values()]).tolist() if grams else []
    for key, trace in zip(list(grams), traces, strict=True):
        if not SMALLEST_TRACE < trace < torch.inf:
            grams[key] = _scaled_gram(layers[key]())
    return grams


def product_type(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which rows of a type are multiplied: their own, float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _blocks(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of a few features of all rows, in float32 or more precise, each with the means of these features."""
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
    """Return the matrix of rows whose squares float32 cannot hold."""
    power = _power_of_two(torch.stack([_largest(*block) for block in _blocks(rows)]).amax())
    scaled = (
        block_NP * (1 / power).to(block_NP.dtype) - (mean_P / power).to(block_NP.dtype)
        for block_NP, mean_P in _blocks(rows)
    )
    return _centred(scaled) * power * power


def _products(blocks: Iterable[Tensor]) -> Tensor:
    """Return the products of all pairs of rows from blocks of their features: (N, N), float64."""
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
    """Return the power of two above a float64 number, 1 for 0, clamped so that float32 holds it and its inverse."""
    mantissa, _ = torch.frexp(number)  # a power of two divided by an exponential would not be exact everywhere
    return torch.where(number > 0, number / mantissa, 1.0).clamp(2.0**-LARGEST_POWER, 2.0**LARGEST_POWER)
