"""What is gathered while images pass: second moments per row space, Gram matrices per layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.engine.workspace import Batch, LayerKey, Workspace
from stitchgrid.matchers.alignment import (
    DEFAULT_RULES,
    Layout,
    index_shaping,
    lay,
    layout_of,
    num_tokens,
    pooled,
    rows_of,
)
from stitchgrid.matchers.catalogue import Rules
from stitchgrid.matchers.indices.cka import centred_gram
from stitchgrid.moments import MomentSums, PairMoments
from stitchgrid.records import Layer

CHUNK_BYTES = 128 << 20  # of float64 rows multiplied at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRows:
    """The rows of a target's layout, and how sources are laid on them."""

    layout: Layout
    rules: Rules = DEFAULT_RULES


#: The rows two layers share: a target's, one pooled row an image, or tokens of equally long sequences.
SpaceKey = TargetRows | str


def index_space(source: Layer, target: Layer) -> SpaceKey:
    """Return the row space in which CCA and Procrustes compare two layers."""
    if index_shaping(source, target) == "pooled":
        return "pooled"
    same = layout_of(source) == layout_of(target)
    return TargetRows(layout=layout_of(target)) if same else f"tokens:{num_tokens(target)}"


def space_rows(a: Tensor, layer: Layer, space: SpaceKey) -> Tensor:
    """Return a batch of activations as (N, rows, D) of a row space."""
    if isinstance(space, TargetRows):
        return lay(a, layer, space.layout, space.rules)
    return pooled(a, layer).unsqueeze(1) if space == "pooled" else rows_of(a, layer)


class MomentGatherer:
    """Second moments of all layer pairs that were asked for, over the first images of a split."""

    def __init__(self, work: Workspace, pairs: Iterable[tuple[SpaceKey, LayerKey, LayerKey]], *, num_images: int):
        self.work, self.num_images = work, num_images
        sources: dict[SpaceKey, dict[LayerKey, None]] = {}
        targets: dict[SpaceKey, dict[LayerKey, None]] = {}
        for space, source, target in pairs:
            sources.setdefault(space, {})[source] = None
            targets.setdefault(space, {})[target] = None
        self.sources = {space: list(keys) for space, keys in sources.items()}
        self.targets = {space: list(keys) for space, keys in targets.items()}
        self.sums = {
            space: MomentSums(self._widths(self.sources[space]), self._widths(self.targets[space]), device=work.device)
            for space in self.sources
        }

    def _widths(self, keys: Sequence[LayerKey]) -> list[int]:
        return [self.work.layer(key).width for key in keys]

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch, a few images at a time so that memory stays bounded."""
        count = batch.count_below(self.num_images)
        for space, sums in self.sums.items():
            bytes_per_image = 8 * self._rows_per_image(space) * (len(sums.sum_x_X) + len(sums.sum_y_Y))
            step = max(1, CHUNK_BYTES // bytes_per_image)
            for start in range(0, count, step):
                part = slice(start, min(start + step, count))
                sums.add(
                    [self._rows(batch, key, part, space) for key in self.sources[space]],
                    [self._rows(batch, key, part, space) for key in self.targets[space]],
                )

    def _rows_per_image(self, space: SpaceKey) -> int:
        if isinstance(space, TargetRows):
            return space.layout.num_rows
        return 1 if space == "pooled" else num_tokens(self.work.layer(self.targets[space][0]))

    def _rows(self, batch: Batch, key: LayerKey, part: slice, space: SpaceKey) -> Tensor:
        return space_rows(batch.activations[key][part].float(), self.work.layer(key), space)

    def pair(self, space: SpaceKey, source: LayerKey, target: LayerKey) -> PairMoments:
        """Return the moments of one layer pair."""
        return self.sums[space].pair(self.sources[space].index(source), self.targets[space].index(target))


def gatherers_by_count(
    work: Workspace, wanted: Iterable[tuple[int, SpaceKey, LayerKey, LayerKey]]
) -> dict[int, MomentGatherer]:
    """Return a gatherer for every number of images among the (number, row space, source, target) wanted."""
    pairs: dict[int, list[tuple[SpaceKey, LayerKey, LayerKey]]] = {}
    for count, space, source, target in wanted:
        pairs.setdefault(count, []).append((space, source, target))
    return {count: MomentGatherer(work, some, num_images=count) for count, some in pairs.items()}


class GramGatherer:
    """Centred n x n Gram matrices, one per layer, over the first n images of a split."""

    def __init__(self, keys: Iterable[LayerKey], *, num_images: int):
        self.num_images = num_images
        self.parts: dict[LayerKey, list[Tensor]] = {key: [] for key in keys}
        self.grams: dict[LayerKey, Tensor] = {}

    def take(self, batch: Batch) -> None:
        """Keep the activations of the images that belong to the sample; the last of them completes the matrices."""
        count = batch.count_below(self.num_images)
        for key, parts in self.parts.items():
            if count:
                parts.append(batch.activations[key][:count].float().flatten(1).clone())
        if batch.start + count == self.num_images:
            for key in list(self.parts):
                self.grams[key] = centred_gram(self.parts.pop(key))


def gram_groups(work: Workspace, keys: Iterable[LayerKey], *, num_images: int, budget: int) -> list[list[LayerKey]]:
    """Return the layers in groups whose activations of all images fit into `budget` bytes together, or stand alone."""
    groups: list[list[LayerKey]] = []
    free = -1
    for key in keys:
        size = 4 * num_images * torch.Size(work.layer(key).shape).numel()
        if size > free or not groups:
            groups.append([])
            free = budget
        groups[-1].append(key)
        free -= size
    return groups
