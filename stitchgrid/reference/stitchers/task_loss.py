"""Task loss matching, Balogh & Jelasity 2025."""

from collections.abc import Sequence

from scipy.special import xlogy
from torch import Tensor

from stitchgrid.reference.outputs import loss_of_each
from stitchgrid.reference.stitchers.following import Follows


class FollowsLabels(Follows):
    """The labels."""

    def losses(self, x: Tensor, t: Tensor, labels_N: Tensor) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of h's scores with the labels, (N,)."""
        return loss_of_each(self.of_stitched(t)[0], labels_N, self.head)

    def wanted(self, x: Tensor, labels_N: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Return the labels."""
        return [labels_N]

    def constant_loss(self, wanted: Sequence[Tensor]) -> float:
        """Return the entropy of the labels' frequencies; for `multilabel` the mean over labels of yes and no."""
        shares = [float((wanted[0] == label).double().mean()) for label in range(int(wanted[0].max()) + 1)]
        if self.head.kind == "multilabel":
            return float(sum(-xlogy(p, p) - xlogy(1 - p, 1 - p) for p in shares) / self.network.num_classes)
        return float(sum(-xlogy(p, p) for p in shares))


task_loss = FollowsLabels
