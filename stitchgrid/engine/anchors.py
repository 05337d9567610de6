"""Centres and scales layers that float32 products cannot hold: far from zero for their spread, very large or small.

A stitched network gets T(A) in float32. For rows at an offset of 1e6, rounding errors of the products exceed the
differences between rows, and a map of rows near 1e-40 has weights that float32 cannot hold. T(A) stays the same if a
point c near the rows is subtracted, they are multiplied by a power of two s, and the map undoes both:
T(a) = ((a - c) s) W/s + (b + c W). Ordinary layers are not changed, so that none of their bits change.

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
ORDINARY = (1e-12, 1e12)  # range of a layer's largest number in which float32 holds its maps and sums
IMAGES = 64  # from which anchors are found


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The centre that is subtracted from a layer's rows, and the scale by which they are then multiplied."""

    centre_D: Tensor
    scale: float  # a power of two

    def rows(self, a: Tensor, feature_axis: int) -> Tensor:
        """Return a batch of float32 activations minus the centre, times the scale; the shape stays."""
        about_centre = a.movedim(feature_axis, -1) - self.centre_D.to(a.dtype)
        return about_centre.mul_(self.scale).movedim(-1, feature_axis)

    def map(self, stitch: AffineMap) -> AffineMap:
        """Return the map that gives on such rows what `stitch` gives on the layer's own rows."""
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
        """Find all anchors if this is the first batch."""
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
