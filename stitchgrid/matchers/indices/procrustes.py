"""Orthogonal Procrustes distance (Ding, Denain & Steinhardt 2021), from second moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, MomentIndex, Sizes, singular_values_flops

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.moments import PairMoments


class Procrustes(MomentIndex[NoParams]):
    """2 - 2 ||X'Y||_* for both sides centred and scaled to unit Frobenius norm, in [0, 2].

    No root and no factor 1/2: published variants differ by both. NaN where a layer does not vary.
    """

    about = About(
        kind="procrustes",
        family="index",
        summary="orthogonal Procrustes distance of centred, normalised layers",
        source="Ding, Denain & Steinhardt 2021",
        use="A true distance between layers (its root is a metric): zero up to rotation, shift and scale.",
        bias="with N below the number of features the distance is too low: a rotation fits the rows",
        not_when=(
            "layers differ in more than a rotation that should not count, such as the scale of single units; or where "
            "values between maps of different sizes stand beside those between maps of the same size: the first are "
            "computed from the maps' means, the others position by position"
        ),
        metrics=(Metric(name="procrustes", better="lower", bounds=(0.0, 2.0), ends=(0.0, None)),),
        score="procrustes",
        symmetric=True,
        invariances=(UP_TO_ROTATION, UP_TO_ROTATION),
    )

    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return `procrustes` of each pair."""
        from stitchgrid.moments import together

        return {"procrustes": together(_distances, pairs, lambda moments: (moments.xy_DE.shape,))}

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the singular values of X'Y."""
        return singular_values_flops(sizes.source, sizes.target)


def _distances(pairs: Sequence[PairMoments]) -> Tensor:
    import torch

    from stitchgrid.moments import within

    nuclear_B = torch.linalg.svdvals(torch.stack([m.xy_DE for m in pairs])).sum(1)
    variances_2B = torch.stack([torch.stack([m.xx_DD.trace(), m.yy_EE.trace()]) for m in pairs], dim=1)
    return within(2.0 - 2.0 * nuclear_B / variances_2B.sqrt().prod(0), 0.0, 2.0)
