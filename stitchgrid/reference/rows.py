"""Activations as rows of features, and how those of two layers are made to agree; the manual (networks) has the tables.

Shape suffixes: N images, P rows per image, R rows of all images, D features of the source, E of the target.
"""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer


def rows(a: Tensor, layer: Layer) -> Tensor:
    """Return a batch of activations as (N, P, D): one row per position, prefix tokens first, one row for a vector."""
    return a.movedim(layer.feature_axis, -1).reshape(len(a), -1, layer.width)


def installed(rows_NPE: Tensor, layer: Layer) -> Tensor:
    """Return rows in the shape of a layer's activations."""
    extents = [extent for axis, extent in enumerate(layer.shape, start=1) if axis != layer.feature_axis]
    return rows_NPE.reshape(len(rows_NPE), *extents, layer.width).movedim(-1, layer.feature_axis).contiguous()


def pooled(rows_NPD: Tensor, layer: Layer) -> Tensor:
    """Return the mean over positions, without class and register tokens: (N, D), one row per image."""
    return rows_NPD[:, layer.num_prefix :].mean(1)


def lay(a: Tensor, source: Layer, target: Layer, rules: Rules) -> Tensor:
    """Return a source's activations on the target's positions, (N, P, D); for the rules see the manual, networks."""
    if "vector" not in {source.kind, target.kind} and None in {source.grid, target.grid}:
        is_same = (source.num_prefix, grid(source)) == (target.num_prefix, grid(target))
        if is_same and (rules.cls == "copy" or not target.num_prefix):
            return rows(a, source)
        return in_order(rows(a, source), source, target, rules)
    prefix_NKD, positions_NPD = rows(a, source).tensor_split([source.num_prefix], dim=1)
    mean_N1D = positions_NPD.mean(1, keepdim=True)
    if target.kind == "vector":
        return prefix_NKD[:, :1] if rules.pool == "cls" and source.num_prefix else mean_N1D
    height, width = grid(target)
    if source.kind == "vector":
        positions_NPD = mean_N1D.expand(-1, height * width, -1)
    elif grid(source) != (height, width):
        map_NDHW = positions_NPD.mT.reshape(len(a), -1, *grid(source))
        mode = {"nearest": "nearest-exact"}.get(rules.resize, rules.resize)
        corners = {"align_corners": False} if mode == "bilinear" else {}
        positions_NPD = F.interpolate(map_NDHW, size=(height, width), mode=mode, **corners).flatten(2).mT
    if rules.cls == "drop":
        prefix_NKD = torch.zeros_like(mean_N1D).expand(-1, target.num_prefix, -1)
    else:
        kept_NKD = prefix_NKD[:, : target.num_prefix if rules.cls == "copy" else 0]
        filled_NKD = mean_N1D.expand(-1, target.num_prefix - kept_NKD.shape[1], -1)
        prefix_NKD = torch.cat([kept_NKD, filled_NKD], dim=1)
    return torch.cat([prefix_NKD, positions_NPD], dim=1)


def in_order(rows_NPD: Tensor, source: Layer, target: Layer, rules: Rules) -> Tensor:
    """Return a source's rows matched with a target's token by token, since the grid of one of them is not known.

    Raises:
        ValueError: If their counts differ, since nothing is resized on a guess.
    """
    source_prefix, target_prefix = source.num_prefix, target.num_prefix
    num_rows, num_wanted = rows_NPD.shape[1], target_prefix + prod(grid(target))
    if "map" in {source.kind, target.kind}:
        raise ValueError("a grid is not known")
    if num_rows - source_prefix == num_wanted - target_prefix and (
        source_prefix == target_prefix or (source_prefix and target_prefix)
    ):
        positions_NPD = rows_NPD[:, source_prefix:]
        kept_NKD = rows_NPD[:, : min(source_prefix, target_prefix) if rules.cls == "copy" else 0]
        if rules.cls == "drop":
            filled_NKD = rows_NPD.new_zeros(len(rows_NPD), target_prefix, rows_NPD.shape[2])
        else:
            filled_NKD = positions_NPD.mean(1, keepdim=True).expand(-1, target_prefix - kept_NKD.shape[1], -1)
        return torch.cat([kept_NKD, filled_NKD, positions_NPD], dim=1)
    if num_rows == num_wanted and not (source_prefix and target_prefix) and (rules.cls == "copy" or not target_prefix):
        return rows_NPD
    raise ValueError(f"{num_rows} tokens are not {num_wanted}, and a grid is not known")


def grid(layer: Layer) -> tuple[int, int]:
    """Return the height and width of a layer's positions; a sequence without a grid is one row of them."""
    if layer.grid is not None:
        return layer.grid
    tokens = layer.shape[layer.axes.index("T") - 1]
    return 1, tokens - layer.num_prefix


def compared(a: Tensor, b: Tensor, source: Layer, target: Layer) -> tuple[Tensor, Tensor]:
    """Return centred matrices with equal rows: positions of equal maps, tokens of equal sequences, else pooled."""
    rows_a, rows_b = rows(a, source), rows(b, target)
    maps = source.kind == target.kind == "map" and source.grid == target.grid
    sequences = source.kind == target.kind == "tokens" and rows_a.shape[1] == rows_b.shape[1]
    if maps or sequences:
        x, y = rows_a.flatten(0, 1), rows_b.flatten(0, 1)
    else:
        x, y = pooled(rows_a, source), pooled(rows_b, target)
    return x - x.mean(0), y - y.mean(0)
