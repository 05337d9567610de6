"""Singular vector canonical correlation analysis (Raghu et al. 2017), from second moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stitchgrid.matchers.indices.mean_cca import CORRELATIONS
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import Params
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, MomentIndex, Sizes, singular_values_flops

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.canonical import Directions
    from stitchgrid.moments import PairMoments

ROUNDING = 1e-12  # of a share of the variance


class TruncationParams(Params):
    """How much of a layer's variance is used."""

    variance: float = Field(default=0.99, gt=0, le=1)
    """share of each layer's variance that is kept"""


class SVCCA(MomentIndex[TruncationParams]):
    """The mean canonical correlation of both layers' top principal components, in [0, 1].

    Of each layer the fewest components are kept that reach the share `variance` of its variance. The share is that of
    the sum of eigenvalues; some published code takes singular values. The mean is over as many correlations as the
    layer with fewer components has components. NaN where a layer does not vary.
    """

    axes_of = frozenset({"source", "target"})
    about = About(
        kind="svcca",
        family="index",
        summary="mean canonical correlation of the principal components that carry most of the variance",
        source="Raghu et al. 2017",
        use="Canonical correlation of the directions that carry the variance.",
        bias=CORRELATIONS,
        not_when=(
            "directions of small variance matter: they are cut away; or where you have no reason for one `variance`: "
            "the value depends on it"
        ),
        params=TruncationParams,
        metrics=(Metric(name="svcca", better="higher", bounds=UNIT),),
        score="svcca",
        symmetric=True,
        invariances=(UP_TO_ROTATION, UP_TO_ROTATION),
    )

    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return `svcca` of each pair."""
        from stitchgrid.matchers.canonical import all_directions, mean_correlations

        return {"svcca": mean_correlations(_truncated(all_directions(pairs), self.params.variance))}

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the singular values of a pair's whitened products, if all components are kept."""
        return singular_values_flops(sizes.source, sizes.target)


def _truncated(pairs: Sequence[Directions], variance: float) -> list[Directions]:
    """Return pairs with the fewest directions of each side that carry a share of its variance: one transfer."""
    import torch

    from stitchgrid.matchers.canonical import Directions

    sides = {id(values_K): values_K for pair in pairs for values_K, _ in (pair.x, pair.y)}
    shares = [values_K.cumsum(0) / values_K.sum() for values_K in sides.values()]
    too_few = torch.stack([(share_K < variance - ROUNDING).sum() for share_K in shares]).tolist()
    kept = {side: num + 1 for side, num in zip(sides, too_few, strict=True)}

    def cut(axes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return axes[0][: kept[id(axes[0])]], axes[1][:, : kept[id(axes[0])]]

    return [Directions(moments=pair.moments, x=cut(pair.x), y=cut(pair.y)) for pair in pairs]
