"""Trained maps that are not affine: they have no W and b, so their metrics are computed from T(A) itself.

Shape suffixes: N images, P rows per image, D features of the source, E of the target, H features in between.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.matchers.drawing import initial_tensors


class Adapter(nn.Module):
    """A map of rows (N, P, D) on the target's positions to (N, P, E), float32.

    `affine_bn` normalises over rows and images: by statistics of the batch in training, by running statistics later.
    """

    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor  # behind a hidden layer
    bias_2: Tensor

    def __init__(self, kind: str, num_in: int, num_out: int, grid: tuple[int, int] | None, generator: torch.Generator):
        super().__init__()
        self.kind, self.grid = kind, grid
        for name, tensor in initial_tensors(kind, num_in, num_out, generator=generator).items():
            self.register_parameter(name, nn.Parameter(tensor))
        self.norm = nn.BatchNorm1d(num_out) if kind == "affine_bn" else nn.Identity()
        self.before: Callable[[Tensor], Tensor] | None = None  # reduces the source to a low rank

    def forward(self, rows_NPD: Tensor) -> Tensor:
        """Return the mapped rows."""
        if self.before is not None:
            rows_NPD = self.before(rows_NPD)
        if self.kind == "conv3x3":
            assert self.grid is not None
            maps = rows_NPD.mT.reshape(len(rows_NPD), -1, *self.grid)
            return functional.conv2d(maps, self.weight_1, self.bias_1, padding=1).flatten(2).mT
        if self.kind == "affine_bn":
            found_NPE = rows_NPD @ self.weight_1
            normed: Tensor = self.norm(found_NPE.flatten(0, 1)).view(found_NPE.shape)
            return normed
        return functional.relu(rows_NPD @ self.weight_1 + self.bias_1) @ self.weight_2 + self.bias_2

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that are trained."""
        return self.parameters()

    def frozen(self) -> "Adapter":
        """Return the map as it is measured."""
        return self.eval().requires_grad_(False)
