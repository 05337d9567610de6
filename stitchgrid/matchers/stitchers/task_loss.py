"""Task loss matching: the map is trained on the labels, through the frozen rest of the target."""

import math

import torch
from torch import Tensor
from torch.nn import functional, init

from stitchgrid.matchers.heads import losses
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.records import Head, digest

LOGITS = Head()

MIN_LOSS_IMAGES, LOSS_SHARE = 256, 16
LOSS_ROUNDING = 1e-6


def seeded(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded by a digest of the parts, never by the order in which work is done."""
    return torch.Generator().manual_seed(int(digest(*map(str, parts))[:15], 16))


def initial_map(num_in: int, num_out: int, *, generator: torch.Generator) -> AffineMap:
    """Return a float32 map initialised as PyTorch does a linear layer or 1x1 convolution of these widths.

    Source: Balogh & Jelasity (2025), who train a 1x1 convolution from its default initialisation.
    """
    weight_ED = torch.empty(num_out, num_in)
    init.kaiming_uniform_(weight_ED, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_in)
    bias_E = torch.empty(num_out).uniform_(-bound, bound, generator=generator)
    return AffineMap(weight_DE=weight_ED.mT.contiguous(), bias_E=bias_E)


def image_order(num_images: int, *, seed: int, epoch: int) -> tuple[Tensor, torch.Generator]:
    """Return the order in which an epoch sees its images, and the generator that augments its batches in turn."""
    generator = seeded("order and augmentation", seed, epoch)
    return torch.randperm(num_images, generator=generator), generator


def stacked_task_loss(scores_SNK: Tensor, labels_N: Tensor, head: Head = LOGITS) -> Tensor:
    """Return the sum over S stitched networks of their mean cross-entropy on the same N images, by their target's head.

    Each network's map enters one term only, so its gradient is what training it alone would give.
    """
    num_stacked = len(scores_SNK)
    if head == LOGITS:  # by one operation, forward and backward
        flat = scores_SNK.flatten(0, 1).float()
        return functional.cross_entropy(flat, labels_N.repeat(num_stacked)) * num_stacked
    return losses(scores_SNK.float(), labels_N, head).mean() * num_stacked


def loss_images(num_fit: int, *, num_seen: int) -> int:
    """Return on how many fit images, the first of them, the loss at the end of a training is found.

    All of them where that takes little beside the training, which looks at `num_seen` images in all its epochs:
    otherwise a sixteenth of these, and 256 at least.

    >>> loss_images(200, num_seen=200), loss_images(50_000, num_seen=30 * 50_000), loss_images(3_000, num_seen=15_000)
    (200, 50000, 937)
    """
    return min(num_fit, max(MIN_LOSS_IMAGES, num_seen // LOSS_SHARE))


def constant_loss(labels_N: Tensor, head: Head = LOGITS, num_classes: int = 0) -> float:
    """Return the cross-entropy of the best constant prediction: the entropy of the labels' frequencies, in nats.

    Of a `multilabel` head it is the mean over its labels of the entropy of yes and no.

    >>> round(constant_loss(torch.tensor([0, 1, 0, 1])), 4)
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
