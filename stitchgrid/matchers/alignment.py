"""Rows of a batch of activations, and their resampling from one layout to another.

Shape suffixes: N images, P positions, K prefix tokens, D features, H positions on one side of a grid.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.matchers.layouts import DEFAULT_RULES, Grid, Layout, is_identity
from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer

BLOCK_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 25}  # of rows that are brought to float64 at a time
_MODES = {"bilinear": "bilinear", "area": "area", "nearest": "nearest-exact"}  # of torch's interpolate


def rows_of(a: Tensor, layer: Layer) -> Tensor:
    """Return a batch of activations as (N, rows, D), prefix tokens first."""
    if layer.kind == "vector":
        return a.unsqueeze(1)
    return a.flatten(2).mT if layer.feature_axis == 1 else a.flatten(1, -2)


def pooled(a: Tensor, layer: Layer) -> Tensor:
    """Return one row per image, (N, D), float64: the mean over positions, without prefix tokens.

    Balogh & Jelasity (2025) include CLS. In float32 the mean of rows at an offset of 1e3 would lose the differences
    between rows, since the offset is only subtracted later.
    """
    positions_NPD = rows_of(a, layer)[:, layer.num_prefix :]
    total_ND = torch.cat([some_NPD.sum(1, dtype=torch.float64) for some_NPD in image_blocks(positions_NPD)])
    return total_ND / total_ND.new_full((), positions_NPD.shape[1])


def image_blocks(rows_NPD: Tensor) -> Sequence[Tensor]:
    """Return rows in blocks of a few images, whose float64 copies fit into the caches."""
    numbers = BLOCK_NUMBERS.get(rows_NPD.device.type, BLOCK_NUMBERS["cuda"])
    return torch.split(rows_NPD, max(1, numbers // max(1, rows_NPD[:1].numel())))


def resize_rows(rows_NPD: Tensor, source: Layout, target: Layout, rules: Rules = DEFAULT_RULES) -> Tensor:
    """Return rows (N, P, D) of one layout in another: (N, target.num_rows, D).

    The operation is linear, and its weights sum to one for each row, so it commutes with affine maps; dropped prefix
    tokens are the exception.
    """
    if is_identity(source, target, rules):
        return rows_NPD
    prefix_NKD, positions_NPD = rows_NPD[:, : source.num_prefix], rows_NPD[:, source.num_prefix :]
    if target.grid is None:
        takes_cls = rules.pool == "cls" and source.num_prefix
        return prefix_NKD[:, :1] if takes_cls else positions_NPD.mean(1, keepdim=True)
    if target.num_prefix:
        prefix_NKD = _prefix(prefix_NKD, positions_NPD, target.num_prefix, rules.cls)
    if source.grid is None:
        positions_NPD = positions_NPD.expand(-1, target.grid[0] * target.grid[1], -1)
    elif source.grid != target.grid:
        positions_NPD = _resized(positions_NPD, source.grid, target.grid, rules)
    return torch.cat([prefix_NKD, positions_NPD], dim=1) if target.num_prefix else positions_NPD


def _resized(positions_NPD: Tensor, source_side: Grid, target_side: Grid, rules: Rules) -> Tensor:
    """Return positions of one grid, resized to another.

    On a GPU, torch's kernels sum gradients in an order that changes from run to run, so rows with gradients are
    multiplied by the weights of both sides instead.
    """
    if positions_NPD.requires_grad and positions_NPD.device.type != "cpu":
        device, dtype = positions_NPD.device, positions_NPD.dtype
        return on_sides(
            [_side_on(device, dtype, *lengths, rules) for lengths in zip(source_side, target_side, strict=True)],
            positions_NPD,
        )
    map_NDHW = positions_NPD.mT.reshape(len(positions_NPD), -1, *source_side)
    corners = {"align_corners": False} if rules.resize == "bilinear" else {}
    return functional.interpolate(map_NDHW, size=target_side, mode=_MODES[rules.resize], **corners).flatten(2).mT


def side_weights(source_side: int, target_side: int, rules: Rules) -> Tensor:
    """Return the weights that resize one side of a grid to another length: (target_side, source_side), float64."""
    unit_HH = torch.eye(source_side, dtype=torch.float64)
    if not target_side:
        return unit_HH[:0]
    column, resized = Layout(num_prefix=0, grid=(source_side, 1)), Layout(num_prefix=0, grid=(target_side, 1))
    return resize_rows(unit_HH[None], column, resized, rules)[0].contiguous()


def on_sides(sides: Sequence[Tensor], x_NPD: Tensor) -> Tensor:
    """Return rows of a grid of positions, multiplied by weights along its height and then along its width."""
    high, wide = sides
    num_images, num_features = len(x_NPD), x_NPD.shape[2]
    x_NPD = high @ x_NPD.reshape(num_images, high.shape[1], wide.shape[1] * num_features)
    x_NPD = wide @ x_NPD.reshape(num_images * len(high), wide.shape[1], num_features)
    return x_NPD.reshape(num_images, len(high) * len(wide), num_features)


@lru_cache(maxsize=256)
def _side_on(device: torch.device, dtype: torch.dtype, source_side: int, target_side: int, rules: Rules) -> Tensor:
    """Return `side_weights` on a device, copied there once."""
    return side_weights(source_side, target_side, rules).to(device, dtype)


def _prefix(prefix_NKD: Tensor, positions_NPD: Tensor, num: int, rule: str) -> Tensor:
    """Return `num` prefix tokens for a target, made of the source's prefix tokens and positions."""
    if rule == "drop":
        return positions_NPD.new_zeros(len(positions_NPD), num, positions_NPD.shape[2])
    kept = prefix_NKD[:, : num if rule == "copy" else 0]
    missing = positions_NPD.mean(1, keepdim=True).expand(-1, num - kept.shape[1], -1)
    return torch.cat([kept, missing], dim=1)


def install(rows_NPE: Tensor, target: Layer) -> Tensor:
    """Return rows in the shape of the target's own layer: a view, so that maps are in the channels-last memory format.

    This format is faster for convolutions, forward and backward. `cut_network` makes halves accept it.
    """
    if target.kind == "vector":
        return rows_NPE.squeeze(1)
    positions = target.shape[: target.feature_axis - 1] + target.shape[target.feature_axis :]
    return rows_NPE.view(len(rows_NPE), *positions, -1).movedim(-1, target.feature_axis)
