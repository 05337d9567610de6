"""Pooled rows of a source as the target meets them, in float64, shared by all that asks for them of a batch.

Shape suffixes: N images, P positions of the source, Q of the target, D features.
"""

from functools import lru_cache

import torch
from torch import Tensor

from stitchgrid.engine.laying import Laying
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.alignment import image_blocks, pooled, rows_of
from stitchgrid.matchers.layouts import Layout, is_identity, layouts_of
from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer
from stitchgrid.statistics.base import LayerKey


class Pooling:
    """Mean over the positions that a target has, of rows as they are laid there: a weighted sum of a source's rows.

    An affine map commutes with it, so that pooled T(A) needs no T(A), and can be had in float64.
    """

    def __init__(self, source: Layer, target: Layer, rules: Rules, *, device: torch.device):
        self.source = source
        ours, theirs = layouts_of(source, target)
        is_plain = is_identity(ours, theirs, rules) and source.num_prefix == target.num_prefix
        #: None: the plain mean over the source's own positions
        self.weights_P = None if is_plain else _weights(ours, theirs, target.num_prefix, rules, device)

    def __call__(self, a: Tensor) -> Tensor:
        """Return the pooled rows of a batch of the source's activations: (N, D), float64."""
        if self.weights_P is None:
            return pooled(a, self.source)
        blocks = image_blocks(rows_of(a, self.source))
        return torch.cat([self.weights_P @ some_NPD.double() for some_NPD in blocks])


@lru_cache(maxsize=256)  # they are the same for all pairs of layers of these layouts
def _weights(source: Layout, target: Layout, num_prefix: int, rules: Rules, device: torch.device) -> Tensor:
    """Return the weights of a source's rows in the mean over the positions of the target, (P,)."""
    mean_1Q1 = torch.zeros(1, target.num_rows, 1, dtype=torch.float64, device=device)
    mean_1Q1[:, num_prefix:] = 1 / (target.num_rows - num_prefix)
    if is_identity(source, target, rules):
        return mean_1Q1.flatten()
    return Laying(source, target, rules, device=device).back(mean_1Q1).flatten()


def pooled_source(work: Workspace, batch: Batch, source: LayerKey, target: LayerKey, rules: Rules) -> Tensor:
    """Return a source's pooled rows as a target meets them, (N, D), found once for all targets of one layout."""
    f, g = work.layer(source), work.layer(target)

    def pool() -> Tensor:
        return Pooling(f, g, rules, device=work.device)(batch.activations[source])

    return batch.once(("pooled", source, layouts_of(f, g), g.num_prefix, rules), pool)


def pooled_target(work: Workspace, batch: Batch, target: LayerKey) -> Tensor:
    """Return a layer's own pooled rows, (N, D)."""
    return pooled_source(work, batch, target, target, Rules())
