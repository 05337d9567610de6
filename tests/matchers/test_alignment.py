from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.engine.stitched import stitch_rows
from stitchgrid.matchers.alignment import install, pooled, resize_rows, rows_of
from stitchgrid.matchers.layouts import (
    DEFAULT_RULES,
    Layout,
    alignment_name,
    index_shaping,
    is_subsampled,
    is_upsampled,
    layout_of,
)
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.records import Layer


def layer(
    kind: str,
    shape: tuple[int, ...],
    *,
    axes: str | None = None,
    num_prefix: int = 0,
    grid: tuple[int, int] | None = None,
) -> Layer:
    axes = axes or {"map": "NCHW", "tokens": "NTD", "vector": "ND"}[kind]
    grid = grid if kind != "map" else (shape[axes.index("H") - 1], shape[axes.index("W") - 1])
    return Layer(
        name="x", node="x", depth=0.5, kind=kind, axes=axes, shape=shape, flops=1.0, num_prefix=num_prefix, grid=grid
    )


def lay(a: Tensor, source: Layer, target: Layout, rules: Rules = DEFAULT_RULES) -> Tensor:
    """Return activations of a layer as rows in another layout: (N, target.num_rows, D)."""
    return resize_rows(rows_of(a, source), layout_of(source), target, rules)


LAYERS = {
    "map 4x4": layer("map", (3, 4, 4)),
    "map 7x5": layer("map", (5, 7, 5)),
    "map 12x12": layer("map", (2, 12, 12)),
    "map 1x1": layer("map", (6, 1, 1)),
    "map 4x4, features last": layer("map", (4, 4, 3), axes="NHWC"),
    "map 7x5, features last": layer("map", (7, 5, 4), axes="NHWC"),
    "tokens 4x4": layer("tokens", (16, 4), grid=(4, 4)),
    "tokens 3x2": layer("tokens", (6, 4), grid=(3, 2)),
    "tokens 3x2, features first": layer("tokens", (5, 6), axes="NDT", grid=(3, 2)),
    "cls, tokens 4x4": layer("tokens", (17, 3), num_prefix=1, grid=(4, 4)),
    "cls, tokens 3x3": layer("tokens", (10, 3), num_prefix=1, grid=(3, 3)),
    "cls, 2 registers, tokens 4x4": layer("tokens", (19, 5), num_prefix=3, grid=(4, 4)),
    "line of 9": layer("tokens", (9, 4), grid=(1, 9)),
    "vector": layer("vector", (7,)),
}
RULES = [
    Rules(resize=resize, cls=cls, pool=pool)
    for resize, cls, pool in product(("bilinear", "area", "nearest"), ("copy", "pool", "drop"), ("mean", "cls"))
]
every_pair = pytest.mark.parametrize(("source", "target"), list(product(LAYERS, LAYERS)))
every_layer = pytest.mark.parametrize("name", LAYERS)


def activations(of: Layer, *, num: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(num, *of.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions_as_map(a: Tensor, of: Layer) -> Tensor:
    """Return what lies on the grid as (N, D, H, W); a vector lies on a grid of one."""
    if of.kind == "map":
        return a if of.axes == "NCHW" else a.permute(0, 3, 1, 2)
    if of.kind == "vector":
        return a[:, :, None, None]
    patches = tokens_of(a, of)[:, of.num_prefix :]
    height, width = of.grid or (1, patches.shape[1])
    return torch.stack([patches[:, k * width : (k + 1) * width] for k in range(height)], dim=2).permute(0, 3, 2, 1)


def tokens_of(a: Tensor, of: Layer) -> Tensor:
    return a if of.axes == "NTD" else a.transpose(1, 2)


def resized_by_the_book(on_grid: Tensor, size: tuple[int, int], rule: str) -> Tensor:
    """Return (N, D, H, W) of another size, every rule by a formula of its own or by the function that defines it."""
    if rule == "area":
        return functional.adaptive_avg_pool2d(on_grid, size)
    if rule == "nearest":
        rows, columns = (
            ((torch.arange(new) + 0.5) * old / new).floor().long()
            for new, old in zip(size, on_grid.shape[2:], strict=True)
        )
        return on_grid[:, :, rows][:, :, :, columns]
    return functional.interpolate(on_grid, size=size, mode="bilinear", align_corners=False, antialias=False)


def laid_by_the_book(a: Tensor, source: Layer, target: Layer, rules: Rules) -> Tensor:
    """Return `a` laid on the target, in the target's own shape but for the number of features."""
    on_grid = positions_as_map(a, source)
    mean = on_grid.mean((2, 3))
    own = list(tokens_of(a, source).unbind(1))[: source.num_prefix] if source.kind == "tokens" else []
    if target.kind == "vector":
        return own[0] if own and rules.pool == "cls" else mean
    size = target.grid or (1, target.shape[0] - target.num_prefix)
    if on_grid.shape[2:] != size:
        on_grid = resized_by_the_book(on_grid, size, rules.resize)
    if target.kind == "map":
        return on_grid if target.axes == "NCHW" else on_grid.permute(0, 2, 3, 1)
    stand_in = {"copy": mean, "pool": mean, "drop": torch.zeros_like(mean)}[rules.cls]
    prefix = [own[k] if rules.cls == "copy" and k < len(own) else stand_in for k in range(target.num_prefix)]
    laid = torch.stack([*prefix, *on_grid.flatten(2).unbind(2)], dim=1)
    return tokens_of(laid, target)


def in_shape_of(rows: Tensor, target: Layer) -> Tensor:
    """Return rows (N, rows, D) installed in the target with the width that they have."""
    shape = list(target.shape)
    shape[target.feature_axis - 1] = rows.shape[2]
    return install(rows.contiguous(), replace(target, shape=tuple(shape)))


@every_pair
def test_every_layer_is_laid_on_every_other_by_every_rule_as_the_book_has_it(source, target):
    f, g = LAYERS[source], LAYERS[target]
    a = activations(f)
    for rules in RULES:
        came = lay(a, f, layout_of(g), rules)
        assert came.shape == (3, layout_of(g).num_rows, f.width)
        torch.testing.assert_close(in_shape_of(came, g), laid_by_the_book(a, f, g, rules), rtol=1e-12, atol=1e-12)


@every_pair
def test_an_affine_map_commutes_with_laying(source, target):
    f, g = LAYERS[source], LAYERS[target]
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    stitch = AffineMap(weight_DE=draw(f.width, g.width), bias_E=draw(g.width))
    a = activations(f)
    for rules in RULES:
        wanted = stitch(lay(a, f, layout_of(g), rules))
        torch.testing.assert_close(stitch_rows(stitch, a, f, g, rules), wanted, rtol=1e-12, atol=1e-12)


@every_layer
def test_laying_a_layer_on_itself_and_installing_it_is_the_identity(name):
    of = LAYERS[name]
    a = activations(of)
    back = install(lay(a, of, layout_of(of)).clone(memory_format=torch.contiguous_format), of)
    assert torch.equal(back, a)


def test_an_installed_map_is_a_view_in_channels_last_format():
    for name in ("map 4x4", "map 4x4, features last"):
        of = LAYERS[name]
        rows = rows_of(activations(of), of).clone(memory_format=torch.contiguous_format)
        back = install(rows, of)
        assert back.data_ptr() == rows.data_ptr()
        assert positions_as_map(back, of).is_contiguous(memory_format=torch.channels_last)


@every_layer
def test_rows_have_one_feature_per_channel_and_pooling_leaves_prefix_tokens_out(name):
    of = LAYERS[name]
    a = activations(of)
    assert rows_of(a, of).shape == (3, layout_of(of).num_rows, of.width)
    torch.testing.assert_close(pooled(a, of), positions_as_map(a, of).mean((2, 3)))


def test_class_and_register_tokens_go_to_their_own_kind_and_the_mean_stands_in_for_those_that_lack():
    source, target = LAYERS["cls, tokens 4x4"], LAYERS["cls, 2 registers, tokens 4x4"]
    a = activations(source)
    laid = lay(a, source, layout_of(target))
    mean = a[:, 1:].mean(1)
    assert torch.equal(laid[:, 0], a[:, 0])
    torch.testing.assert_close(laid[:, 1], mean)
    torch.testing.assert_close(laid[:, 2], mean)
    assert torch.equal(laid[:, 3:], a[:, 1:])
    b = activations(target)
    assert torch.equal(lay(b, target, layout_of(source)), torch.cat([b[:, :1], b[:, 3:]], dim=1))


NAMES = {
    ("map 4x4", "map 4x4"): "identity",
    ("map 4x4", "map 4x4, features last"): "identity",
    ("vector", "vector"): "identity",
    ("vector", "map 1x1"): "broadcast",
    ("cls, tokens 4x4", "cls, tokens 4x4"): "identity",
    ("map 7x5", "map 4x4"): "bilinear",
    ("map 4x4", "vector"): "mean",
    ("cls, tokens 4x4", "vector"): "mean",
    ("vector", "map 4x4"): "broadcast",
    ("vector", "cls, tokens 4x4"): "cls_pool+broadcast",
    ("map 4x4", "tokens 4x4"): "map_to_tokens",
    ("map 4x4", "cls, tokens 4x4"): "map_to_tokens+cls_pool",
    ("tokens 4x4", "map 4x4"): "tokens_to_map",
    ("cls, tokens 4x4", "map 7x5"): "tokens_to_map+cls_left_out+bilinear",
    ("tokens 4x4", "cls, tokens 4x4"): "cls_pool",
    ("cls, tokens 4x4", "tokens 4x4"): "cls_left_out",
    ("cls, tokens 4x4", "cls, tokens 3x3"): "bilinear",
    ("cls, tokens 3x3", "cls, 2 registers, tokens 4x4"): "cls_copy_pool+bilinear",
    ("cls, 2 registers, tokens 4x4", "cls, tokens 4x4"): "cls_left_out",
}


@pytest.mark.parametrize(("source", "target"), NAMES)
def test_an_alignment_is_named_after_what_is_done(source, target):
    assert alignment_name(LAYERS[source], LAYERS[target]) == NAMES[source, target]


@pytest.mark.parametrize(
    ("source", "target", "rules", "name"),
    [
        ("map 7x5", "map 4x4", Rules(resize="area"), "area"),
        ("cls, tokens 4x4", "cls, tokens 3x3", Rules(resize="nearest", cls="pool"), "cls_pool+nearest"),
        ("cls, tokens 4x4", "cls, tokens 4x4", Rules(cls="pool"), "cls_pool"),
        ("map 4x4", "cls, tokens 4x4", Rules(cls="drop"), "map_to_tokens+cls_drop"),
        ("cls, tokens 4x4", "vector", Rules(pool="cls"), "cls"),
        ("map 4x4", "vector", Rules(pool="cls"), "mean"),
    ],
)
def test_an_alignment_names_the_rule_that_was_chosen(source, target, rules, name):
    assert alignment_name(LAYERS[source], LAYERS[target], rules) == name


@every_pair
def test_an_alignment_is_called_identity_exactly_where_rows_stay_what_they_are(source, target):
    f, g = LAYERS[source], LAYERS[target]
    a = activations(f)
    for rules in RULES:
        laid = lay(a, f, layout_of(g), rules)
        stays = laid.shape == rows_of(a, f).shape and torch.equal(laid, rows_of(a, f))
        name = alignment_name(f, g, rules)
        # one position is its own mean, and tokens without a class token are a map's positions under another name
        same = {"identity", "broadcast", "mean", "map_to_tokens", "tokens_to_map"}
        assert name in same if stays else name != "identity"
        assert (rules.resize in name) == (f.kind != "vector" != g.kind and layout_of(f).grid != layout_of(g).grid)


@every_pair
def test_subsampled_is_flagged_where_a_reduction_leaves_positions_unread(source, target):
    f, g = LAYERS[source], LAYERS[target]
    ours, theirs = layout_of(f).grid, layout_of(g).grid
    threefold = bool(ours and theirs) and any(a / b >= 3 for a, b in zip(ours, theirs, strict=True))
    assert is_subsampled(f, g) == threefold
    for rules in RULES:
        if is_subsampled(f, g, rules):
            assert unread_positions(f, g, rules)
        elif rules.resize != "bilinear":
            assert not unread_positions(f, g, rules)


def test_upsampled_is_flagged_above_sixteen_times_a_side():
    small, vector = layer("map", (3, 2, 2)), LAYERS["vector"]
    for side, flagged in ((32, False), (33, True)):
        assert is_upsampled(small, layer("map", (3, side, 8))) == flagged
        assert is_upsampled(small, layer("tokens", (side * 8, 3), grid=(8, side))) == flagged
    assert is_upsampled(vector, layer("map", (3, 17, 17)))
    assert not is_upsampled(vector, layer("map", (3, 16, 16)))
    assert not is_upsampled(layer("map", (3, 64, 64)), small)


def unread_positions(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> int:
    """Return how many positions of the source do not move the laid rows, but for the mean of prefix tokens."""
    if target.kind == "vector":
        return 0
    a = activations(source, num=1).requires_grad_()
    laid = lay(a, source, layout_of(target), rules)[:, target.num_prefix :]
    (gradient,) = torch.autograd.grad(laid.sum(), a)
    return int((positions_as_map(gradient, source)[0, 0] == 0).sum())


def test_halving_a_map_reads_all_of_its_positions():
    half = layer("map", (1, 6, 6))
    assert unread_positions(LAYERS["map 12x12"], half) == 0
    assert not is_subsampled(LAYERS["map 12x12"], half)


SHAPINGS = {
    ("map 4x4", "map 4x4"): "positions",
    ("map 4x4", "map 7x5"): "pooled",
    ("cls, tokens 4x4", "cls, tokens 4x4"): "tokens",
    ("cls, tokens 4x4", "tokens 4x4"): "pooled",
    ("tokens 4x4", "map 4x4"): "pooled",
    ("vector", "map 1x1"): "pooled",
    ("vector", "vector"): "pooled",
}


@pytest.mark.parametrize(("source", "target"), SHAPINGS)
def test_indices_compare_positions_of_equal_maps_tokens_of_equal_sequences_and_pooled_rows_otherwise(source, target):
    assert index_shaping(LAYERS[source], LAYERS[target]) == SHAPINGS[source, target]


def test_equal_maps_and_equal_sequences_of_unequal_width_are_compared_row_by_row():
    assert index_shaping(LAYERS["map 4x4"], layer("map", (9, 4, 4))) == "positions"
    assert index_shaping(LAYERS["map 4x4"], layer("map", (3, 4, 6))) == "pooled"
    assert index_shaping(LAYERS["cls, tokens 4x4"], layer("tokens", (17, 9))) == "tokens"
