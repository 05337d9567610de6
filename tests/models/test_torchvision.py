"""Every classifier that torchvision publishes: found, cut where its graph narrows to one tensor, and exact there."""

import re

import pytest
import torch
from helpers_models import network, noise, stirred
from torchvision.models import vision_transformer

from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.registry import library_names
from stitchgrid.models.select import select_layers

NARROW = {"hidden_dim": 192, "mlp_dim": 768}  # a quarter of its width

#: Of each way to build a network one that takes seconds; the others are proven by hand.
QUICK = (
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vit_b_32",
)
#: Tensors through which every path passes, counted by other code than ours.
NUM_CUTS = {
    "alexnet": 22,
    "googlenet": 26,
    "inception_v3": 32,
    "maxvit_t": 151,
    "vgg11": 30,
    "vgg16_bn": 53,
    "resnet18": 23,
    "resnet34": 39,
    "resnet50": 39,
    "resnet101": 73,
    "resnet152": 107,
    "resnext50_32x4d": 39,
    "resnext101_32x8d": 73,
    "resnext101_64x4d": 73,
    "wide_resnet50_2": 39,
    "wide_resnet101_2": 73,
    "densenet121": 25,
    "densenet161": 25,
    "densenet169": 25,
    "densenet201": 25,
    "squeezenet1_0": 34,
    "squeezenet1_1": 34,
    "mobilenet_v2": 43,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 36,
    "mnasnet0_5": 72,
    "mnasnet0_75": 72,
    "mnasnet1_0": 72,
    "mnasnet1_3": 72,
    "shufflenet_v2_x0_5": 41,
    "shufflenet_v2_x1_0": 41,
    "shufflenet_v2_x1_5": 41,
    "shufflenet_v2_x2_0": 41,
    "efficientnet_b0": 42,
    "efficientnet_b1": 49,
    "efficientnet_b2": 49,
    "efficientnet_b3": 52,
    "efficientnet_b4": 58,
    "efficientnet_b5": 65,
    "efficientnet_b6": 71,
    "efficientnet_b7": 81,
    "efficientnet_v2_s": 57,
    "efficientnet_v2_m": 77,
    "efficientnet_v2_l": 99,
    "regnet_x_400mf": 48,
    "regnet_x_1_6gf": 40,
    "regnet_y_400mf": 36,
    "regnet_y_3_2gf": 46,
    "convnext_tiny": 37,
    "convnext_small": 55,
    "convnext_base": 55,
    "convnext_large": 55,
    "swin_t": 41,
    "swin_s": 65,
    "swin_b": 65,
    "swin_v2_t": 41,
    "swin_v2_s": 65,
    "swin_v2_b": 65,
    "vit_b_16": 32,
    "vit_b_32": 32,
    "vit_l_16": 56,
    "vit_l_32": 56,
    "vit_h_14": 72,
}
ALL = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in library_names("torchvision")]


def cut(name: str) -> CutNetwork:
    """Return a network with every parameter drawn, for the smallest images it takes; a quick transformer is narrow."""
    args = {"num_classes": 10}
    side = {"maxvit_t": 224, "inception_v3": 96}.get(name, 64)
    if patch := re.fullmatch(r"vit_\w_(\d+)", name):
        side = args["image_size"] = 2 * int(patch[1])
    with pytest.MonkeyPatch.context() as patched:
        if name in QUICK:
            whole = vision_transformer._vision_transformer
            patched.setattr(vision_transformer, "_vision_transformer", lambda **told: whole(**told | NARROW))
        made = network(f"torchvision:{name}", **args)
    return cut_network(stirred(made), (3, side, side))


@pytest.mark.parametrize("name", ALL)
def test_the_halves_are_the_whole_bit_for_bit_and_share_its_weights(name):
    found = cut(name)
    every = 25 if name == "maxvit_t" else 1  # it takes no images below 224 pixels
    chosen = found.cuts[::every]
    x = noise(2, *found.input_shape)
    whole = found.module(x)
    assert whole.std() > 0
    own = {id(parameter) for parameter in found.module.parameters()}
    activations = found.taps([c.node for c in chosen])(x)
    for c, activation in zip(chosen, activations, strict=True):
        before, rest = activation.clone(), found.suffix(c.node)
        assert torch.equal(rest(activation), whole), c.name
        assert torch.equal(activation, before), f"{c.name} was overwritten by the layers after it"
        assert {id(parameter) for parameter in rest.parameters()} <= own
    assert len(found.cuts) == NUM_CUTS.get(name, len(found.cuts))
    assert found.way == "graph"
    blocks = select_layers(found, ("blocks",))
    assert len(blocks) >= 7
    features_last = {b.layer.axes == "NHWC" for b in blocks if b.layer.kind == "map"}
    assert features_last <= {name.startswith("swin")}


@pytest.mark.parametrize(
    "name",
    [
        "swin_t",
        "vit_b_32",
        "efficientnet_b0",
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_the_memory_format_and_attentions_fast_path_move_values_by_rounding_alone(name):
    found = cut(name)
    x = noise(2, *found.input_shape)
    whole = found.module(x)
    for c in found.cuts[:: max(1, len(found.cuts) // 6)]:
        (activation,) = found.taps([c.node])(x)
        if activation.dim() == 4:
            activation = activation.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            torch.testing.assert_close(found.suffix(c.node)(activation), whole, rtol=1e-5, atol=1e-5)
        with torch.enable_grad():
            came = found.suffix(c.node)(activation.clone().requires_grad_())
        torch.testing.assert_close(came.detach(), whole, rtol=1e-5, atol=1e-5)


def test_a_network_made_for_one_size_says_which():
    with pytest.raises(Exception, match=r"VisionTransformer does not run on images of 64x64.*made for 224x224"):
        cut_network(network("torchvision:vit_b_32", num_classes=10), (3, 64, 64))


def test_a_part_of_a_network_that_only_takes_larger_images_says_so():
    with pytest.raises(Exception, match="Inception3 does not run on images of 64x64 with 3 channels"):
        cut_network(network("torchvision:inception_v3", num_classes=10), (3, 64, 64))
