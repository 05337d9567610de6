"""Representational similarity analysis (Kriegeskorte et al. 2008) of Pearson distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.indices.cka import MOST_IMAGES
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import About, GramIndex

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.gram import Gram

ROUNDING = 1e-26  # above the spread of equal float64 numbers about their mean, as a share of their squares


class RSA(GramIndex[NoParams, "Tensor"]):
    """Spearman's correlation of both layers' distances 1 - r_ij of all pairs of images i < j, in [-1, 1].

    r_ij is the correlation of two images' flattened features. Ties get the mean of their ranks; distances that differ
    by a millionth of their mean may tie, since float32 does not show which is the larger. NaN if the features of an
    image are all equal, or all distances are.
    """

    reads_rows = True
    reads_distances = True
    operations_per_pair_of_images = 1600.0
    about = About(
        kind="rsa",
        family="index",
        summary="rank correlation of the distances 1 - r between images, of flattened layers",
        source="Kriegeskorte, Mur & Bandettini 2008",
        use="It shows whether the same images are near each other in both layers, as in neuroscience.",
        bias="about 0 for unrelated rows; pairs of rows are not independent, so the usual p values do not hold",
        not_when=(
            "features have no common scale or no common zero: they are compared with the mean over features, so a "
            "shift of single features changes the value"
        ),
        metrics=(Metric(name="rsa", better="higher", bounds=(-1.0, 1.0), ends=UNIT),),
        score="rsa",
        symmetric=True,
        invariances=(frozenset({"scaling", "permutation"}), frozenset({"scaling", "permutation"})),
        most_images=MOST_IMAGES,
        fewest_images=3,
    )

    def prepare(self, gram: Gram) -> Tensor:
        """Return the ranks of all pairs' distances, centred and scaled to unit length."""
        from stitchgrid.matchers.gram import pairs_of_images

        ranks_M = mean_ranks(gram.resolved(pairs_of_images(pearson_distances(gram))))
        ranks_M -= ranks_M.mean()
        return ranks_M / ranks_M.square().sum().sqrt()

    def compare(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return `rsa` of each pair."""
        import torch

        from stitchgrid.matchers.indices.cka import inner_product
        from stitchgrid.moments import within

        return {"rsa": within(torch.stack([inner_product(x_M, y_M) for x_M, y_M in pairs]), -1.0, 1.0)}

    def prepared_bytes(self, num_images: int) -> int:
        """Return the size of the ranks."""
        return 4 * num_images**2


def pearson_distances(gram: Gram) -> Tensor:
    """Return 1 - r of all pairs of images, (N, N), NaN for images whose features are all equal."""
    import torch

    assert gram.mean_N is not None
    assert gram.spread_N is not None
    varies_N = gram.spread_N > ROUNDING * gram.num_features * gram.mean_N.square()
    lengths_N = torch.where(varies_N, gram.spread_N, torch.nan).sqrt()
    of_means_NN = gram.num_features * (gram.mean_N[:, None] - gram.mean_N).square()
    return gram.one_less_cosine(gram.distances_NN - of_means_NN, lengths_N)


def mean_ranks(values_M: Tensor) -> Tensor:
    """Return the ranks of numbers from 1 on; equal numbers get the mean of their ranks. NaN if any number is NaN.

    >>> import torch
    >>> mean_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist()
    [3.5, 1.0, 3.5, 2.0]
    """
    import torch

    sorted_M, order_M = values_M.sort()
    position_M = torch.arange(len(values_M), device=values_M.device)
    is_first_M = torch.ones_like(position_M, dtype=torch.bool)
    is_first_M[1:] = sorted_M.diff() != 0
    is_last_M = is_first_M.roll(-1)  # wraps around: the last number is the last of its ties
    first_M = torch.where(is_first_M, position_M, 0).cummax(0).values
    last_M = torch.where(is_last_M, position_M, len(values_M) - 1).flip(0).cummin(0).values.flip(0)
    ranks_M = torch.empty_like(values_M, dtype=torch.float64).scatter_(0, order_M, (first_M + last_M).double() / 2 + 1)
    return torch.where(values_M.isnan().any(), torch.nan, ranks_M)
