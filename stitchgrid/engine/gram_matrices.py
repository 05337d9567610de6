"""Gathers Gram matrices of layers while images pass; `statistics.gram` decides of which layers and ranks."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.alignment import rows_of
from stitchgrid.matchers.gram import Gram, centred_grams, spreads
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.gram import GRAM_BYTES, Grams

K = TypeVar("K")
GramKey = tuple[LayerKey, int | None]  # a layer, and the rank to which it is reduced


def gram_bytes(device: torch.device) -> int:
    """Return the bytes of activations that are kept at a time for Gram matrices; other layers need another pass."""
    return GRAM_BYTES.get(device.type, GRAM_BYTES["cpu"])


class GramGatherer:
    """Centred n x n Gram matrices of some layers of a statistic, one per layer and rank."""

    def __init__(
        self,
        work: Workspace,
        grams: Grams,
        keys: Collection[LayerKey],
        reductions: Mapping[GramKey, Reduction] | None = None,
    ):
        self.work, self.statistic, self.layers = work, grams, [key for key in grams.of_layers if key in keys]
        self.reductions = reductions or {}  # of layers to each of their ranks
        self.rows: dict[LayerKey, list[Tensor]] = {}  # (n, features) of each batch that has passed
        self.grams: dict[GramKey, Gram] = {}

    @property
    def num_images(self) -> int:
        """How many images have to pass."""
        return self.statistic.num_images

    def take(self, batch: Batch) -> None:
        """Keep the activations of the images that belong to the sample; the last of them completes the matrices.

        Features keep their order in memory, since sums of products over all features do not depend on it.
        """
        count = batch.count_below(self.num_images)
        if not count:
            return
        for key in self.layers:
            taken_NP = rows_of(batch.activations[key][:count], self.work.layer(key)).flatten(1)
            self.rows.setdefault(key, []).append(taken_NP.float())
        if batch.start + count == self.num_images:
            self._complete()

    def _complete(self) -> None:
        read = {
            (key, rank): partial(self._coordinates, key, rank)
            for key in self.layers
            for rank in self.statistic.of_layers[key].ranks
        }
        for (key, rank), centred_NN in centred_grams(read).items():
            told = spreads(self._parts(key, rank)) if self.statistic.reads_rows else None
            self.grams[key, rank] = Gram(
                centred_NN=centred_NN,
                num_features=self.rows[key][0].shape[1],
                mean_N=told[0] if told else None,
                spread_N=told[1] if told else None,
            )
        self.rows.clear()

    def _coordinates(self, key: LayerKey, rank: int | None) -> list[Tensor]:
        """Return the rows' coordinates in the kept axes; their products equal those of the projected rows."""
        parts, width = self.rows[key], self.work.layer(key).width
        if rank is None:
            return parts
        reduction = self.reductions[key, rank]
        return [reduction.coordinates(part_NP.view(len(part_NP), -1, width)).flatten(1) for part_NP in parts]

    def _parts(self, key: LayerKey, rank: int | None) -> Iterator[Tensor]:
        """Yield the rows of a few images at a time, projected where the source is of low rank: (n, features)."""
        width = self.work.layer(key).width
        for part_NP in self.rows[key]:
            if rank is None:
                yield part_NP
            else:
                yield self.reductions[key, rank](part_NP.view(len(part_NP), -1, width)).flatten(1)


def are_finite(grams: Mapping[K, Gram]) -> set[K]:
    """Return the keys of Gram matrices of finite activations, read from the device in one transfer."""
    traces = [gram.centred_NN.trace() for gram in grams.values()]
    finite = torch.stack(traces).isfinite().tolist() if traces else []
    return {key for key, is_finite in zip(grams, finite, strict=True) if is_finite}
