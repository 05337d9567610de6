"""Groups of evaluation images: values without each of them tell how far a value would move with other images.

The image at position i belongs to group i modulo the number of groups. Statistics are summed by group, so that a
subtraction gives them without a group, and no network runs again.

Shape suffixes: G groups, N images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.engine.pair_moments import MomentGatherer
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.moments import Merger, PairMoments
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.moments import GroupedMoments
from stitchgrid.statistics.rows import RowSpace


@dataclass(frozen=True, slots=True)
class Groups:
    """A number of groups; one group of all images if none are asked for."""

    num: int = 1

    def sums(self, values: Tensor, start: int) -> Tensor:
        """Return the sums of values (..., N) over each group's images: (G, ...), float64.

        The first value is that of the image at position `start`.
        """
        if self.num == 1:
            return values.sum(-1, dtype=torch.float64)[None]
        belongs_NG = torch.zeros(values.shape[-1], self.num, dtype=torch.float64, device=values.device)
        belongs_NG.scatter_(1, self.of(start, values.shape[-1], values.device)[:, None], 1.0)
        sums_MG = values.double().reshape(-1, values.shape[-1]) @ belongs_NG
        return sums_MG.mT.reshape(self.num, *values.shape[:-1])

    def of(self, start: int, num: int, device: torch.device | None = None) -> Tensor:
        """Return the group of each of `num` images, the first of which is at position `start`: (N,)."""
        return torch.arange(start, start + num, device=device) % self.num

    def others(self, group: int, num: int, device: torch.device | None = None) -> Tensor:
        """Return the positions of the first `num` images without those of a group, in order.

        They are computed, since a search for them would make the host wait for a GPU.

        >>> Groups(3).others(1, 7).tolist()
        [0, 2, 3, 5, 6]
        """
        rank_M = torch.arange(num - (num - group + self.num - 1) // self.num, device=device)
        place_M = rank_M % (self.num - 1)
        return rank_M // (self.num - 1) * self.num + place_M + (place_M >= group)


def left(sums: Tensor) -> Tensor:
    """Return the sums over all groups but one, (G, ...), from the sums of each group, (G, ...)."""
    return sums.sum(0) - sums


class GroupedGatherer:
    """Second moments of all layer pairs of a statistic, of all images and without each group of them."""

    def __init__(self, work: Workspace, moments: GroupedMoments):
        self._parts = [MomentGatherer(work, part) for part in moments.parts]
        self._merger = Merger()
        self._merged: dict[tuple[RowSpace, LayerKey, LayerKey], PairMoments] = {}

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        self._merged.clear()
        for part in self._parts:
            part.take(batch)

    def find_finite(self) -> None:
        """Find out which layers had only finite activations."""
        for part in self._parts:
            part.find_finite()

    def pair(self, space: RowSpace, source: LayerKey, target: LayerKey) -> PairMoments:
        """Return the moments of one layer pair.

        Raises:
            ValueError: If no image was taken, or an activation was infinite or NaN.
        """
        key = space, source, target
        if key not in self._merged:
            self._merged[key] = self._merger(self.parts(*key))
        return self._merged[key]

    def without(self, space: RowSpace, source: LayerKey, target: LayerKey) -> list[PairMoments]:
        """Return the moments of one layer pair without each group."""
        whole = self.pair(space, source, target)
        return [self._merger.without(whole, part) for part in self.parts(space, source, target)]

    def parts(self, space: RowSpace, source: LayerKey, target: LayerKey) -> list[PairMoments]:
        """Return the moments of one layer pair in each group."""
        return [part.pair(space, source, target) for part in self._parts]
