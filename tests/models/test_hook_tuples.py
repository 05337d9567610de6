"""Modules that return more than a tensor: the one tensor that goes on is the cut, whatever is around it."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from helpers_models import stirred
from torch import nn

from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.hook_returned import images_axis
from stitchgrid.models.select import select_layers

Named = namedtuple("Named", ["weights", "hidden"])


@dataclass
class Unknown:
    """Not one of the containers that torch knows how to take apart."""

    hidden: torch.Tensor


class Block(nn.Module):
    """A residual block that wraps what it returns."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(6, 6, 3, padding=1), wrap

    def forward(self, x):
        return self.wrap(x, x + torch.relu(self.conv(x)))


class Chain(nn.Module):
    """Such blocks one after another, with a branch on values that torch.fx cannot follow."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.stem, self.head, self.unwrap = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 10), unwrap
        self.blocks = nn.ModuleList([Block(wrap) for _ in range(3)])

    def forward(self, x):
        x = self.stem(x)
        if x.sum() > 1e9:
            x = -x
        for block in self.blocks:
            x = self.unwrap(block(x))
        return self.head(x.mean((2, 3)))


GOING_ON = {  # what a block returns beside the input x and the output y, and what is taken of it
    "tuple": (lambda x, y: (y, None), lambda made: made[0]),
    "list": (lambda x, y: [3, y, "word"], lambda made: made[1]),
    "dictionary": (lambda x, y: {"shape": (8, 8), "hidden": y}, lambda made: made["hidden"]),
    "named tuple": (lambda x, y: Named(None, y), lambda made: made.hidden),
    "nested": (lambda x, y: (None, {"a": (y, 2)}), lambda made: made[1]["a"][0]),
    "the first of two tensors": (lambda x, y: (y, y.mean((2, 3))), lambda made: made[0]),
    "the second of two tensors": (lambda x, y: (x.mean((2, 3)), y), lambda made: made[1]),
    "one of two maps": (lambda x, y: (2 * y, y), lambda made: made[1]),
}


@pytest.mark.parametrize("kind", GOING_ON)
def test_the_one_tensor_that_goes_on_is_the_cut_and_its_halves_are_exact(kind):
    network = cut_network(stirred(Chain(*GOING_ON[kind])), (3, 8, 8))
    assert network.way == "hooks"
    blocks = select_layers(network, ["blocks"])
    assert [cut.name for cut in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert {(cut.layer.axes, cut.layer.grid) for cut in blocks} == {("NCHW", (8, 8))}
    nodes = [cut.node for cut in blocks]
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole, found = network.whole(images), network.taps(nodes)(images)
        for node, a in zip(nodes, found, strict=True):
            assert torch.equal(network.suffix(node)(a), whole)
            later = network.behind(node, [*nodes, network.logits][nodes.index(node) + 1 :])(a)
            assert all(map(torch.equal, later, (*found, whole)[nodes.index(node) + 1 :]))
        stitched = network.suffix(nodes[1])(found[1] + 1)
    expected = found[1] + 1
    with torch.no_grad():
        expected = network.module.unwrap(network.module.blocks[2](expected))
        assert torch.equal(stitched, network.module.head(expected.mean((2, 3))))


NOT_ALONE = {
    "both go on": (lambda x, y: (y, x), lambda made: made[0] + made[1]),
    "the number of images is beside it": (lambda x, y: (y, len(y)), lambda made: made[0] * made[1] / len(made[0])),
    "an object that is not taken apart": (lambda x, y: Unknown(y), lambda made: made.hidden),
}


@pytest.mark.parametrize("kind", NOT_ALONE)
def test_what_does_not_decide_the_scores_alone_is_no_cut(kind):
    network = cut_network(stirred(Chain(*NOT_ALONE[kind])), (3, 8, 8))
    assert not {"blocks.0", "blocks.1", "blocks.2"} & {cut.name for cut in network.cuts}


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([(2, 5), (3, 5), (2, 5)], 0),
        ([(5, 2), (5, 3), (5, 2)], 1),
        ([(2, 2), (3, 3), (2, 2)], None),  # two such axes
        ([(2, 5), (3, 6), (2, 5)], None),  # another axis moves, too
        ([(2, 5), None, (2, 5)], None),
        ([(2, 5), (3, 5, 1), (2, 5)], None),
        ([(4, 5), (4, 5), (4, 5)], None),  # constant
    ],
)
def test_the_axis_of_the_images_is_the_one_that_grows_with_them(shapes, axis):
    assert images_axis(shapes, (2, 3, 2)) == axis
