"""Mean canonical correlation (Raghu et al. 2017), from second moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import UP_TO_LINEAR, About, MomentIndex, Sizes, singular_values_flops

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.moments import PairMoments


CORRELATIONS = (  # how they are biased, for all kinds that are made of them
    "correlations are too high on the rows on which they are fitted: all are 1 where N - 1 <= max(D, E), whatever the "
    "layers hold; take 10 rows or more for each feature"
)


class MeanCCA(MomentIndex[NoParams]):
    """The mean canonical correlation over min(rank X, rank Y), in [0, 1].

    NaN where a layer does not vary.
    """

    axes_of = frozenset({"source", "target"})
    about = About(
        kind="mean_cca",
        family="index",
        summary="mean canonical correlation over the lower rank",
        source="Raghu et al. 2017; Kornblith et al. 2019",
        use="For layers that are the same up to any invertible map of either layer.",
        bias=CORRELATIONS,
        not_when="directions of little variance are noise: they count as much as all other directions",
        metrics=(Metric(name="mean_cca", better="higher", bounds=UNIT),),
        score="mean_cca",
        symmetric=True,
        invariances=(UP_TO_LINEAR, UP_TO_LINEAR),
    )

    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return `mean_cca` of each pair."""
        from stitchgrid.matchers.canonical import all_directions, mean_correlations

        return {"mean_cca": mean_correlations(all_directions(pairs))}

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the singular values of a pair's whitened products."""
        return singular_values_flops(sizes.source, sizes.target)
