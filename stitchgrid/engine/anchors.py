"""Layers whose numbers float32 products would lose: far from zero for their spread, or very large or very small.

A stitched network is fed T(A) in float32. Of rows at an offset of 1e6 the products would be off by more than rows
differ, and a map of rows of 1e-40 is no float32 matrix at all. T(A) is the same from rows about a point near them, and
multiplied by a power of two, by a map that takes both back: T(a) = ((a - c) s) W/s + (b + c W). Ordinary layers are
left alone, so that none of their bits change.

Shape suffixes: N images, P rows per image, D features.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.alignment import rows_of
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.statistics.base import LayerKey

FAR = 100.0  # times their spread from zero: rounding of float32 products is then 1e-5 of the spread
ORDINARY = (1e-12, 1e12)  # largest numbers of layers whose maps and sums float32 holds
IMAGES = 64  # that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What is taken off a layer's rows, and what they are then multiplied by."""

    centre_D: Tensor
    scale: float  # a power of two

    def rows(self, a: Tensor, feature_axis: int) -> Tensor:
        """Return a batch of float32 activations about the centre, scaled."""
        about_centre = a.movedim(feature_axis, -1) - self.centre_D.to(a.dtype)
        return about_centre.mul_(self.scale).movedim(-1, feature_axis)

    def map(self, stitch: AffineMap) -> AffineMap:
        """Return the map of such rows that gives what `stitch` gives of the layer's own."""
        weight_DE = stitch.weight_DE.double()
        bias_E = stitch.bias_E.double() + self.centre_D @ weight_DE
        return AffineMap(weight_DE=weight_DE / self.scale, bias_E=bias_E)


class Anchors:
    """The anchors of layers, found from the first batch of evaluation images, all in one transfer."""

    def __init__(self, work: Workspace, layers: Iterable[LayerKey]):
        self.work, self.layers = work, sorted(set(layers))
        self._found: dict[LayerKey, Anchor | None] | None = None
        self._large: set[LayerKey] = set()

    def look_at(self, batch: Batch) -> None:
        """Find all anchors, the first time."""
        if self._found is not None or not self.layers:
            return
        seen = {key: rows_of(batch.activations[key][:IMAGES], self.work.layer(key)) for key in self.layers}
        told = {key: _of_rows(rows_NPD.double().flatten(0, 1)) for key, rows_NPD in seen.items()}
        table = torch.stack([torch.stack(numbers) for _, *numbers in told.values()]).tolist()
        self._found = {}
        for key, (distance, spread, largest) in zip(told, table, strict=True):
            is_small, is_large = 0 < largest < ORDINARY[0], largest > ORDINARY[1]
            exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent.item()
            scale = 2.0 ** -max(-120, min(120, exponent)) if is_small or is_large else 1.0
            is_far = distance > FAR * spread
            centre_D = told[key][0] if is_far else torch.zeros_like(told[key][0])
            self._found[key] = Anchor(centre_D=centre_D.float().double(), scale=scale) if is_far or scale != 1 else None
            self._large |= {key} if is_large else set()

    def of(self, key: LayerKey) -> Anchor | None:
        """Return a layer's anchor; None where its rows are taken as they are."""
        return None if self._found is None else self._found[key]

    def is_large(self, key: LayerKey) -> bool:
        """Return whether float32 might not hold sums of a layer's rows."""
        return key in self._large


def _of_rows(rows_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean of float64 rows, its distance from zero, their spread about it, and their largest number."""
    mean_D = rows_RD.mean(0)
    spread = (rows_RD - mean_D).square().mean(0).sum().sqrt()
    return mean_D, torch.linalg.vector_norm(mean_D), spread, rows_RD.abs().amax()
