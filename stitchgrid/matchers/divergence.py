"""Whether a training came to nothing: its loss at the end against that of the best constant prediction."""

import torch
from torch import Tensor

from stitchgrid.records import Head

MIN_LOSS_IMAGES, LOSS_SHARE = 256, 16
LOSS_ROUNDING = 1e-6


def loss_images(num_fit: int, *, num_seen: int) -> int:
    """Return on how many fit images, the first of them, the loss at the end of a training is found.

    All of them where that takes little beside the training, which looks at `num_seen` images in all its epochs:
    otherwise a sixteenth of these, and 256 at least.

    >>> loss_images(200, num_seen=200), loss_images(50_000, num_seen=30 * 50_000), loss_images(3_000, num_seen=15_000)
    (200, 50000, 937)
    """
    return min(num_fit, max(MIN_LOSS_IMAGES, num_seen // LOSS_SHARE))


def constant_loss(labels_N: Tensor, head: Head, num_classes: int = 0) -> float:
    """Return the cross-entropy of the best constant prediction: the entropy of the labels' frequencies, in nats.

    Of a `multilabel` head it is the mean over its labels of the entropy of yes and no.

    >>> round(constant_loss(torch.tensor([0, 1, 0, 1]), Head()), 4)
    0.6931
    """
    shares_K = torch.bincount(labels_N.cpu(), minlength=num_classes).double() / len(labels_N)
    if head.kind == "multilabel":
        return float(-(torch.xlogy(shares_K, shares_K) + torch.xlogy(1 - shares_K, 1 - shares_K)).mean())
    return float(-torch.xlogy(shares_K, shares_K).sum())


def has_diverged(loss: float, constant: float) -> bool:
    """Return whether a training came to nothing: its loss at the end is not finite, or no better than a constant's.

    `loss` is the mean cross-entropy of the stitched network with the map as the last step left it, `constant` the
    `constant_loss`, both on the same fit images, not augmented. A loss that is lower by rounding alone is no better.
    """
    return not loss < constant * (1 - LOSS_ROUNDING)
