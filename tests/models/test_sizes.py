"""Sizes that are read early and used late are no path past the layers between."""

import pytest
import torch
from helpers_models import noise, stirred
from torch import nn

from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.select import select_layers


class Block(nn.Module):
    """Tokens laid out as a map, and back."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x, images, height, width):
        x = x.transpose(1, 2).reshape(images, 6, height, width)
        return torch.relu(self.conv(x)).flatten(2).transpose(1, 2)


class Sized(nn.Module):
    """Its blocks are told the sizes of the first map."""

    def __init__(self, read):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 2, 2), nn.ModuleList(Block() for _ in range(3))
        self.head, self.read = nn.Linear(6, 10), read

    def forward(self, x):
        x = self.stem(x)
        images, height, width = self.read(x)
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, images, height, width)
        return self.head(x.mean(1))


READ = {
    "shape": lambda x: (x.shape[0], x.shape[2], x.shape[3]),
    "size": lambda x: (x.size(0), x.size(2), x.size(3)),
    "size of all": lambda x: (x.size()[0], x.size()[-2], x.size()[-1]),
    "worked out": lambda x: (x.numel() // (6 * x.shape[2] * x.shape[3]), x.shape[2] * 2 // 2, x.shape[3]),
}


@pytest.mark.parametrize("read", READ)
def test_blocks_that_are_told_sizes_are_cuts_and_halves_run_on_any_number_of_images(read):
    module = stirred(Sized(READ[read]))
    cut = cut_network(module, (3, 8, 12))
    assert cut.way == "graph"
    blocks = select_layers(cut, ["blocks"])
    assert [(one.name, one.layer.grid) for one in blocks] == [(f"blocks.{k}", (4, 6)) for k in range(3)]
    for num_images in (1, 2, 7):
        images = noise(num_images, 3, 8, 12)
        with torch.no_grad():
            whole = module(images)
            for one, a in zip(blocks, cut.taps([one.node for one in blocks])(images), strict=True):
                assert torch.equal(cut.suffix(one.node)(a), whole)
            (first, *_), (*_, last) = (cut.taps([blocks[k].node])(images) for k in (0, -1))
            assert torch.equal(cut.behind(blocks[0].node, [blocks[-1].node])(first)[0], last)


def test_a_value_of_the_images_is_a_path_whatever_it_is_used_for():
    """How far tokens are shifted depends on the images themselves, by way of an integer."""

    class Shifted(Sized):
        def forward(self, x):
            x = self.stem(x)
            images, height, width = x.shape[0], x.shape[2], x.shape[3]
            shift = x.detach().abs().sum().long() % 2
            x = x.flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = block(x, images, height, width) + shift
            return self.head(x.mean(1))

    cut = cut_network(stirred(Shifted(None)), (3, 8, 12))
    assert not {one.name for one in cut.cuts} & {"blocks.0", "blocks.1"}


def test_sizes_are_left_alone_where_all_blocks_are_cuts_anyway():
    """Cuts that a network has had are numbered as before: their depths are part of what is known of them."""

    class Early(Sized):
        def forward(self, x):
            x = self.stem(x)
            images = x.shape[0]
            x = torch.tanh(x).reshape(images, 6, 24).transpose(1, 2)
            for block in self.blocks:
                x = block(x, x.shape[0], 4, 6)
            return self.head(x.mean(1))

    cut = cut_network(stirred(Early(None)), (3, 8, 12))
    assert cut.sizes == {}
    assert "tanh" not in {one.name for one in cut.cuts}
    assert [one.name for one in select_layers(cut, ["blocks"])] == [f"blocks.{k}" for k in range(3)]
