"""Laying the representation of one layer on the positions of another, and how rows are shaped for the indices.

A representation is split into *prefix* tokens (class and register tokens) and *positions* (of a map, or patch tokens);
a vector is one position. The manual (networks) has the rules with their formulas; `alignment_name` names the one used.

Shape suffixes: N images, P positions, K prefix tokens, D features, H positions on one side of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.errors import InputError
from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer

SUBSAMPLED_FROM = 3  # a bilinear reduction by this factor reads only some of the source's positions
UPSAMPLED_ABOVE = 16  # times a side: the target's neighbours then share their source
BLOCK_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 25}  # of rows that are brought to float64 at a time
Grid = tuple[int, int]
_MODES = {"bilinear": "bilinear", "area": "area", "nearest": "nearest-exact"}  # of torch's interpolate


DEFAULT_RULES = Rules()


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
    return Layout(num_prefix=layer.num_prefix, grid=(1, layer.num_tokens - layer.num_prefix))


def layouts_of(source: Layer, target: Layer) -> tuple[Layout, Layout]:
    """Return the layouts in which a source's rows are laid on a target's.

    A sequence of which only the order is known takes over the other's grid where the counts agree: token k is token k.
    """
    ours, theirs = layout_of(source), layout_of(target)
    if not _by_order(source, target):
        return ours, theirs
    if ours.num_prefix == theirs.num_prefix or (source.num_prefix and target.num_prefix):
        grid = theirs.grid if source.is_in_order_only else ours.grid
        return replace(ours, grid=grid), replace(theirs, grid=grid)
    line = Layout(num_prefix=0, grid=(1, ours.num_rows))  # nothing is known of the tokens before one of the grids
    return line, line


def _by_order(source: Layer, target: Layer) -> bool:
    """Return whether tokens of two sequences correspond by their order, since of one of them no more is known."""
    if source.kind != "tokens" or target.kind != "tokens":
        return False
    if not (source.is_in_order_only or target.is_in_order_only):
        return False
    if source.num_prefix == target.num_prefix or not (source.num_prefix and target.num_prefix):
        return source.num_tokens == target.num_tokens
    return source.num_tokens - source.num_prefix == target.num_tokens - target.num_prefix


def check_geometry(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> None:
    """See that a source can be laid on a target by what is known of both.

    Raises:
        InputError: If rows would have to be resized, or prefix tokens told from others, on a guess.
    """
    unknown = [layer for layer in (source, target) if layer.is_in_order_only]
    if not unknown or "vector" in {source.kind, target.kind} or layout_of(source) == layout_of(target):
        return
    if not _by_order(source, target):
        raise InputError(
            f"{_words(source)} cannot be laid on {_words(target)}: nothing tells how the tokens of "
            f"{' and '.join(repr(layer.name) for layer in unknown)} lie on a grid; say so in the model's table, such "
            "as tokens = { prefix = 1, grid = [4, 4] } for a class token and 4 x 4 patches."
        )
    if rules.cls != "copy" and layouts_of(source, target)[1].num_prefix != target.num_prefix:
        raise InputError(
            f'cls = "{rules.cls}" needs to know which tokens of {_words(source)} come before its grid; say so in the '
            "model's table, such as tokens = { prefix = 1, grid = [4, 4] }."
        )


def is_known(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether a source can be laid on a target without a guess."""
    try:
        check_geometry(source, target, rules)
    except InputError:
        return False
    return True


def _words(layer: Layer) -> str:
    if layer.kind == "map":
        return f"{layer.name!r} (a map)"
    grid = f"a grid of {layer.grid[0]} x {layer.grid[1]}" if layer.grid else "no known grid"
    return f"{layer.name!r} ({layer.num_tokens} tokens, {grid})"


def alignment_name(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> str:
    """Return the name of what is done to lay `source` on `target`, as the `alignment` column shows it.

    Steps are joined by `+`; `identity` where rows stay what they are.

    Raises:
        InputError: If what is done would rest on a guess.
    """
    check_geometry(source, target, rules)
    ours, theirs = layouts_of(source, target)
    steps = [f"{source.kind}_to_{target.kind}"] if {source.kind, target.kind} == {"map", "tokens"} else []
    if theirs.grid is None and ours.grid is not None:
        return "cls" if rules.pool == "cls" and ours.num_prefix else "mean"
    if theirs.num_prefix:
        steps += _prefix_steps(ours, theirs, rules)
    elif ours.num_prefix:
        steps.append("cls_left_out")
    if ours.grid is None and theirs.grid is not None:
        steps.append("broadcast")
    elif ours.grid != theirs.grid:
        steps.append(rules.resize)
    return "+".join(steps) or "identity"


def _prefix_steps(ours: Layout, theirs: Layout, rules: Rules) -> list[str]:
    if rules.cls == "drop":
        return ["cls_drop"]
    if rules.cls == "pool" or not ours.num_prefix:
        return ["cls_pool"]
    if ours.num_prefix < theirs.num_prefix:
        return ["cls_copy_pool"]
    return [] if ours.num_prefix == theirs.num_prefix else ["cls_left_out"]


def is_subsampled(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether resizing reads only some of the source's positions."""
    reductions = [ours / theirs for ours, theirs in _sides(source, target)]
    if rules.resize == "nearest":
        return any(reduction > 1 for reduction in reductions)
    return rules.resize == "bilinear" and any(reduction >= SUBSAMPLED_FROM for reduction in reductions)


def is_upsampled(source: Layer, target: Layer) -> bool:
    """Return whether a side of the source's grid is blown up more than 16-fold; a vector has a grid of one."""
    return any(theirs > UPSAMPLED_ABOVE * ours for ours, theirs in _sides(source, target))


def _sides(source: Layer, target: Layer) -> list[tuple[int, int]]:
    """Return (source, target) sizes of both sides of the grids; none where the target is a vector."""
    ours, theirs = layouts_of(source, target)
    return [] if theirs.grid is None else list(zip(ours.grid or (1, 1), theirs.grid, strict=True))


def index_shaping(source: Layer, target: Layer) -> str:
    """Return how rows are shaped for CCA, Procrustes and regression: positions, tokens or pooled.

    Two maps of equal height and width give position rows, two sequences of equal token count token rows, anything
    else one pooled row an image. (The authors ask for equal width of maps too.)
    """
    if source.kind == target.kind == "map" and source.grid == target.grid:
        return "positions"
    if source.kind == target.kind == "tokens" and source.num_tokens == target.num_tokens:
        return "tokens"
    return "pooled"


def rows_of(a: Tensor, layer: Layer) -> Tensor:
    """Return a batch of activations as (N, rows, D), prefix tokens first."""
    if layer.kind == "vector":
        return a.unsqueeze(1)
    return a.flatten(2).mT if layer.feature_axis == 1 else a.flatten(1, -2)


def pooled(a: Tensor, layer: Layer) -> Tensor:
    """Return one row an image, float64: the mean over positions, prefix tokens left out (the authors include CLS).

    In float32 the mean of rows at an offset of 1e3 would lose what rows are compared by: the offset is taken off later.
    """
    positions_NPD = rows_of(a, layer)[:, layer.num_prefix :]
    total_ND = torch.cat([some_NPD.sum(1, dtype=torch.float64) for some_NPD in image_blocks(positions_NPD)])
    return total_ND / total_ND.new_full((), positions_NPD.shape[1])


def image_blocks(rows_NPD: Tensor) -> Sequence[Tensor]:
    """Return rows a few images at a time, so that what is made of them in float64 does not leave the caches."""
    numbers = BLOCK_NUMBERS.get(rows_NPD.device.type, BLOCK_NUMBERS["cuda"])
    return torch.split(rows_NPD, max(1, numbers // max(1, rows_NPD[:1].numel())))


def lay(a: Tensor, source: Layer, target: Layout, rules: Rules = DEFAULT_RULES) -> Tensor:
    """Return activations of `source` laid on the target's rows: (N, target.num_rows, D)."""
    return resize_rows(rows_of(a, source), layout_of(source), target, rules)


def resize_rows(rows_NPD: Tensor, source: Layout, target: Layout, rules: Rules = DEFAULT_RULES) -> Tensor:
    """Return rows of one layout laid on another.

    The operation is linear and, but for dropped prefix tokens, its weights sum to one: it commutes with affine maps.
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


def _resized(positions_NPD: Tensor, ours: Grid, theirs: Grid, rules: Rules) -> Tensor:
    """Return positions of one grid on another.

    A GPU's kernels would sum gradients in an order that changes from run to run: there products with the weights of
    both sides find them.
    """
    if positions_NPD.requires_grad and positions_NPD.device.type != "cpu":
        device, dtype = positions_NPD.device, positions_NPD.dtype
        return on_sides(
            [_side_on(device, dtype, *lengths, rules) for lengths in zip(ours, theirs, strict=True)], positions_NPD
        )
    map_NDHW = positions_NPD.mT.reshape(len(positions_NPD), -1, *ours)
    corners = {"align_corners": False} if rules.resize == "bilinear" else {}
    return functional.interpolate(map_NDHW, size=theirs, mode=_MODES[rules.resize], **corners).flatten(2).mT


def side_weights(ours: int, theirs: int, rules: Rules) -> Tensor:
    """Return the weights by which one side of a grid becomes one of another length: (theirs, ours), float64."""
    unit_HH = torch.eye(ours, dtype=torch.float64)
    if not theirs:
        return unit_HH[:0]
    column, resized = Layout(num_prefix=0, grid=(ours, 1)), Layout(num_prefix=0, grid=(theirs, 1))
    return resize_rows(unit_HH[None], column, resized, rules)[0].contiguous()


def on_sides(sides: Sequence[Tensor], x_NPD: Tensor) -> Tensor:
    """Return rows of a grid of positions, multiplied by weights along its height, then its width."""
    high, wide = sides
    num_images, num_features = len(x_NPD), x_NPD.shape[2]
    x_NPD = high @ x_NPD.reshape(num_images, high.shape[1], wide.shape[1] * num_features)
    x_NPD = wide @ x_NPD.reshape(num_images * len(high), wide.shape[1], num_features)
    return x_NPD.reshape(num_images, len(high) * len(wide), num_features)


@lru_cache(maxsize=256)
def _side_on(device: torch.device, dtype: torch.dtype, ours: int, theirs: int, rules: Rules) -> Tensor:
    """Return `side_weights` where they are used, brought there once."""
    return side_weights(ours, theirs, rules).to(device, dtype)


def keeps_means(target: Layout, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether the weights of `resize_rows` sum to one for each row, so that it commutes with affine maps."""
    return rules.cls != "drop" or not target.num_prefix


def is_identity(source: Layout, target: Layout, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether `resize_rows` returns the rows as they are."""
    return source == target and (rules.cls == "copy" or not target.num_prefix)


def _prefix(prefix_NKD: Tensor, positions_NPD: Tensor, num: int, rule: str) -> Tensor:
    """Return `num` prefix tokens made of a source's own and its positions."""
    if rule == "drop":
        return positions_NPD.new_zeros(len(positions_NPD), num, positions_NPD.shape[2])
    kept = prefix_NKD[:, : num if rule == "copy" else 0]
    missing = positions_NPD.mean(1, keepdim=True).expand(-1, num - kept.shape[1], -1)
    return torch.cat([kept, missing], dim=1)


def install(rows_NPE: Tensor, target: Layer) -> Tensor:
    """Return rows in the shape the target's own layer has: a view, hence maps in the channels-last memory format.

    That is the faster one for convolutions, forward and backward; `cut_network` makes halves accept it.
    """
    if target.kind == "vector":
        return rows_NPE.squeeze(1)
    positions = target.shape[: target.feature_axis - 1] + target.shape[target.feature_axis :]
    return rows_NPE.view(len(rows_NPE), *positions, -1).movedim(-1, target.feature_axis)
