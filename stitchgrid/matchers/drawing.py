"""What is drawn at random when maps are trained: from generators that a cell seeds, never from the order of work."""

import math

import torch
from torch import Tensor
from torch.nn import init

from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.records import digest


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
