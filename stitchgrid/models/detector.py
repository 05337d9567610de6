"""Networks that learn what a layer's activations look like: classifiers whose energy detects other activations.

Shape suffixes: N images, T tokens, D features, K classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.matchers.alignment import rows_of
from stitchgrid.models.nets.stem_resnet import StemResNet
from stitchgrid.models.weights import load_into
from stitchgrid.records import EnergyRecipe, Layer
from stitchgrid.vision import BasicBlock, EncoderBlock

HEADS = 3  # of attention, as in ViT-Tiny


class Detector(nn.Module):
    """A classifier of one layer's activations, and how well it did on activations it was not trained on."""

    accuracy: Tensor  # on images kept out of training
    sanity_auroc: Tensor  # of those images against outliers of another kind than it was trained on

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.register_buffer("accuracy", torch.full((), torch.nan))
        self.register_buffer("sanity_auroc", torch.full((), torch.nan))

    def forward(self, a: Tensor) -> Tensor:
        """Return class scores of a batch of activations: (N, K)."""
        logits_NK: Tensor = self.body(a)
        return logits_NK

    def score(self, a: Tensor) -> Tensor:
        """Return minus the energy of each activation: log sum exp of the class scores (Liu et al. 2020)."""
        return torch.logsumexp(self(a).float(), dim=1)


class OfMaps(nn.Module):
    """CIFAR's ResNet-18 on maps enlarged to the size of the images (bilinear)."""

    def __init__(self, layer: Layer, recipe: EnergyRecipe, size: tuple[int, int], num_classes: int):
        super().__init__()
        self.layer, self.size = layer, size
        # oneDNN with AVX2 trains strided 1x1 convolutions this narrow past the end of their memory in channels-last
        self.is_narrow = recipe.width < 8
        blocks = [2, 2, 2, 2]
        self.net = StemResNet(BasicBlock, blocks, num_classes=num_classes, width=recipe.width, in_channels=layer.width)

    def forward(self, a: Tensor) -> Tensor:
        """Return class scores."""
        x_NCHW = a.movedim(self.layer.feature_axis, 1)
        x_NCHW = functional.interpolate(x_NCHW, self.size, mode="bilinear", align_corners=False)
        if self.is_narrow:
            x_NCHW = x_NCHW.contiguous()
        logits_NK: Tensor = self.net(x_NCHW)
        return logits_NK


class OfTokens(nn.Module):
    """Blocks of ViT-Tiny, whose first token is classified; a linear layer first adapts features of another width."""

    def __init__(self, layer: Layer, recipe: EnergyRecipe, num_classes: int):
        super().__init__()
        self.layer, hidden = layer, HEADS * recipe.width
        self.widen = nn.Identity() if layer.width == hidden else nn.Linear(layer.width, hidden)
        blocks = (EncoderBlock(HEADS, hidden, 4 * hidden, 0.0, 0.0) for _ in range(recipe.depth))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, a: Tensor) -> Tensor:
        """Return class scores."""
        x_NTD = self.blocks(self.widen(rows_of(a, self.layer)))
        logits_NK: Tensor = self.head(self.norm(x_NTD[:, 0]))
        return logits_NK


class OfVectors(nn.Sequential):
    """Two hidden layers; the paper has no detector of vectors."""

    def __init__(self, layer: Layer, recipe: EnergyRecipe, num_classes: int):
        hidden = 8 * recipe.width
        super().__init__(
            nn.Linear(layer.width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )


def make_detector(layer: Layer, recipe: EnergyRecipe, *, size: tuple[int, int], num_classes: int) -> Detector:
    """Return an untrained detector of a layer's activations; `size` is that of the network's images."""
    if layer.kind == "map":
        return Detector(OfMaps(layer, recipe, size, num_classes))
    if layer.kind == "tokens":
        return Detector(OfTokens(layer, recipe, num_classes))
    return Detector(OfVectors(layer, recipe, num_classes))


def restore_detector(
    layer: Layer, recipe: EnergyRecipe, *, size: tuple[int, int], state: Mapping[str, Tensor]
) -> Detector:
    """Return a detector as it was saved, in eval mode.

    Raises:
        InputError: If the state is that of another detector.
    """
    head = {"map": "body.net.fc.bias", "tokens": "body.head.bias", "vector": "body.4.bias"}[layer.kind]
    num_classes = len(state[head]) if head in state else 1
    detector = make_detector(layer, recipe, size=size, num_classes=num_classes)
    load_into(detector, state, origin="a stored detector")
    return detector.eval().requires_grad_(False)
