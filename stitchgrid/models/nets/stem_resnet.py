"""ImageNet's residual networks adapted to small images: a 3x3 stem without stride, and no max pooling."""

from functools import partial
from typing import Any

from torch import nn

from stitchgrid.vision import BasicBlock, Bottleneck, ResNet

_TORCHVISION_WIDTH = 64


class StemResNet(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """Torchvision's ResNet with a 3x3 stem and any width; parameter names are torchvision's."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: list[int],
        *,
        num_classes: int = 10,
        width: int = _TORCHVISION_WIDTH,
        in_channels: int = 3,
    ):
        self._width = width
        super().__init__(block, num_blocks, num_classes=num_classes)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == _TORCHVISION_WIDTH:  # the first stage follows the stem
            self.inplanes = self._width
        stage: nn.Sequential = super()._make_layer(block, planes * self._width // _TORCHVISION_WIDTH, *args, **kwargs)
        return stage


resnet18 = partial(StemResNet, BasicBlock, [2, 2, 2, 2])
resnet34 = partial(StemResNet, BasicBlock, [3, 4, 6, 3])
resnet50 = partial(StemResNet, Bottleneck, [3, 4, 6, 3])
