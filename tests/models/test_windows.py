"""Rows in windows are put back in their places, and recurrent layers over rows are cut."""

import pytest
import torch
import torch.nn.functional as F
from helpers_models import noise, stirred
from torch import nn
from torchvision.models import MaxVit

from stitchgrid.models.axes import coarser, fresh, permuted, put_back, reshaped
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.cuts import as_made, as_seen
from stitchgrid.models.select import select_layers


@pytest.mark.parametrize(
    "steps",
    [
        [("reshape", (2, 2, 4, 3, 4, 5)), ("permute", (0, 1, 3, 2, 4, 5)), ("reshape", (12, 16, 5))],  # Swin's
        [("reshape", (2, 2, 4, 3, 4, 5)), ("permute", (0, 2, 4, 1, 3, 5)), ("reshape", (2, 16, 6, 5))],  # a grid's
        [("permute", (0, 2, 1, 3)), ("reshape", (2, 96, 5))],  # column by column
        [("permute", (1, 2, 3, 0)), ("reshape", (2, 4, 12, 10))],  # images behind the features
    ],
)
def test_an_entry_comes_back_to_its_place_and_goes_to_where_it_was(steps):
    """Every entry is its own place's number, so that the maps of both ways can be read off."""
    maps = torch.arange(2 * 8 * 12 * 5).view(2, 8, 12, 5)
    made, axes = maps, fresh(maps.shape, "NHWC")
    for name, value in steps:
        made = getattr(made, name)(value)
        axes = {"reshape": reshaped, "permute": permuted}[name](axes, value)
    reading = put_back(axes)
    assert (reading.axes, reading.grid) == ("NHWC", (8, 12))
    form = (0, torch.int64, tuple(range(made.dim())), reading.windows)
    assert torch.equal(as_seen(made, *form), maps)
    assert torch.equal(as_made(maps, *form), made)
    more = torch.cat([maps, maps + 1000, maps[:1]])  # another number of images
    assert torch.equal(as_seen(as_made(more, *form), *form), more)


def test_what_is_not_whole_or_not_known_is_not_put_back():
    windows = reshaped(fresh((2, 8, 12, 5), "NHWC"), (2, 2, 4, 12, 5))
    assert put_back(windows) is not None
    assert put_back(windows[:2] + windows[3:]) is None  # one row of each window
    assert put_back((*windows[:-1], *fresh((5,), "?"))) is None
    assert put_back(fresh((2, 5), "NC")) is None
    assert put_back(None) is None


def test_windows_of_maxvit_hold_the_rows_of_the_map_before_them():
    """Cutting into windows moves rows and changes none: put back, they are the map that went in."""
    arguments = {"stem_channels": 8, "partition_size": 2, "block_channels": [8], "block_layers": [1], "head_dim": 4}
    module = MaxVit(input_size=(16, 16), stochastic_depth_prob=0.0, num_classes=10, **arguments)
    cut = cut_network(stirred(module), (3, 16, 16))
    assert all(one.can_be_stitched for one in cut.cuts)
    home = "blocks.0.layers.0.layers."
    windows = [one for one in cut.cuts if one.windows is not None]
    assert {one.name.removeprefix(home).split(".")[0] for one in windows} == {"window_attention", "grid_attention"}
    wanted = [f"{home}MBconv", f"{home}window_attention.partition_op", f"{home}grid_attention.partition_op"]
    before, after = f"{home}window_attention", f"{home}grid_attention.partition_swap"
    nodes = [one.node for name in [*wanted, before, after] for one in select_layers(cut, [name])]
    images = noise(3, 3, 16, 16)
    with torch.no_grad():
        maps, first, second, between, swapped = cut.taps(nodes)(images)
        whole = cut.whole(images)
        assert torch.equal(first, maps.permute(0, 2, 3, 1))
        assert torch.equal(second, between.permute(0, 2, 3, 1))
        assert torch.equal(swapped, second)
        for one in windows:
            (a,) = cut.taps([one.node])(images)
            assert a.shape == (3, *one.layer.shape)
            assert torch.allclose(cut.suffix(one.node)(a), whole, atol=1e-6)


@pytest.mark.parametrize("patch", [(0, 0), (3, 9), (10, 2), (15, 15)])
def test_a_patch_of_the_image_moves_the_row_at_its_place(patch, hiera):
    """Hiera has its rows in windows within windows: `unroll` is its patches, before any of them sees another."""
    node = next(one.node for one in hiera.cuts if one.windows is not None)
    row, column = patch
    images = noise(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, 4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3] += 1
    with torch.no_grad():
        (before,), (after,) = (hiera.taps([node])(some) for some in (images, changed))
    moved = (before - after).abs().sum(-1)[0].gt(1e-4).nonzero().tolist()
    reached = [[row + down, column + right] for down in (0, 1) for right in (0, 1)]  # of 7x7 pixels, 4 apart
    assert moved == [place for place in reached if max(place) < 16]


@pytest.fixture(scope="module")
def hiera():
    timm = pytest.importorskip("timm")
    return cut_network(
        timm.create_model("hiera_tiny_224", num_classes=10, img_size=(64, 64), embed_dim=24), (3, 64, 64)
    )


class Mix(nn.Sequential):
    """A block."""


class Unrolled(nn.Module):
    """Rows in patches of patches, pooled patch by patch, as Hiera has them; sizes are read once, at the beginning."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.how, self.head = nn.Conv2d(3, 6, 2, 2), how, nn.Linear(6, 10)
        self.mixing = nn.ModuleList(Mix(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        images, height, width = x.shape[0], x.shape[1], x.shape[2]
        x = x.reshape(images, height // 2, 2, width // 2, 2, 6).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(images * 4, height // 4, 2, width // 4, 2, 6).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(images, height * width, 6)
        for k, mix in enumerate(self.mixing):
            x = mix(x)
            if k < 2:
                x = x.view(images, 4, height * width // 4 ** (k + 1), 6)
                x = self.how(x)
        return self.head(x.mean(1))


POOLINGS = {
    "max": (lambda x: x.max(dim=1).values, F.max_pool2d),
    "largest": (lambda x: torch.max(x, 1)[0], F.max_pool2d),
    "amax": (lambda x: x.amax(1), F.max_pool2d),
    "mean": (lambda x: x.mean(dim=1), F.avg_pool2d),
}


@pytest.mark.parametrize("how", POOLINGS)
def test_rows_in_patches_that_are_pooled_are_the_pooled_map(how):
    along, plain = POOLINGS[how]
    module = stirred(Unrolled(along))
    cut = cut_network(module, (3, 16, 24))
    layers = {one.layer.name: one for one in cut.cuts}
    images = noise(5, 3, 16, 24)
    with torch.no_grad():
        wanted, whole = module.stem(images), module(images)
        for k, mix in enumerate(module.mixing):
            wanted = mix(wanted.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            one = layers[f"mixing.{k}"]
            assert one.layer.grid == tuple(wanted.shape[2:])
            (a,) = cut.taps([one.node])(images)
            rows = a.reshape(5, *one.layer.grid, 6).permute(0, 3, 1, 2)
            assert torch.allclose(rows, wanted, atol=1e-6)
            assert torch.allclose(cut.suffix(one.node)(a), whole, atol=1e-6)
            wanted = plain(wanted, 2)


def test_rows_of_which_only_some_patches_were_pooled_are_in_no_grid():
    rows = reshaped(fresh((2, 8, 8, 3), "NHWC"), (2, 2, 4, 2, 4, 3))
    whole_patches = coarser(rows, {2, 4})
    assert put_back([whole_patches[k] for k in (0, 1, 3, 5)]).grid == (2, 2)
    across = coarser(rows, {1, 3})  # the same place of every patch became one: no place of the image
    assert put_back([across[k] for k in (0, 2, 4, 5)]) is None


class Rows(nn.Module):
    """Recurrent layers over the rows of an image."""

    def __init__(self, kind, *, first, last, traceable):
        super().__init__()
        self.rnn, self.next = kind(24, 7, 2, batch_first=first), kind(7, 6, batch_first=first)
        self.head, self.first, self.last, self.traceable = nn.Linear(6, 10), first, last, traceable

    def forward(self, x):
        if not self.traceable and x.sum() > 1e9:
            x = -x
        x = x.permute(0, 2, 1, 3).flatten(2)
        x, _ = self.rnn(x if self.first else x.transpose(0, 1))
        x, states = self.next(x)
        if self.last:
            return self.head((states[0] if isinstance(self.next, nn.LSTM) else states)[-1])
        return self.head(x.mean(1 if self.first else 0))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_blocks_whose_rows_are_those_of_the_image(kind, first, last, traceable):
    cut = cut_network(stirred(Rows(kind, first=first, last=last, traceable=traceable)), (3, 8, 8))
    assert cut.way == ("graph" if traceable else "hooks")
    blocks = select_layers(cut, ["blocks"])
    assert [one.layer.shape for one in blocks] == [(8, 7), (1, 6) if last else (8, 6)]
    assert [one.layer.axes for one in blocks] == ["NTD", "NTD"]
    if traceable:
        assert blocks[0].layer.grid == (8, 1)
    images = noise(3, 3, 8, 8)
    changed = images.clone()
    changed[:, :, 5:] += 1  # a recurrent layer knows of later rows only from there on
    with torch.no_grad():
        (a, b), (c, _) = (cut.taps([one.node for one in blocks])(some) for some in (images, changed))
        assert torch.equal(a[:, :5], c[:, :5])
        assert not torch.isclose(a[:, 5:], c[:, 5:]).all(-1).any()
        for one, found in zip(blocks, (a, b), strict=True):
            assert torch.allclose(cut.suffix(one.node)(found), cut.whole(images), atol=1e-6)
