"""Words of a job file's `layers` choose cuts."""

import pytest
import torch
from helpers_models import network, stirred
from torch import nn

from stitchgrid.errors import JobFileError
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.select import select_layers


@pytest.fixture(scope="module")
def tiny10():
    return cut_network(network("stitchgrid:tiny10"), (3, 32, 32))


@pytest.fixture(scope="module")
def resnet20():
    return cut_network(network("stitchgrid:resnet20", width=4), (3, 8, 8))


def chosen(cut, *patterns):
    return [c.name for c in select_layers(cut, patterns)]


BLOCKS = {
    "stitchgrid:resnet18": ({"width": 8}, 8, [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]),
    "stitchgrid:resnet20": ({"width": 4}, 8, [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]),
    "stitchgrid:tiny10": ({}, 32, [f"relu{k}" for k in range(1, 9)]),
    "stitchgrid:vit_tiny": (
        {"image_size": 8, "num_layers": 3, "hidden_dim": 12, "mlp_dim": 12},
        8,
        [f"encoder.layers.encoder_layer_{k}" for k in range(3)],
    ),
    "torchvision:resnet18": ({}, 32, [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]),
    "torchvision:squeezenet1_1": ({}, 32, [f"features.{k}" for k in (3, 4, 6, 7, 9, 10, 11, 12)]),
}


@pytest.mark.parametrize("architecture", BLOCKS)
def test_blocks_are_the_last_cuts_inside_the_innermost_repeated_modules_else_activations(architecture):
    args, side, expected = BLOCKS[architecture]
    cut = cut_network(network(architecture, **args), (3, side, side))
    assert chosen(cut, "blocks") == expected


def test_only_the_innermost_of_nested_repeated_modules_counts():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x).tanh()

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.units = nn.Sequential(Unit(), Unit())
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.units(x))

    cut = cut_network(nn.Sequential(Stage(), Stage(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 4, 4))
    assert chosen(cut, "blocks") == ["0.units.0", "0.units.1", "1.units.0", "1.units.1"]
    assert chosen(cut, "0", "1") == ["0.norm", "1.norm"]


def test_a_block_applied_again_and_again_is_repeated():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(x)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell()

        def forward(self, x):
            return self.cell(self.cell(self.cell(x))).mean((2, 3))

    assert chosen(cut_network(Recurrent(), (3, 4, 4)), "blocks") == ["cell.add", "cell.add_1", "cell.add_2"]


def test_functional_activations_are_blocks_where_no_module_is_repeated():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return nn.functional.gelu(self.conv(x)).tanh().abs().mean((2, 3))

    assert chosen(cut_network(Plain(), (3, 4, 4)), "blocks") == ["gelu", "tanh"]


def test_all_is_every_cut(tiny10):
    assert chosen(tiny10, "all") == [c.name for c in tiny10.cuts]


def test_a_glob_is_tried_on_blocks_first_then_on_all_cuts(resnet20):
    assert chosen(resnet20, "layer2*") == ["layer2.0", "layer2.1", "layer2.2"]
    assert chosen(resnet20, "layer2.*.add") == ["layer2.0.add", "layer2.1.add", "layer2.2.add"]
    assert chosen(resnet20, "*n*") == ["conv1", "bn1", "mean", "linear"]


def test_both_spellings_of_a_cut_are_accepted(resnet20):
    layer = next(c for c in resnet20.cuts if c.name == "layer1.1")
    assert layer.node == "layer1.1.relu_1"
    assert chosen(resnet20, "layer1.1.relu_1") == chosen(resnet20, "layer1.1") == ["layer1.1"]


def test_naming_a_module_selects_its_last_cut(resnet20):
    assert chosen(resnet20, "layer2") == ["layer2.2"]


def test_cuts_come_once_and_in_order_of_execution(resnet20):
    assert chosen(resnet20, "linear", "layer3.2", "layer3", "layer3*", "conv1") == [
        "conv1",
        "layer3.0",
        "layer3.1",
        "layer3.2",
        "linear",
    ]


def test_every_wrong_word_is_reported_at_once(resnet20):
    with pytest.raises(JobFileError, match="layers at which SmallResNet cannot be cut") as caught:
        select_layers(resnet20, ["layer1.1.conv2", "layre2.0", "conv7*", "layer1.0"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "layer1.1.conv2",
            r"'layer1.1.conv2' is not a cut: another path \(a shortcut or branch\) runs beside it; "
            r"nearest: 'layer1.1', 'layer1.0'$",
        ),
        ("layer1.1.relu", r"'layer1.1.relu' is not a cut: another path.*nearest: 'layer1.1', 'layer1.0'$"),
        ("layre2.0", r"there is no layer 'layre2.0'; did you mean 'layer2.0'"),
        ("conv7*", r"'conv7\*' matches no cut; did you mean 'conv1'"),
    ],
)
def test_a_word_that_names_no_cut_is_refused_with_the_nearest(resnet20, pattern, message):
    with pytest.raises(JobFileError, match=message):
        select_layers(resnet20, [pattern])


def test_parts_of_what_is_not_looked_into_and_of_what_is_never_run_are_told_apart():
    cut = cut_network(network("torchvision:mobilenet_v3_small"), (3, 32, 32))
    with pytest.raises(
        JobFileError, match=r"'features.0.1' is not a cut: 'features.0' is not looked into; nearest: 'features.0'"
    ):
        select_layers(cut, ["features.0.1"])
    cut.module.spare = nn.Linear(2, 2)
    with pytest.raises(JobFileError, match="'spare' is never run when the network is evaluated; known: avgpool"):
        select_layers(cut, ["spare"])


class Groups(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.abs()], 2).cos().mean((2, 3))  # two maps one above the other


def test_cuts_without_rows_of_features_are_left_out_or_refused():
    cut = cut_network(Groups(), (3, 4, 4))
    assert chosen(cut, "all") == ["mean"]
    with pytest.raises(JobFileError, match=r"'cos' is not a cut: it has no rows of features .*nearest: 'mean'"):
        select_layers(cut, ["cos"])


def test_a_network_without_blocks_says_what_to_do():
    with pytest.raises(
        JobFileError,
        match="'blocks': no module is repeated, and no activation and no recurrent layer is a cut; name layers",
    ):
        select_layers(cut_network(Groups(), (3, 4, 4)), ["blocks"])


def test_blocks_that_are_no_cuts_are_named_with_the_reason():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, y):
            return self.conv(x), y + x

    class Coupled(nn.Module):
        """Two streams that run beside each other."""

        def __init__(self):
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x):
            return torch.cat(self.second(*self.first(x, x)), 1).mean((2, 3))

    with pytest.raises(JobFileError, match=r"'blocks': 'first' and the modules like it are no cuts.*use \"all\""):
        select_layers(cut_network(stirred(Coupled()), (3, 4, 4)), ["blocks"])
