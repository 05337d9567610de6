"""What the axes of a tensor stand for: the algebra on its own, and followed through networks that hide it."""

import pytest
import torch
import torch.nn.functional as F
from helpers_models import network, stirred
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from stitchgrid.models.axes import fresh, permuted, read, reshaped, resized, scaled
from stitchgrid.models.cut_network import cut_network

# the algebra, against tensors whose entries say where they are


def coordinates(num: int, channels: int, height: int, width: int) -> Tensor:
    """Return an (N, C, H, W, 4) tensor of each entry's own indices."""
    return torch.stack(torch.meshgrid(*map(torch.arange, (num, channels, height, width)), indexing="ij"), dim=-1)


def grid_by_entries(tokens_THW: Tensor) -> tuple[int, int] | None:
    """Return height and width where tokens, given by their (h, w), run through a grid row by row."""
    height, width = (int(tokens_THW[:, k].max()) + 1 for k in range(2))
    wanted = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    return (height, width) if torch.equal(tokens_THW, wanted.flatten(0, 1)) else None


steps = st.lists(st.sampled_from(["split", "merge", "permute"]), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(steps=steps, data=st.data())
def test_whatever_is_split_merged_and_permuted_a_map_is_read_as_one_only_where_its_entries_are_in_place(steps, data):
    size = (2, 3, 4, 6)
    at, axes = coordinates(*size), fresh(size, "NCHW")
    for step in steps:
        shape = list(at.shape[:-1])
        if step == "permute":
            order = data.draw(st.permutations(range(1, len(shape))))
            at, made = at.permute(0, *order, len(shape)), permuted(axes, (0, *order))
        else:
            k = data.draw(st.integers(1, len(shape) - 1))
            if step == "split":
                divisors = [d for d in range(1, shape[k] + 1) if shape[k] % d == 0]
                first = data.draw(st.sampled_from(divisors))
                shape[k : k + 1] = [first, shape[k] // first]
            elif k + 1 < len(shape):
                shape[k : k + 2] = [shape[k] * shape[k + 1]]
            at, made = at.reshape(*shape, 4), reshaped(axes, shape)
        if made is None:
            return  # what cuts across a factor is unknown from here on
        axes = made
    reading = read(axes)
    if reading is None:
        return
    first = at[0]
    if reading.axes in {"NCHW", "NHWC"}:
        one = first if reading.axes == "NCHW" else first.permute(2, 0, 1, 3)
        assert torch.equal(one[0, :, :, 2:].flatten(0, 1), first.reshape(-1, 4)[:, 2:].unique(dim=0))
    if reading.axes in {"NTD", "NDT"} and reading.grid is not None:
        tokens = first[:, 0] if reading.axes == "NTD" else first[0]
        assert grid_by_entries(tokens[:, 2:]) == reading.grid


def test_windows_are_no_map_and_become_one_again():
    axes = fresh((2, 3, 8, 8), "NCHW")
    apart = permuted(reshaped(axes, (2, 3, 4, 2, 4, 2)), (0, 2, 4, 3, 5, 1))
    windows = reshaped(apart, (2, 16, 4, 3))
    assert read(windows) is None
    together = permuted(reshaped(windows, (2, 4, 4, 2, 2, 3)), (0, 5, 1, 3, 2, 4))
    assert read(reshaped(together, (2, 3, 8, 8))) == read(axes)
    swapped = permuted(reshaped(windows, (2, 4, 4, 2, 2, 3)), (0, 5, 3, 1, 2, 4))
    assert read(reshaped(swapped, (2, 3, 8, 8))) is None


def test_a_size_that_cuts_across_an_axis_is_unknown():
    assert reshaped(fresh((2, 3, 4, 17), "NCHW"), (2, 17, 12)) is None
    assert read(resized(fresh((2, 3, 4, 4), "NCHW"), (2, 5, 4, 4))).axes == "NCHW"


@pytest.mark.parametrize(("shape", "known"), [((2, 4, 4, 24), True), ((2, 4, 5, 24), False), ((2, 16, 24), False)])
def test_an_operation_that_is_not_looked_into_keeps_a_map_that_it_scales_evenly(shape, known):
    assert (scaled(fresh((2, 8, 8, 6), "NHWC"), shape) is not None) == known


# followed through networks


def layers(module: nn.Module, side: int) -> dict[str, tuple[str, int, tuple[int, int] | None]]:
    cut = cut_network(stirred(module), (3, side, side))
    return {c.name: (c.layer.axes, c.layer.num_prefix, c.layer.grid) for c in cut.cuts}


def test_swin_is_features_last_inside_and_features_first_at_both_ends():
    found = layers(network("torchvision:swin_t", num_classes=10), 64)
    assert found["features.0.0"] == ("NCHW", 0, (16, 16))
    assert found["features.1.1"] == ("NHWC", 0, (16, 16))
    assert found["features.2"] == found["features.3.0"] == ("NHWC", 0, (8, 8))
    assert found["features.7.1"] == ("NHWC", 0, (2, 2))
    assert found["permute"] == ("NCHW", 0, (2, 2))


def test_convnext_turns_its_maps_around_for_a_norm_and_back():
    found = layers(network("torchvision:convnext_tiny", num_classes=10), 32)
    assert found["features.2.0.layer_norm"] == ("NHWC", 0, (8, 8))
    assert found["features.2.0"] == found["features.1.2"] == ("NCHW", 0, (8, 8))


def test_a_vision_transformer_is_a_grid_before_its_class_token_and_one_token_more_after():
    found = layers(network("torchvision:vit_b_32", num_classes=10, image_size=96), 96)
    assert found["reshape"] == ("NDT", 0, (3, 3))
    assert found["permute"] == ("NTD", 0, (3, 3))
    assert found["encoder.layers.encoder_layer_11"] == ("NTD", 1, (3, 3))
    assert found["getitem_5"] == ("ND", 0, None)


class Patches(nn.Module):
    """Patches of two images of unlike sides, with constant tokens joined on either side."""

    def __init__(self, *, before: int, after: int):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, stride=2)
        self.first = nn.Parameter(torch.zeros(1, before, 6)) if before else None
        self.last = nn.Parameter(torch.zeros(1, after, 6)) if after else None
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        tokens = [one.expand(x.shape[0], -1, -1) if one is not None else None for one in (self.first, self.last)]
        x = torch.cat([part for part in (tokens[0], x, tokens[1]) if part is not None], dim=1)
        return self.head(self.norm(x).mean(1))


@pytest.mark.parametrize(
    ("before", "after", "prefix", "grid"), [(1, 0, 1, (4, 4)), (5, 0, 5, (4, 4)), (1, 1, 0, None), (0, 2, 0, None)]
)
def test_only_tokens_in_front_of_a_grid_leave_it_a_grid(before, after, prefix, grid):
    found = layers(Patches(before=before, after=after), 8)
    assert found["norm"] == ("NTD", prefix, grid)


class Registers(Patches):
    """Leaves its register tokens out before the head, as some transformers do."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.size(0), -1, -1), x], dim=1)
        return self.head(self.norm(x[:, 3:]).mean(1))


def test_slicing_tokens_off_the_front_leaves_fewer():
    assert layers(Registers(before=4, after=0), 8)["norm"] == ("NTD", 1, (4, 4))


@fx.wrap
def stirred_up(x):
    return torch.fft.fft(x).real.reshape(x.shape[0], x.shape[2], x.shape[1], x.shape[3])


class Hidden(nn.Module):
    """Does what cannot be followed, and gives the result to a convolution, or to a mean."""

    def __init__(self, *, to_convolution: bool):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(6, 4, 1) if to_convolution else None
        self.head = nn.Linear(4 if to_convolution else 36, 10)

    def forward(self, x):
        x = torch.relu(stirred_up(self.stem(x)))
        return self.head(self.conv(x).mean((2, 3)) if self.conv is not None else x.mean(2).flatten(1))


def test_what_cannot_be_followed_is_read_as_the_convolution_after_it_reads_it():
    found = layers(Hidden(to_convolution=True), 6)
    assert found["relu"] == ("NCHW", 0, (4, 6))


def test_what_cannot_be_followed_and_nobody_explains_cannot_be_stitched():
    cut = cut_network(stirred(Hidden(to_convolution=False)), (3, 6, 6))
    (relu,) = [c for c in cut.cuts if c.name == "relu"]
    assert not relu.can_be_stitched


def made_by(module: nn.Module) -> tuple[str, int, tuple[int, int] | None]:
    """Return what a module of one operation makes of an (N, C, H, W) map as a cut network reads it."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inside, self.head = nn.Conv2d(3, 4, 1), module, nn.Linear(1, 10)

        def forward(self, x):
            return self.head(self.inside(self.stem(x)).flatten(1).mean(1, keepdim=True))

    found = layers(Around(), 6)
    return [value for name, value in found.items() if name.startswith("inside")][-1]


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "reading"),
    [
        (lambda x: x.permute(0, 2, 3, 1), ("NHWC", 0, (6, 6))),
        (lambda x: torch.permute(x, (0, 2, 3, 1)), ("NHWC", 0, (6, 6))),
        (lambda x: x.transpose(1, 3), ("NHWC", 0, (6, 6))),  # (N, W, H, C): put back
        (lambda x: x.flatten(2), ("NDT", 0, (6, 6))),
        (lambda x: x.flatten(2).transpose(1, 2), ("NTD", 0, (6, 6))),
        (lambda x: x.flatten(2).mT + 0, ("NTD", 0, (6, 6))),
        (lambda x: x.mT.flatten(2).mT + 0, ("NHWC", 0, (6, 6))),  # column by column: put back
        (lambda x: x.mean(3), ("NDT", 0, (6, 1))),
        (lambda x: x.mean((2, 3)), ("ND", 0, None)),
        (lambda x: x.mean((2, 3), keepdim=True), ("NCHW", 0, (1, 1))),
        (lambda x: F.avg_pool2d(x, 2), ("NCHW", 0, (3, 3))),
        (lambda x: F.interpolate(x, scale_factor=2), ("NCHW", 0, (12, 12))),
        (lambda x: F.pad(x, (1, 1, 0, 0)), ("NCHW", 0, (6, 8))),
        (lambda x: x[:, :, ::2, 1:], ("NCHW", 0, (3, 5))),
        (lambda x: x[..., 0], ("NDT", 0, (6, 1))),
        (lambda x: torch.cat([x, x.abs()], dim=1), ("NCHW", 0, (6, 6))),
        (lambda x: torch.cat([x, x.abs()], dim=2), None),
        (lambda x: x.chunk(2, dim=1)[0], ("NCHW", 0, (6, 6))),
    ],
)
def test_operations_move_axes_as_they_should(function, reading):
    found = made_by(Applied(function))
    assert found == (reading or ("", 0, None))
