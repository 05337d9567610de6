"""Tiny10: eight convolutions and a linear head, the network to try ideas on (Csiszarik et al. 2021)."""

from torch import Tensor, nn

# Shape suffixes: N images, C channels, H height, W width, K classes.

_LAYERS = (  # channels in, channels out, kernel size, stride
    (3, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 32, 3, 2),
    (32, 32, 3, 1),
    (32, 32, 3, 1),
    (32, 64, 3, 2),
    (64, 64, 3, 1),
    (64, 64, 1, 1),
)


class Tiny10(nn.Module):
    """`conv{k}`, `bn{k}`, `relu{k}` for k = 1..8, the mean over positions, `fc`."""

    def __init__(self, *, width: float, num_classes: int, padding: int):
        super().__init__()
        for k, (channels_in, channels_out, size, stride) in enumerate(_LAYERS, start=1):
            wide_in = channels_in if k == 1 else max(1, round(channels_in * width))
            wide_out = max(1, round(channels_out * width))
            conv = nn.Conv2d(wide_in, wide_out, size, stride=stride, padding=padding if size == 3 else 0)
            self.add_module(f"conv{k}", conv)
            self.add_module(f"bn{k}", nn.BatchNorm2d(wide_out))
            self.add_module(f"relu{k}", nn.ReLU())
        self.fc = nn.Linear(wide_out, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return class scores."""
        for k in range(1, len(_LAYERS) + 1):
            for kind in ("conv", "bn", "relu"):
                x_NCHW = self.get_submodule(f"{kind}{k}")(x_NCHW)
        logits_NK: Tensor = self.fc(x_NCHW.mean((2, 3)))
        return logits_NK


def tiny10(*, width: float = 1.0, num_classes: int = 10, padding: int = 0) -> nn.Module:
    """Return a Tiny10, `width` times as wide; with `padding=1` it also takes images below 27x27."""
    return Tiny10(width=width, num_classes=num_classes, padding=padding)
