"""Pooled rows of a source in a target's layout, in float64, computed once per batch for all that need them.

Shape suffixes: N images, P positions of the source, Q of the target, D features.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stitchgrid.engine.resampling import Resampling
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.alignment import image_blocks, pooled, rows_of
from stitchgrid.matchers.layouts import Layout, is_identity, layouts_of
from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer
from stitchgrid.statistics.base import LayerKey


class Poolings:
    """Means of a source's rows over the positions of each layer of a target network, as weighted sums of these rows.

    An affine map commutes with such means. So pooled T(A) is computed without T(A), in float64. One product serves all
    layers of the target network.
    """

    def __init__(self, source: Layer, targets: Sequence[Layer], rules: Rules, *, device: torch.device):
        self.source = source
        weights: dict[object, Tensor] = {}
        for target in targets:
            source_layout, target_layout = layouts_of(source, target)
            if not self._is_plain(target, rules) and (what := _what(source, target)) not in weights:
                weights[what] = _weights(source_layout, target_layout, target.num_prefix, rules, device)
        self._position = {what: position for position, what in enumerate(weights)}
        self._weights_LP = torch.stack(list(weights.values())) if weights else None

    def _is_plain(self, target: Layer, rules: Rules) -> bool:
        """Return whether the mean is that over the source's own positions."""
        return is_identity(*layouts_of(self.source, target), rules) and self.source.num_prefix == target.num_prefix

    def position(self, target: Layer) -> int | None:
        """Return the index of the weighted mean that belongs to a target; None if it is the plain mean."""
        return self._position.get(_what(self.source, target))

    def weighted(self, a: Tensor) -> Tensor:
        """Return the weighted means of a batch of the source's activations: (L, N, D), float64."""
        assert self._weights_LP is not None
        parts = [self._weights_LP @ some_NPD.double() for some_NPD in image_blocks(rows_of(a, self.source))]
        return torch.cat(parts).movedim(1, 0).contiguous()


def _what(source: Layer, target: Layer) -> object:
    return layouts_of(source, target), target.num_prefix


@lru_cache(maxsize=256)  # they are the same for all pairs of layers of these layouts
def _weights(source: Layout, target: Layout, num_prefix: int, rules: Rules, device: torch.device) -> Tensor:
    """Return the weights of a source's rows in the mean over the positions of the target, (P,)."""
    mean_1Q1 = torch.zeros(1, target.num_rows, 1, dtype=torch.float64, device=device)
    mean_1Q1[:, num_prefix:] = 1 / (target.num_rows - num_prefix)
    if is_identity(source, target, rules):
        return mean_1Q1.flatten()
    return Resampling(source, target, rules, device=device).rmatvec(mean_1Q1).flatten()


@lru_cache(maxsize=1024)
def _poolings(source: Layer, targets: tuple[Layer, ...], rules: Rules, device: torch.device) -> Poolings:
    return Poolings(source, targets, rules, device=device)


def pooled_source(work: Workspace, batch: Batch, source: LayerKey, target: LayerKey, rules: Rules) -> Tensor:
    """Return a source's pooled rows in a target's layout, (N, D), found once for all layers of the target network."""
    f, network = work.layer(source), work.sweep.networks[target[0]]
    poolings = _poolings(f, network.layers, rules, work.device)
    position = poolings.position(work.layer(target))
    if position is None:
        return pooled_own(work, batch, source)
    what = "pooled", source, target[0], rules
    return batch.once(what, lambda: poolings.weighted(batch.activations[source]))[position]


def pooled_own(work: Workspace, batch: Batch, key: LayerKey) -> Tensor:
    """Return a layer's own pooled rows, (N, D)."""
    return batch.once(("pooled", key), lambda: pooled(batch.activations[key], work.layer(key)))
