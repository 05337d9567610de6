"""Residual networks for small images (He et al. 2015, section 4.2)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: N images, C channels, H height, W width, K classes.


def _shortcut(x_NCHW: Tensor, channels: int, stride: int) -> Tensor:
    """Return x at every stride-th position with zero channels added on both sides: "option A", free of parameters."""
    before = (channels - x_NCHW.shape[1]) // 2
    after = channels - x_NCHW.shape[1] - before
    return F.pad(x_NCHW[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.channels = channels
        self.stride = stride
        self.is_identity = stride == 1 and in_channels == channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return relu(residual + shortcut)."""
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        shortcut_NCHW = x_NCHW if self.is_identity else _shortcut(x_NCHW, self.channels, self.stride)
        return F.relu(y_NCHW + shortcut_NCHW)


class SmallResNet(nn.Module):
    """A residual network of depth 6n+2 with three stages of n blocks, `width`, 2 `width` and 4 `width` channels wide.

    >>> sum(p.numel() for p in SmallResNet(depth=20).parameters())
    269722
    """

    def __init__(self, *, depth: int, num_classes: int = 10, width: int = 16, in_channels: int = 3):
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is 6n+2 (8, 14, 20, 26, 32, ...), got {depth}")
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1, num_blocks)
        self.layer2 = self._stage(width, 2 * width, 2, num_blocks)
        self.layer3 = self._stage(2 * width, 4 * width, 2, num_blocks)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int, num_blocks: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return class scores."""
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = self.layer3(self.layer2(self.layer1(x_NCHW)))
        logits_NK: Tensor = self.linear(x_NCHW.mean((2, 3)))
        return logits_NK


resnet20 = partial(SmallResNet, depth=20)
resnet32 = partial(SmallResNet, depth=32)
resnet44 = partial(SmallResNet, depth=44)
resnet56 = partial(SmallResNet, depth=56)
resnet110 = partial(SmallResNet, depth=110)
