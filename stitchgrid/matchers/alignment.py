"""Laying the representation of one layer on the positions of another, and how rows are shaped for the indices.

A representation is split into *prefix* tokens (CLS, registers) and *positions* (of a map, or patch tokens).

| source -> target | rule |
|---|---|
| map or tokens -> map, tokens | positions resized bilinearly (align_corners off, no antialiasing) to that grid |
| anything -> prefix tokens | the source's own prefix token of that index, else the source's mean over positions |
| map or tokens -> vector | mean over positions |
| vector -> map or tokens | the same vector at every position |

Shape suffixes: N images, P positions, K prefix tokens, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.records import Layer

SUBSAMPLED_FROM = 3  # a reduction by this factor reads only some of the source's positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the rows of a representation lie: K prefix tokens, then positions on a grid."""

    num_prefix: int
    grid: tuple[int, int] | None  # None: a vector

    @property
    def num_rows(self) -> int:
        """Rows of features per image."""
        return self.num_prefix + (self.grid[0] * self.grid[1] if self.grid else 1)


def layout_of(layer: Layer) -> Layout:
    """Return the layout of a layer; a sequence without a grid of its own counts as one row of positions."""
    if layer.kind == "vector":
        return Layout(num_prefix=0, grid=None)
    if layer.grid is not None:
        return Layout(num_prefix=layer.num_prefix, grid=layer.grid)
    return Layout(num_prefix=layer.num_prefix, grid=(1, num_tokens(layer) - layer.num_prefix))


def num_tokens(layer: Layer) -> int:
    """Return how many tokens a sequence has, those before its grid included."""
    return layer.shape[layer.axes.index("T") - 1]


def alignment_name(source: Layer, target: Layer) -> str:
    """Return the name of the rule that lays `source` on `target`, as the `alignment` column shows it."""
    ours, theirs = layout_of(source), layout_of(target)
    if ours == theirs and source.kind == target.kind:
        return "identity"
    if theirs.grid is None:
        return "pool"
    if ours.grid is None:
        return "broadcast"
    steps = [] if source.kind == target.kind else [f"{source.kind}_to_{target.kind}"]
    if source.kind == target.kind and ours.num_prefix != theirs.num_prefix:
        steps.append("prefix")
    if ours.grid != theirs.grid:
        steps.append("bilinear")
    return "+".join(steps)


def is_subsampled(source: Layer, target: Layer) -> bool:
    """Return whether resizing reads only some of the source's positions."""
    ours, theirs = layout_of(source).grid, layout_of(target).grid
    if ours is None or theirs is None:
        return False
    return any(a >= SUBSAMPLED_FROM * b for a, b in zip(ours, theirs, strict=True))


def index_shaping(source: Layer, target: Layer) -> str:
    """Return how rows are shaped for CCA, Procrustes and regression: positions, tokens or pooled.

    Two maps of equal height and width give position rows, two sequences of equal token count token rows, anything
    else one pooled row an image. (The authors ask for equal width of maps too.)
    """
    if source.kind == target.kind == "map" and source.grid == target.grid:
        return "positions"
    if source.kind == target.kind == "tokens" and num_tokens(source) == num_tokens(target):
        return "tokens"
    return "pooled"


def rows_of(a: Tensor, layer: Layer) -> Tensor:
    """Return a batch of activations as (N, rows, D), prefix tokens first."""
    if layer.kind == "vector":
        return a.unsqueeze(1)
    return a.flatten(2).mT if layer.feature_axis == 1 else a.flatten(1, -2)


def pooled(a: Tensor, layer: Layer) -> Tensor:
    """Return one row an image: the mean over positions, prefix tokens left out (the authors include CLS)."""
    return rows_of(a, layer)[:, layer.num_prefix :].mean(1)


def lay(a: Tensor, source: Layer, target: Layout) -> Tensor:
    """Return activations of `source` laid on the target's rows: (N, target.num_rows, D)."""
    rows_NPD = rows_of(a, source)
    if layout_of(source) == target:
        return rows_NPD
    return resize_rows(rows_NPD, layout_of(source), target)


def resize_rows(rows_NPD: Tensor, source: Layout, target: Layout) -> Tensor:
    """Return rows of one layout laid on another; linear, and its weights sum to one, so it commutes with T."""
    prefix_NKD, positions_NPD = rows_NPD[:, : source.num_prefix], rows_NPD[:, source.num_prefix :]
    mean_N1D = positions_NPD.mean(1, keepdim=True)
    if target.grid is None:
        return mean_N1D
    if source.grid is None:
        return mean_N1D.expand(-1, target.num_rows, -1)
    if source.grid != target.grid:
        map_NDHW = positions_NPD.mT.reshape(len(rows_NPD), -1, *source.grid)
        resized = functional.interpolate(map_NDHW, size=target.grid, mode="bilinear", align_corners=False)
        positions_NPD = resized.flatten(2).mT
    missing = max(target.num_prefix - source.num_prefix, 0)
    kept = prefix_NKD[:, : target.num_prefix]
    return torch.cat([kept, *[mean_N1D] * missing, positions_NPD], dim=1)


def install(rows_NPE: Tensor, target: Layer) -> Tensor:
    """Return rows in the shape the target's own layer has: a view, hence maps in the channels-last memory format.

    That is the faster one for convolutions, forward and backward; `cut_network` makes halves accept it.
    """
    if target.kind == "vector":
        return rows_NPE.squeeze(1)
    positions = target.shape[: target.feature_axis - 1] + target.shape[target.feature_axis :]
    return rows_NPE.view(len(rows_NPE), *positions, -1).movedim(-1, target.feature_axis)
