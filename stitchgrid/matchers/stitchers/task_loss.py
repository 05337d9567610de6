"""Task loss matching: the map is trained on the labels, through the frozen rest of the target."""

import math

import torch
from torch import Tensor
from torch.nn import functional, init

from stitchgrid.matchers.stitchers.affine import AffineMap


def initial_map(num_in: int, num_out: int, *, generator: torch.Generator) -> AffineMap:
    """Return a float32 map initialised as PyTorch does a linear layer or 1x1 convolution of these widths.

    Source: Balogh & Jelasity (2025), who train a 1x1 convolution from its default initialisation.
    """
    weight_ED = torch.empty(num_out, num_in)
    init.kaiming_uniform_(weight_ED, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_in)
    bias_E = torch.empty(num_out).uniform_(-bound, bound, generator=generator)
    return AffineMap(weight_DE=weight_ED.mT.contiguous(), bias_E=bias_E)


def stacked_task_loss(logits_SNK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the sum over S stitched networks of their mean cross-entropy on the same N images of K classes.

    Each network's map enters one term only, so its gradient is what training it alone would give.
    """
    num_stacked = len(logits_SNK)
    return functional.cross_entropy(logits_SNK.flatten(0, 1).float(), labels_N.repeat(num_stacked)) * num_stacked
