"""Orthogonal matching: the best map that keeps all lengths and angles of the source (Schonemann 1966)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import About, ClosedForm, Fit, Folds, Sizes, svd_flops

if TYPE_CHECKING:
    from stitchgrid.moments import PairMoments

ZERO = 1e-12  # singular values below this share of the largest do not determine their directions


class Orthogonal(ClosedForm[Rules]):
    """The W with orthonormal rows, and the free b, that minimise ||A W + b - B||_F on the fit rows.

    W = U V' of the singular value decomposition of the centred A'B. It is the minimiser if the target is at least as
    wide as the source. Directions in which A'B is zero are mapped arbitrarily, and the cell is flagged.
    """

    about = About(
        kind="orthogonal",
        family="stitcher",
        summary="rotation and shift by orthogonal Procrustes analysis",
        source="Schonemann 1966",
        use=(
            "For layers that should agree up to a rotation: the map can neither stretch nor drop a feature, so it "
            "overfits less."
        ),
        bias="the residual on the fit rows is too low where N is below the number of features",
        not_when=(
            "the scales of the two layers, or of their features, differ much: the map neither shrinks nor stretches"
        ),
        params=Rules,
        metrics=OF_STITCHERS,
        score="residual",
        invariances=(
            frozenset({"shift", "permutation", "rotation"}),
            frozenset({"permutation", "rotation"}),
        ),
        widths="not narrower",
    )

    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:  # noqa: ARG002
        """Return the map."""
        import torch

        from stitchgrid.matchers.stitchers.affine import AffineMap

        left_DD, values_D, right_DE = torch.linalg.svd(moments.xy_DE, full_matrices=False)
        weight_DE = left_DD @ right_DE
        return Fit(
            map=AffineMap(weight_DE=weight_DE, bias_E=moments.mean_y_E - moments.mean_x_D @ weight_DE),
            doubts={"underdetermined": (values_D <= ZERO * values_D[:1]).any()},
        )

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the decomposition of A'B."""
        return svd_flops(sizes.source, sizes.target)
