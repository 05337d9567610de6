"""Random draws for training maps, from generators with seeds of their own, so that the order of work has no effect."""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import init

from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.records import digest


def seeded(*parts: object) -> torch.Generator:
    """Return a CPU generator whose seed is a digest of the parts."""
    return torch.Generator().manual_seed(int(digest(*map(str, parts))[:15], 16))


def initial_map(num_in: int, num_out: int, *, generator: torch.Generator) -> AffineMap:
    """Return a float32 map, initialised as PyTorch initialises a linear layer or 1x1 convolution of these widths.

    Source: Balogh & Jelasity (2025), who train a 1x1 convolution from its default initialisation.
    """
    weight_ED = torch.empty(num_out, num_in)
    init.kaiming_uniform_(weight_ED, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_in)
    bias_E = torch.empty(num_out).uniform_(-bound, bound, generator=generator)
    return AffineMap(weight_DE=weight_ED.mT.contiguous(), bias_E=bias_E)


def initial_tensors(adapter: str, num_in: int, num_out: int, *, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the initial float32 tensors of an adapter that is not affine, as PyTorch initialises layers.

    They are `weight_1`, `bias_1` and, behind a hidden layer, `weight_2`, `bias_2`. Weights are (in, out), and
    (out, in, 3, 3) for `conv3x3`.
    """
    if adapter == "conv3x3":
        weight = torch.empty(num_out, num_in, 3, 3)
        init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(9 * num_in)
        return {"weight_1": weight, "bias_1": torch.empty(num_out).uniform_(-bound, bound, generator=generator)}
    widths = [num_in, num_out]
    if adapter in ("bottleneck", "mlp"):
        hidden = max(1, min(num_in, num_out) // 4) if adapter == "bottleneck" else max(num_in, num_out)
        widths = [num_in, hidden, num_out]
    found: dict[str, Tensor] = {}
    for number, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        drawn = initial_map(width_in, width_out, generator=generator)
        found |= {f"weight_{number}": drawn.weight_DE, f"bias_{number}": drawn.bias_E}
    if adapter == "affine_bn":  # batch norm subtracts any bias
        del found["bias_1"]
    return found


def image_order(num_images: int, *, seed: int, epoch: int) -> tuple[Tensor, torch.Generator]:
    """Return the order of the images in an epoch, (num_images,), and the generator that augments its batches."""
    generator = seeded("order and augmentation", seed, epoch)
    return torch.randperm(num_images, generator=generator), generator
