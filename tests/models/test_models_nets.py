"""The architectures that ship with stitchgrid."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from helpers_models import network, noise, spec
from torch import nn

from stitchgrid.errors import JobFileError
from stitchgrid.models.build import build_network, make_network
from stitchgrid.models.freeze import freeze
from stitchgrid.models.memory import kept_bytes
from stitchgrid.models.nets.resnet import BasicBlock
from stitchgrid.models.registry import STITCHGRID

SMALL = {"tiny10": {"padding": 1}, "vit_tiny": {"image_size": 8, "patch_size": 2}}


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", STITCHGRID)
def test_every_network_classifies_images_of_the_digits_size(name):
    module = make_network(spec(f"stitchgrid:{name}", num_classes=7, **SMALL.get(name, {}))).eval()
    assert module(noise(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_residual_networks_have_the_sizes_of_their_paper(name, millions):
    module = make_network(spec(f"stitchgrid:{name}"))
    assert num_parameters(module) / 1e6 == pytest.approx(millions, abs=0.05 if name == "resnet110" else 0.005)
    num_layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules())
    assert num_layers == int(name.removeprefix("resnet"))


def test_residual_networks_have_the_names_of_the_published_checkpoints():
    names = set(make_network(spec("stitchgrid:resnet20")).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.2.conv2.weight", "layer2.0.bn1.weight", "linear.bias"} <= names
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}


def test_a_shortcut_into_more_channels_takes_every_second_position_and_pads_with_zeros():
    block = BasicBlock(4, 8, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # the residual is zero: only the shortcut is left
    x = noise(2, 4, 6, 6).abs()
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_width_and_depth_are_arguments():
    module = make_network(spec("stitchgrid:resnet20", width=4, depth=8, in_channels=1))
    assert module(noise(2, 1, 8, 8)).shape == (2, 10)
    assert module.linear.in_features == 16
    assert len(module.layer3) == 1


def test_a_depth_that_no_such_network_has_is_refused():
    with pytest.raises(JobFileError, match=r"depth is 6n\+2 \(8, 14, 20.*got 21"):
        make_network(spec("stitchgrid:resnet20", depth=21))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_networks_with_a_small_stem_are_torchvisions_but_for_stem_and_head(name):
    ours = {k: v.shape for k, v in make_network(spec(f"stitchgrid:{name}")).state_dict().items()}
    theirs = {k: v.shape for k, v in torchvision.models.get_model(name, weights=None).state_dict().items()}
    assert ours.keys() == theirs.keys()
    assert {k for k in ours if ours[k] != theirs[k]} == {"conv1.weight", "fc.weight", "fc.bias"}
    assert ours["conv1.weight"] == (64, 3, 3, 3)


def test_the_small_stem_keeps_the_size_of_the_image():
    module = network("stitchgrid:resnet18", width=8).eval()
    assert module.maxpool(module.conv1(noise(1, 3, 8, 8))).shape == (1, 8, 8, 8)
    assert [module.get_submodule(f"layer{k}")[0].conv1.out_channels for k in (1, 2, 3, 4)] == [8, 16, 32, 64]


def test_the_transformer_has_the_sizes_of_vit_tiny():
    module = make_network(spec("stitchgrid:vit_tiny"))
    assert num_parameters(module) == 5_362_762  # ViT-Tiny's 5.5 million, less the patches of 16 and 990 classes
    assert module.encoder.pos_embedding.shape == (1, 65, 192)


def test_a_transformer_whose_patches_do_not_fit_is_refused():
    with pytest.raises(JobFileError, match=r"image_size must be a multiple of patch_size.*got 30 and 4"):
        make_network(spec("stitchgrid:vit_tiny", image_size=30))


def test_tiny10_widens_by_a_factor():
    module = make_network(spec("stitchgrid:tiny10", width=0.5))
    assert [module.get_submodule(f"conv{k}").out_channels for k in range(1, 9)] == [8, 8, 16, 16, 16, 32, 32, 32]
    assert num_parameters(make_network(spec("stitchgrid:tiny10"))) == 86_778


@pytest.mark.skipif("STITCHGRID_DATA" not in os.environ, reason="STITCHGRID_DATA names no folder of checkpoints")
@pytest.mark.parametrize(
    ("pattern", "name", "args"),
    [
        ("resnet20-*.th", "resnet20", {}),
        ("resnet32-*.th", "resnet32", {}),
        ("resnet44-*.th", "resnet44", {}),
        ("resnet56-*.th", "resnet56", {}),
        ("tiny10-seed*.pt", "tiny10", {}),
        ("vit-*.pt", "vit_tiny", {"num_layers": 6, "num_heads": 4, "hidden_dim": 96, "mlp_dim": 192}),
    ],
)
def test_published_checkpoints_load(pattern, name, args):
    paths = sorted(Path(os.environ["STITCHGRID_DATA"], "checkpoints").glob(pattern))
    assert paths
    for path in paths:
        module = build_network(spec(f"stitchgrid:{name}", base=path.parent, weights=path.name, **args))
        assert module(noise(2, 3, 32, 32)).isfinite().all()


def test_what_a_pass_leaves_for_the_way_back_is_counted_by_hand_for_a_small_network():
    frozen = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh()))
    assert kept_bytes(frozen, (3, 2, 2)) == 4 * (
        5 + 3
    )  # what came out of the activations; frozen weights need no inputs


def test_a_network_that_no_gradient_passes_leaves_nothing():
    class Detached(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy())

    class Refusing(nn.Module):
        def forward(self, x):
            if x.requires_grad:
                raise ValueError("inference only")
            return x.flatten(1)

    assert kept_bytes(freeze(Detached()), (3, 2, 2)) == kept_bytes(freeze(Refusing()), (3, 2, 2)) == 0
