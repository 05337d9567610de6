"""Permutation matching: each unit of the source becomes one unit of the target (Li et al. 2015, one to one)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import About, ClosedForm, Fit, Folds, Sizes

if TYPE_CHECKING:
    from stitchgrid.moments import PairMoments


class Permutation(ClosedForm[Rules]):
    """The permutation W, and the free b, that minimise ||A W + b - B||_F on the fit rows.

    It is the assignment of units that maximises the sum of their centred products A'B, not of their correlations. Units
    that never change are interchangeable: which of them goes to which is arbitrary, and changes no residual.
    """

    about = About(
        kind="permutation",
        family="stitcher",
        summary="one unit for one unit, by linear assignment",
        source="Li et al. 2015",
        use="For networks whose units should be the same in another order, such as two seeds of one architecture.",
        bias="the best of many assignments: correlations of matched units are above 0 for unrelated rows",
        not_when=(
            "features are not units, as in the residual stream of a transformer, or their scales differ: the map "
            "neither scales nor mixes units"
        ),
        params=Rules,
        metrics=OF_STITCHERS,
        score="residual",
        invariances=(frozenset({"shift", "permutation"}), frozenset({"permutation"})),
        widths="equal",
    )

    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:  # noqa: ARG002
        """Return the map.

        Raises:
            ValueError: If a product of the layers is not finite.
        """
        import torch
        from scipy.optimize import linear_sum_assignment

        from stitchgrid.matchers.stitchers.affine import AffineMap

        _, columns = linear_sum_assignment(moments.xy_DE.cpu().numpy(), maximize=True)
        unit_DD = torch.eye(len(columns), dtype=moments.xy_DE.dtype, device=moments.xy_DE.device)
        weight_DD = unit_DD[torch.from_numpy(columns).to(unit_DD.device)]
        return Fit(map=AffineMap(weight_DE=weight_DD, bias_E=moments.mean_y_E - moments.mean_x_D @ weight_DD))

    def flops(self, sizes: Sizes) -> float:
        """Return roughly the operations of an assignment."""
        return float(sizes.source**3)
