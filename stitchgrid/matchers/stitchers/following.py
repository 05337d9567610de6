"""The loss of stitchers that are trained to reproduce the target's own activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stitchgrid.matchers.protocol import Mean, P, Step, Trained

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.records import Head


class Following(Trained[P]):
    """The mean over some layers l of ||h_l - g_l||^2 / ||g_l||^2, the denominators over the fit images."""

    reads_target = True

    def losses(self, step: Step) -> Tensor:
        """Return the relative squared error of each image, the mean over layers."""
        parts = [
            (step.stitched[node].float() - step.target[node]).square().sum(-1) / step.sizes[node]
            for node in step.stitched
        ]
        total_SN: Tensor = sum(parts[1:], parts[0])
        return total_SN / len(parts)

    def followed(self, step: Step) -> Mapping[str, Tensor]:
        """Return the target's activations."""
        return step.target

    def constant_loss(self, means: Mapping[str, Mean], head: Head, sizes: Mapping[str, Tensor]) -> float:  # noqa: ARG002
        """Return the variance of the target's activations over their mean squared norm, the mean over layers."""
        shares = [
            (mean.square - mean.row_P.square().sum()) / sizes[node].to(mean.square) for node, mean in means.items()
        ]
        return float(sum(shares[1:], shares[0]) / len(shares))
