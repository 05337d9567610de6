"""Layouts of representations, and how rows of one layout are resampled to another. Imports no torch.

A representation has *prefix* tokens (class and register tokens) and *positions* (of a map, or patch tokens); a vector
is one position. The manual (networks) has the rules with their formulas; `alignment_name` names the rules used.
"""

from dataclasses import dataclass, replace

from stitchgrid.errors import InputError
from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer

SUBSAMPLED_FROM = 3  # a bilinear reduction by this factor reads only some of the source's positions
UPSAMPLED_ABOVE = 16  # times a side: then neighbours in the target share one position of the source
Grid = tuple[int, int]
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
    """Return the layouts between which a source's rows are resampled to a target's.

    A sequence whose grid is not known takes the other layer's grid if the counts agree: token k is token k.
    """
    source_layout, target_layout = layout_of(source), layout_of(target)
    if not _by_order(source, target):
        return source_layout, target_layout
    if source_layout.num_prefix == target_layout.num_prefix or (source.num_prefix and target.num_prefix):
        grid = target_layout.grid if source.is_in_order_only else source_layout.grid
        return replace(source_layout, grid=grid), replace(target_layout, grid=grid)
    # Which tokens of one of them come before its grid is not known: all are a line.
    line = Layout(num_prefix=0, grid=(1, source_layout.num_rows))
    return line, line


def _by_order(source: Layer, target: Layer) -> bool:
    """Return whether tokens of two sequences correspond by their order, since the grid of one is not known."""
    if source.kind != "tokens" or target.kind != "tokens":
        return False
    if not (source.is_in_order_only or target.is_in_order_only):
        return False
    if source.num_prefix == target.num_prefix or not (source.num_prefix and target.num_prefix):
        return source.num_tokens == target.num_tokens
    return source.num_tokens - source.num_prefix == target.num_tokens - target.num_prefix


def check_geometry(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> None:
    """Check that enough is known of both layers to resample the source's rows to the target's.

    Raises:
        InputError: If rows would have to be resized, or prefix tokens found, on a guess.
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
    """Return whether a source's rows can be resampled to a target's without a guess."""
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
    """Return the names of the steps that resample `source` to `target`, as the `alignment` column shows them.

    Steps are joined by `+`; `identity` means that rows do not change.

    Raises:
        InputError: If a step would rest on a guess.
    """
    check_geometry(source, target, rules)
    source_layout, target_layout = layouts_of(source, target)
    steps = [f"{source.kind}_to_{target.kind}"] if {source.kind, target.kind} == {"map", "tokens"} else []
    if target_layout.grid is None and source_layout.grid is not None:
        return "cls" if rules.pool == "cls" and source_layout.num_prefix else "mean"
    if target_layout.num_prefix:
        steps += _prefix_steps(source_layout, target_layout, rules)
    elif source_layout.num_prefix:
        steps.append("cls_left_out")
    if source_layout.grid is None and target_layout.grid is not None:
        steps.append("broadcast")
    elif source_layout.grid != target_layout.grid:
        steps.append(rules.resize)
    return "+".join(steps) or "identity"


def _prefix_steps(source_layout: Layout, target_layout: Layout, rules: Rules) -> list[str]:
    if rules.cls == "drop":
        return ["cls_drop"]
    if rules.cls == "pool" or not source_layout.num_prefix:
        return ["cls_pool"]
    if source_layout.num_prefix < target_layout.num_prefix:
        return ["cls_copy_pool"]
    return [] if source_layout.num_prefix == target_layout.num_prefix else ["cls_left_out"]


def is_subsampled(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether resizing reads only some of the source's positions."""
    reductions = [source_side / target_side for source_side, target_side in _sides(source, target)]
    if rules.resize == "nearest":
        return any(reduction > 1 for reduction in reductions)
    return rules.resize == "bilinear" and any(reduction >= SUBSAMPLED_FROM for reduction in reductions)


def is_upsampled(source: Layer, target: Layer) -> bool:
    """Return whether a side of the source's grid is enlarged more than 16-fold; a vector has a grid of one position."""
    return any(target_side > UPSAMPLED_ABOVE * source_side for source_side, target_side in _sides(source, target))


def _sides(source: Layer, target: Layer) -> list[tuple[int, int]]:
    """Return (source, target) sizes of both sides of the grids; none if the target is a vector."""
    source_layout, target_layout = layouts_of(source, target)
    return (
        [] if target_layout.grid is None else list(zip(source_layout.grid or (1, 1), target_layout.grid, strict=True))
    )


def index_shaping(source: Layer, target: Layer) -> str:
    """Return how rows are shaped for CCA, Procrustes and regression: positions, tokens or pooled.

    Two maps of equal height and width give position rows, two sequences of equal token count token rows, anything
    else one pooled row per image. (Balogh & Jelasity 2025 also ask for equal numbers of channels of maps.)
    """
    if source.kind == target.kind == "map" and source.grid == target.grid:
        return "positions"
    if source.kind == target.kind == "tokens" and source.num_tokens == target.num_tokens:
        return "tokens"
    return "pooled"


def keeps_means(target: Layout, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether the weights of `resize_rows` sum to one for each row, so that it commutes with affine maps."""
    return rules.cls != "drop" or not target.num_prefix


def is_identity(source: Layout, target: Layout, rules: Rules = DEFAULT_RULES) -> bool:
    """Return whether `resize_rows` returns the rows as they are."""
    return source == target and (rules.cls == "copy" or not target.num_prefix)
