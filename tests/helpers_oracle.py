"""Everything the engine measures, the slow way: one layer pair at a time, whole networks, explicit float64 matrices.

Shape suffixes: D features of the source, E of the target.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from helpers_engine import IMAGES, FakeImages, Zoo, preprocessed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.records import Cell, Sweep

Matrix = NDArray[np.float64]


def run_stages(stages: Iterable[nn.Module], x: Tensor) -> Tensor:
    for stage in stages:
        x = deepcopy(stage).to(x.dtype)(x)
    return x


def pool(a: Tensor) -> Tensor:
    if a.dim() == 4:
        return a.mean((2, 3))
    return a[:, 1:].mean(1) if a.dim() == 3 else a


def laid(a: Tensor, b: Tensor) -> Tensor:
    """Return A resized to B's positions, in the shape of B with A's features; sequences have a class token here."""
    if b.dim() == 2:
        return pool(a)
    size = tuple(b.shape[2:]) if b.dim() == 4 else (3, 3)
    grid = a[:, :, None, None] if a.dim() == 2 else a
    if a.dim() == 3:
        grid = a[:, 1:].transpose(1, 2).reshape(len(a), -1, 3, 3)
    if tuple(grid.shape[2:]) != size:
        grid = functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    if b.dim() == 4:
        return grid
    class_token = a[:, :1] if a.dim() == 3 else pool(a)[:, None]
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)


def as_rows(a: Tensor) -> Matrix:
    moved = a.permute(0, 2, 3, 1) if a.dim() == 4 else a
    return moved.reshape(-1, moved.shape[-1]).numpy()


def apply_map(a: Tensor, weight_DE: Tensor, bias_E: Tensor) -> Tensor:
    if a.dim() == 4:
        return functional.conv2d(a, weight_DE.T[:, :, None, None], bias_E).contiguous()
    return functional.linear(a, weight_DE.T, bias_E)


@dataclass(frozen=True)
class Place:
    """A layer of a network, by the number of its stage."""

    network: str
    stage: int


def ends(sweep: Sweep, cell: Cell) -> tuple[Place, Place]:
    """Return where a cell's stitch starts and ends."""
    sides = (cell.source_key, cell.target_key)
    source, target = (Place(sweep.networks[network].name, stage) for network, stage in sides)
    return source, target


class Oracle:
    """Everything about one layer pair, one layer pair at a time: whole stitched networks and explicit matrices."""

    def __init__(self, zoo: Zoo, images: FakeImages = IMAGES):
        self.zoo, self.images = zoo, images
        self._layers: dict[tuple[Place, str], Tensor] = {}

    def layer(self, at: Place, split: str = "eval") -> Tensor:
        if (at, split) not in self._layers:
            pixels = preprocessed(getattr(self.images, split).pixels, torch.float64)
            self._layers[at, split] = run_stages(self.zoo.staged[at.network].stages[: at.stage + 1], pixels)
        return self._layers[at, split]

    def rest(self, at: Place, x: Tensor) -> Tensor:
        return run_stages(self.zoo.staged[at.network].stages[at.stage + 1 :], x)

    def direct(self, source: Place, target: Place, *, num_fit: int) -> AffineMap:
        """Return W and b by numpy's least squares on [A 1]."""
        b = self.layer(target, "fit")[:num_fit]
        rows = as_rows(laid(self.layer(source, "fit")[:num_fit], b))
        solution = np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), as_rows(b), rcond=1e-6)[0]
        return AffineMap(weight_DE=torch.from_numpy(solution[:-1]), bias_E=torch.from_numpy(solution[-1]))

    def stitched(self, source: Place, target: Place, stitch: AffineMap, *, num_fit: int) -> dict[str, float]:
        """Return every metric of a stitched network that is run whole, in one batch."""
        labels = self.images.eval.labels
        a, b = self.layer(source), self.layer(target)
        t = apply_map(laid(a, b), stitch.weight_DE, stitch.bias_E)
        h_logits, g_logits = self.rest(target, t), self.rest(target, b)
        accuracy = (h_logits.argmax(1) == labels).double().mean().item()
        target_accuracy = (g_logits.argmax(1) == labels).double().mean().item()
        rows_t, rows_b = as_rows(t), as_rows(b)
        error = np.sum((rows_t - rows_b) ** 2)
        lowest = min(b.min(), self.layer(target, "fit")[:num_fit].min())
        return {
            "accuracy": accuracy,
            "loss": -torch.log_softmax(h_logits, 1)[torch.arange(len(labels)), labels].mean().item(),
            "relative_accuracy": accuracy / target_accuracy,
            "penalty": (1 - accuracy) - (1 - target_accuracy),
            "agreement": (h_logits.argmax(1) == g_logits.argmax(1)).double().mean().item(),
            "residual": error / np.sum(rows_b**2),
            "r2": 1 - error / np.sum((rows_b - rows_b.mean(0)) ** 2),
            "variance_ratio": pool(t).var(0).sum().item() / pool(b).var(0).sum().item(),
            "negative_mass": np.abs(np.minimum(rows_t, 0)).sum() / np.abs(rows_t).sum() if lowest >= 0 else nan,
        }

    def compared_rows(self, source: Place, target: Place, *, num: int) -> tuple[Matrix, Matrix]:
        """Return the matrices that CCA and Procrustes compare."""
        a, b = self.layer(source)[:num], self.layer(target)[:num]
        same = a.dim() == b.dim() and (a.shape[2:] == b.shape[2:] if a.dim() == 4 else a.shape[1] == b.shape[1])
        if a.dim() > 2 and same:
            return as_rows(a), as_rows(b)
        return pool(a).numpy(), pool(b).numpy()

    def flattened(self, source: Place, target: Place, *, num: int) -> tuple[Matrix, Matrix]:
        a, b = self.layer(source)[:num], self.layer(target)[:num]
        return a.flatten(1).numpy(), b.flatten(1).numpy()

    def trained(
        self, source: Place, target: Place, start: AffineMap, batches: Iterable[Tensor], *, lr: float, decay: float
    ) -> AffineMap:
        """Return the map trained by itself through the whole stitched network, in float32 as networks are run."""
        weight_DE, bias_E = start.weight_DE.clone().requires_grad_(), start.bias_E.clone().requires_grad_()
        adam = torch.optim.Adam([weight_DE, bias_E], lr=lr, weight_decay=decay)
        f, g, fit = self.zoo.staged[source.network], self.zoo.staged[target.network], self.images.fit
        for chosen in batches:
            pixels = preprocessed(fit.pixels[chosen])
            a, b = run_stages(f.stages[: source.stage + 1], pixels), run_stages(g.stages[: target.stage + 1], pixels)
            logits = self.rest(target, apply_map(laid(a, b), weight_DE, bias_E))
            loss = functional.cross_entropy(logits, fit.labels[chosen])
            adam.zero_grad()
            loss.backward()
            adam.step()
        return AffineMap(weight_DE=weight_DE, bias_E=bias_E).double()
