"""What the tests of the models stage share."""

import json

import torch
from torch import nn

from stitchgrid.models.build import make_network
from stitchgrid.records import NetworkSpec


def spec(architecture, *, seed=0, base=".", weights="random", recipe=None, **args):
    """Return a network as a job file would name it."""
    return NetworkSpec(
        name="net",
        entry="net",
        architecture=architecture,
        args=json.dumps(args),
        weights=weights,
        recipe=recipe,
        seed=seed,
        base=str(base),
    )


def stirred(module, *, seed=0):
    """Draw every parameter and statistic, so that no head is zero and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator) - 0.5
                scale = value[0].numel() ** -0.5 if value.dim() > 1 else 1.0
                value.copy_(
                    1 + noise if name.endswith(("running_var", "weight")) and value.dim() == 1 else 3 * scale * noise
                )
    return module


def network(architecture, **args) -> nn.Module:
    return stirred(make_network(spec(architecture, **args)))


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
