"""Costs of a detector by energy: its size, and the operations to run and to train it."""

from stitchgrid.records import Layer, Sweep
from stitchgrid.statistics.base import num_rows

RESNET18_FLOPS = 1.11e9  # of CIFAR's ResNet-18, 64 wide, for an image of 32x32
RESNET18_PARAMETERS = 11.2e6


def detector_flops(sweep: Sweep, target: int, layer: int) -> float:
    """Return the approximate operations of a layer's detector for one image, in matrix products and convolutions."""
    assert sweep.energy is not None
    recipe, network = sweep.energy.recipe, sweep.networks[target]
    record = network.layers[layer]
    if record.kind == "map":
        _, height, width = network.input_shape
        return RESNET18_FLOPS * (recipe.width / 64) ** 2 * height * width / 32**2
    if record.kind == "tokens":
        num_tokens, hidden = num_rows(record), 3 * recipe.width
        return recipe.depth * (24.0 * num_tokens * hidden**2 + 4.0 * num_tokens**2 * hidden)
    return 2.0 * 8 * recipe.width * (record.width + 8 * recipe.width)


def detector_bytes(sweep: Sweep, layer: Layer) -> int:
    """Return the approximate size in bytes of the weights of a layer's detector."""
    assert sweep.energy is not None
    recipe = sweep.energy.recipe
    if layer.kind == "map":
        return round(4 * RESNET18_PARAMETERS * (recipe.width / 64) ** 2)
    if layer.kind == "tokens":
        return round(4 * 12.0 * recipe.depth * (3 * recipe.width) ** 2)
    return 4 * 8 * recipe.width * (layer.width + 8 * recipe.width)


def training_flops(sweep: Sweep, target: int, layer: int) -> float:
    """Return the operations of training a layer's detector; the backward pass costs twice as much as the forward."""
    assert sweep.energy is not None
    recipe, flops = sweep.energy.recipe, sweep.networks[target].layers[layer].flops
    one = 3 * detector_flops(sweep, target, layer) + flops
    return sweep.energy.num_fit * one * (recipe.epochs + 2 * recipe.finetune_epochs)
