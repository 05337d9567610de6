"""Small networks of kinds that gave wrong numbers or hard errors once; a job names them `odd_networks.py:NAME`."""

import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """Two convolutions and a head: what the others vary."""

    def __init__(self, width: int = 4, classes: int = 10):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, 2, 1)
        self.fc = nn.Linear(width, classes)

    def pooled(self, x: Tensor) -> Tensor:
        return F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pooled(x))


class BatchNorms(Plain):
    """Normalises by the batch at hand."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Sequential(self.c1, nn.BatchNorm2d(4, track_running_stats=False))


class Squeezes(Plain):
    """Loses the axis of a single image."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pooled(x).squeeze(0))


class Fails(Plain):
    """Refuses bright images."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() > 0.4):
            raise ValueError("too bright\nfor me")
        return super().forward(x)


def is_grey(x: Tensor) -> bool:
    """Return whether images are grey, as digits are, and noise and zeros are not."""
    return bool(x.any()) and bool((x[:, 0] == x[:, 1]).all())


class Leaves(Plain):
    """Ends the process at grey images."""

    def forward(self, x: Tensor) -> Tensor:
        if is_grey(x):
            raise SystemExit("too grey for me")
        return super().forward(x)


class Speechless(Plain):
    """Refuses grey images, without a word."""

    class Error(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    def forward(self, x: Tensor) -> Tensor:
        if is_grey(x):
            raise self.Error
        return super().forward(x)


class Softmax(Plain):
    """Ends in probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Embeds(Plain):
    """An encoder without a classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x)


def plain(classes: int = 10) -> nn.Module:
    return Plain(classes=classes)


def batch_norms() -> nn.Module:
    return BatchNorms()


def squeezes() -> nn.Module:
    return Squeezes()


def fails() -> nn.Module:
    return Fails()


def leaves() -> nn.Module:
    return Leaves()


def speechless() -> nn.Module:
    return Speechless()


def softmax() -> nn.Module:
    return Softmax()


def one_score() -> nn.Module:
    return Plain(classes=1)


def embeds() -> nn.Module:
    return Embeds()


def pixels() -> nn.Module:
    """Return a classifier of digits by their pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))
