"""Cutting a network: where, what it is called, and that the halves are the whole."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from helpers_models import network, noise, stirred
from torch import fx, nn
from torchvision.models.feature_extraction import get_graph_node_names

from stitchgrid.errors import InputError, JobFileError, breaks_worker, is_out_of_memory
from stitchgrid.models.cut_network import cut_network, prefer_channels_last
from stitchgrid.models.cuts import OTHER
from stitchgrid.models.freeze import freeze

SMALL_VIT = {"image_size": 8, "patch_size": 2, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
NETWORKS = {  # architecture, args, side of the images
    "resnet20": ("stitchgrid:resnet20", {"width": 4}, 8),
    "resnet18": ("stitchgrid:resnet18", {"width": 8}, 8),
    "resnet50": ("stitchgrid:resnet50", {"width": 8}, 8),
    "vit_tiny": ("stitchgrid:vit_tiny", SMALL_VIT, 8),
    "tiny10": ("stitchgrid:tiny10", {"padding": 1}, 8),
    "torchvision resnet18": ("torchvision:resnet18", {"num_classes": 10}, 32),
    "squeezenet1_1": ("torchvision:squeezenet1_1", {"num_classes": 10}, 32),
    "mobilenet_v3_small": ("torchvision:mobilenet_v3_small", {"num_classes": 10}, 32),
    "shufflenet_v2_x0_5": ("torchvision:shufflenet_v2_x0_5", {"num_classes": 10}, 32),
    "densenet121": ("torchvision:densenet121", {"num_classes": 10}, 32),
    "regnet_y_400mf": ("torchvision:regnet_y_400mf", {"num_classes": 10}, 32),
}
COUNTS = {
    "resnet20": 23,
    "torchvision resnet18": 23,
    "squeezenet1_1": 34,
    "mobilenet_v3_small": 32,
    "shufflenet_v2_x0_5": 41,
    "densenet121": 25,
    "regnet_y_400mf": 36,
    "tiny10": 26,
}


@pytest.fixture(scope="module", params=NETWORKS)
def cut(request):
    architecture, args, side = NETWORKS[request.param]
    found = cut_network(network(architecture, **args), (3, side, side))
    found.key = request.param
    return found


def images(cut, num):
    return noise(num, *cut.input_shape)


def names(cut):
    return [c.name for c in cut.cuts]


def test_the_halves_are_the_whole_bit_for_bit_at_every_cut(cut):
    for num in (2, 5):
        x = images(cut, num)
        whole = cut.module(x)
        assert whole.std() > 1e-3  # no head is zero, so that the scores tell images apart
        activations = cut.taps([c.node for c in cut.cuts])(x)
        for c, activation in zip(cut.cuts, activations, strict=True):
            before = activation.clone()
            assert torch.equal(cut.suffix(c.node)(activation), whole), c.name
            assert torch.equal(activation, before), f"{c.name} was overwritten by the layers after it"


def test_one_activation_is_the_same_alone_and_among_all(cut):
    x = images(cut, 3)
    together = cut.taps([c.node for c in cut.cuts])(x)
    for k in range(0, len(cut.cuts), 5):
        (alone,) = cut.taps([cut.cuts[k].node])(x)
        assert torch.equal(alone, together[k])


def test_cuts_are_as_many_as_torchvisions_graph_has_bottlenecks(cut):
    if cut.key in COUNTS:
        assert len(cut.cuts) == COUNTS[cut.key]
    assert {c.node for c in cut.cuts} <= set(get_graph_node_names(copy.deepcopy(cut.module))[1])


def test_layers_describe_the_activations(cut):
    activations = cut.taps([c.node for c in cut.cuts])(images(cut, 3))
    for c, activation in zip(cut.cuts, activations, strict=True):
        assert c.layer.shape == tuple(activation.shape[1:])
        assert c.layer.kind == {4: "map", 3: "tokens", 2: "vector"}[activation.dim()]
        assert c.layer.grid == (tuple(activation.shape[2:]) if c.layer.kind == "map" else c.layer.grid)
        assert c.layer.width == activation.shape[2 if c.layer.kind == "tokens" else 1]


def test_depth_runs_from_0_to_1_and_flops_only_grow(cut):
    depths = [c.layer.depth for c in cut.cuts]
    flops = [c.layer.flops for c in cut.cuts]
    assert depths == pytest.approx(torch.linspace(0, 1, len(depths)).tolist())
    assert flops == sorted(flops)
    assert flops[-1] == cut.flops > 0
    assert cut.cuts[-1].node == cut.logits
    assert cut.num_classes == 10


def test_names_are_unique_and_lead_back_to_one_cut(cut):
    assert len({c.name for c in cut.cuts}) == len({c.node for c in cut.cuts}) == len(cut.cuts)
    for c in cut.cuts:
        assert cut.cut(c.node) is c


def test_halves_share_the_weights(cut):
    own = {id(p) for p in cut.module.parameters()}
    suffix = cut.suffix(cut.cuts[0].node)
    assert {id(p) for p in suffix.parameters()} <= own
    assert not any(p.requires_grad for p in suffix.parameters())


def test_gradients_reach_the_activation_and_no_weight(cut):
    node = cut.cuts[len(cut.cuts) // 2].node
    (activation,) = cut.taps([node])(images(cut, 2))
    activation.requires_grad_()
    cut.suffix(node)(activation).square().sum().backward()
    assert activation.grad.any()
    assert all(p.grad is None for p in cut.module.parameters())


@pytest.mark.parametrize(
    ("key", "some", "absent"),
    [
        (
            "torchvision resnet18",
            {"conv1", "layer1.0", "layer4.1", "layer4.1.add", "avgpool", "flatten", "fc"},
            {"layer4"},
        ),
        ("resnet20", {"layer1.0", "layer3.2", "layer3.2.add", "linear", "relu"}, {"layer3", "layer1.0.conv1"}),
        ("tiny10", {"conv1", "bn1", "relu8", "fc", "mean"}, set()),
        ("vit_tiny", {"cat", "encoder.layers.encoder_layer_0", "encoder.ln", "heads.head"}, {"encoder", "heads"}),
    ],
)
def test_a_cut_is_called_by_the_deepest_module_whose_output_it_is(key, some, absent):
    architecture, args, side = NETWORKS[key]
    found = names(cut_network(network(architecture, **args), (3, side, side)))
    assert some <= set(found)
    assert not absent & set(found)


def test_all_activations_come_from_one_pass_that_ends_at_the_last_of_them():
    cut = cut_network(network("stitchgrid:tiny10"), (3, 32, 32))
    calls = []
    for name, part in cut.module.named_modules():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    taps = cut.taps(["relu5", "bn2", "relu1"])
    assert [tuple(a.shape[1:2]) for a in taps(noise(2, 3, 32, 32))] == [(32,), (16,), (16,)]
    assert calls == [f"{kind}{k}" for k in range(1, 6) for kind in ("conv", "bn", "relu")]


def test_the_scores_can_be_asked_for_along_with_activations():
    cut = cut_network(network("stitchgrid:tiny10"), (3, 32, 32))
    x = noise(2, 3, 32, 32)
    relu3, scores = cut.taps(["relu3", cut.logits])(x)
    assert torch.equal(scores, cut.module(x))
    assert torch.equal(cut.suffix(cut.logits)(scores), scores)
    assert torch.equal(cut.suffix("relu3")(relu3), scores)
    assert cut.taps([])(x) == ()


def test_a_node_that_is_no_cut_is_refused_with_the_nearest():
    cut = cut_network(network("stitchgrid:tiny10"), (3, 32, 32))
    with pytest.raises(JobFileError, match="Tiny10 has no cut at node 'relu9'; did you mean 'relu"):
        cut.suffix("relu9")


# sequences


def test_class_token_and_grid_are_read_from_a_vision_transformer():
    cut = cut_network(network("stitchgrid:vit_tiny", **SMALL_VIT), (3, 8, 8))
    layouts = {c.name: (c.layer.kind, c.layer.num_prefix, c.layer.grid) for c in cut.cuts}
    assert layouts["encoder.layers.encoder_layer_1"] == ("tokens", 1, (4, 4))
    assert layouts["heads.head"] == ("vector", 0, None)
    assert len(cut.cuts) == 2 * 3 + 8


def test_a_transformer_of_twelve_layers_has_32_cuts():
    cut = cut_network(network("stitchgrid:vit_tiny", **SMALL_VIT | {"num_layers": 12}), (3, 8, 8))
    assert len(cut.cuts) == 32


class Tokens(nn.Module):
    """Patches by a convolution, class and register tokens in front, no attribute that declares a grid."""

    def __init__(self, num_classes_tokens=1, num_registers=0):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, stride=2)
        if num_classes_tokens:
            self.cls_token = nn.Parameter(torch.zeros(1, num_classes_tokens, 6))
        if num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, num_registers, 6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for name in ("reg_token", "cls_token"):
            if hasattr(self, name):
                x = torch.cat([getattr(self, name).expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.norm(x)[:, 0])


@pytest.mark.parametrize(("num_cls", "num_registers"), [(1, 0), (1, 4), (0, 0), (0, 3)])
def test_tokens_before_the_grid_are_counted_once_they_are_in_front(num_cls, num_registers):
    cut = cut_network(stirred(Tokens(num_cls, num_registers)), (3, 8, 12))
    sequences = {c.name: (c.layer.num_prefix, c.layer.grid) for c in cut.cuts if c.layer.kind == "tokens"}
    assert sequences["transpose"] == (0, (4, 6))
    assert sequences["norm"] == (num_cls + num_registers, (4, 6))


def test_nothing_is_concluded_from_a_token_count_alone():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(12, 6)
            self.head = nn.Linear(6, 10)

        def forward(self, x):
            return self.head(self.embed(x.reshape(x.shape[0], 17, 12)).mean(1))

    cut = cut_network(Words(), (3, 4, 17))  # 17 tokens: 16 + 1
    (embed,) = [c for c in cut.cuts if c.name == "embed"]
    assert (embed.layer.kind, embed.layer.num_prefix, embed.layer.grid) == ("tokens", 0, None)


def test_what_has_no_rows_of_features_is_a_cut_that_cannot_be_stitched():
    class Groups(nn.Module):
        def forward(self, x):
            x = x.unflatten(1, (1, 3)).tanh().flatten(1, 2)
            x = x.permute(1, 0, 2, 3).sigmoid().permute(1, 0, 2, 3)
            return x.flatten(1).unflatten(1, (4, 12)).relu().mean(2)

    cut = cut_network(Groups(), (3, 4, 4))
    kinds = {c.name: c.layer.kind for c in cut.cuts}
    assert kinds["relu"] == OTHER  # parts that are no whole features, rows or columns
    assert kinds["tanh"] == kinds["sigmoid"] == "map"  # groups of channels; images on the second axis
    assert [c.can_be_stitched for c in cut.cuts] == [c.layer.kind != OTHER for c in cut.cuts]
    x = noise(4, 3, 4, 4)
    assert torch.equal(cut.suffix("relu")(cut.taps(["relu"])(x)[0]), cut.module(x))


# cost


def test_flops_are_multiply_adds_times_two():
    module = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6 * 4, 7))
    cut = cut_network(module, (3, 6, 4))
    conv, linear = 2 * 6 * 4 * 5 * 3 * 9, 2 * 5 * 6 * 4 * 7
    assert [c.layer.flops for c in cut.cuts] == [conv, conv, conv, conv + linear]


def test_attention_is_counted_by_its_matrix_products():
    t, d, m = 17, 16, 24
    block = 2 * t * d * 3 * d + 2 * 2 * t * t * d + 2 * t * d * d + 2 * 2 * t * d * m
    patches, head = 2 * 16 * d * 3 * 4, 2 * d * 10
    cut = cut_network(network("stitchgrid:vit_tiny", **SMALL_VIT), (3, 8, 8))
    assert cut.flops == pytest.approx(patches + 3 * block + head)


# modules called again, in place operations, constants, branches


class Shared(nn.Module):
    """One block applied three times, and one that returns what it is given."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
        self.nothing = nn.Sequential()
        self.once = nn.Sequential()
        self.relu_1 = nn.ReLU()

    def forward(self, x):
        for _ in range(3):
            x = self.nothing(self.block(x))
        return self.once(F.relu(self.relu_1(x) - 0.1)).mean((2, 3))


def test_a_module_called_again_or_that_returns_its_input_has_no_output_of_its_own():
    found = names(cut_network(Shared(), (3, 8, 8)))
    assert found[:6] == ["block.0", "block.1", "block.0_1", "block.1_1", "block.0_2", "block.1_2"]


def test_a_module_and_an_operation_of_the_same_name_are_told_apart():
    cut = cut_network(Shared(), (3, 8, 8))
    by_name = {c.name: c.node for c in cut.cuts}
    assert by_name["relu_1"] != by_name["node:relu_1"] == "relu_1"


class InPlace(nn.Module):
    """Overwrites tensors in the manner given; `keep` is made before and used after."""

    def __init__(self, overwrite):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.overwrite = overwrite

    def forward(self, x):
        x = self.conv(x)
        result = self.overwrite(self, x)
        return (x + 2 * result).mean((2, 3))


def result_not_used(_, x):
    x.mul_(0.5).sub_(0.1)
    return x


OVERWRITES = {
    "keyword": lambda _, x: F.relu(x, inplace=True),
    "positional": lambda _, x: F.relu(x, True),
    "named by keyword": lambda _, x: F.elu(input=x, inplace=True),
    "function": lambda _, x: torch.relu_(x),
    "functional": lambda _, x: F.leaky_relu_(x, 0.3),
    "method": lambda _, x: x.add_(1.5),
    "result not used": result_not_used,
}


@pytest.mark.parametrize("overwrite", OVERWRITES.values(), ids=OVERWRITES)
def test_in_place_operations_keep_their_values_and_overwrite_nothing(overwrite):
    module = InPlace(overwrite)
    x = noise(2, 3, 6, 6)
    with torch.no_grad():
        before = module.eval()(x)
    cut = cut_network(module, (3, 6, 6))
    (activation,) = cut.taps(["conv"])(x)
    kept = activation.clone()
    assert torch.equal(cut.suffix("conv")(activation), before)
    assert torch.equal(activation, kept)


def augmented(_, x):
    x += x.mean()
    return x


def test_use_of_a_tensor_after_a_module_overwrote_it_is_noticed():
    with pytest.raises(
        InputError, match=r"InPlace does not give the same scores.*use a tensor after overwriting it in place"
    ):
        cut_network(InPlace(lambda self, x: self.act(x)), (3, 6, 6))


def test_a_module_in_place_whose_input_is_not_used_again_is_no_problem():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cut = cut_network(module, (3, 6, 6))
    (activation,) = cut.taps(["0"])(noise(2, 3, 6, 6))
    kept = activation.clone()
    cut.suffix("0")(activation)
    assert torch.equal(activation, kept)
    assert not module[1].inplace


def test_a_block_that_ends_in_place_is_called_by_its_name():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.conv(x)
            F.relu_(x)
            return x

    cut = cut_network(nn.Sequential(Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 4, 4))
    assert [(c.name, c.node) for c in cut.cuts][:2] == [("0.conv", "0.conv"), ("0", "0.relu_")]


def _halve_in_place(x):
    return x.mul_(0.5)


fx.wrap("_halve_in_place")


@pytest.mark.parametrize(
    ("overwrite", "reason"),
    [
        (augmented, r"^InPlace does not give the same scores when its traced graph is run$"),
        (lambda _, x: x.fill_(0.5), r"^InPlace overwrites a tensor with fill_\(\), at 'fill_'$"),
        (lambda _, x: _halve_in_place(x), r"^InPlace overwrites a tensor inside '_?halve_in_place'"),
    ],
    ids=["used after", "without another form", "inside what is not looked into"],
)
def test_overwriting_that_cannot_be_undone_in_the_graph_is_left_to_hooks(overwrite, reason):
    module = InPlace(overwrite)
    x = noise(2, 3, 6, 6)
    with torch.no_grad():
        before = module.eval()(x)
    cut = cut_network(module, (3, 6, 6))
    assert cut.way == "hooks"
    assert re.search(reason, cut.reason)
    (activation,) = cut.taps(["conv"])(x)
    kept = activation.clone()
    assert torch.equal(cut.suffix("conv")(activation), before)
    assert torch.equal(activation, kept)


class Constants(nn.Module):
    """A tensor made in forward, a buffer used directly, and a branch on an argument with a default."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, features_only=False, mask=None):
        x = self.conv(x - self.mean) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
        if mask is not None:
            x = x * mask
        return x if features_only else x.mean((2, 3))


def test_constants_do_not_count_and_the_network_is_left_as_it_was():
    module = Constants()
    before = set(vars(module))
    first, second = (cut_network(module, (3, 6, 6)) for _ in range(2))
    assert set(vars(module)) - before == {"train"}  # frozen, and nothing else
    assert [c.node for c in first.cuts] == [c.node for c in second.cuts] == ["sub", "conv", "mul", "mean"]
    x = noise(2, 3, 6, 6)
    assert torch.equal(first.suffix("sub")(first.taps(["sub"])(x)[0]), module(x))


def test_attention_is_the_same_with_and_without_gradients():
    cut = cut_network(network("stitchgrid:vit_tiny", **SMALL_VIT), (3, 8, 8))
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        without = cut.module(x)
    assert torch.equal(cut.module(x.requires_grad_()).detach(), without)
    assert not torch.backends.mha.get_fastpath_enabled()


def test_a_frozen_network_is_copied_frozen():
    module = copy.deepcopy(freeze(network("stitchgrid:tiny10")))
    module.train()
    assert not module.training
    assert not module.bn1.training


# refused


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.head = nn.Linear(12, 10)
        self.make = make

    def forward(self, x):
        return self.make(x, self.head(x.flatten(1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x, y: (y, y),
            r"returns a tuple: 0 \(2, 10\), 1 \(2, 10\) for 2 images; wanted one tensor of class scores.*output = 0\.",
        ),
        (
            lambda x, y: {"n": 3, "out": y},
            r"returns a dict: 'n' \(int\), 'out' \(2, 10\) for 2 images; wanted one tensor.*output = \"out\"",
        ),
        (lambda x, y: x, r"returns a tensor of \(2, 3, 2, 2\) for 2 images; wanted one tensor"),
        (lambda x, y: y.mean(0, keepdim=True), r"returns a tensor of \(1, 10\) for 2 images"),
        (
            lambda x, y: y if x.sum() > 0 else -y,
            "Returns cannot be traced by torch.fx .*must not branch on values of its input",
        ),
        (
            lambda x, y: F.dropout(y, 0.5),
            "does not give the same scores when its traced graph is run.*must not be random in eval mode",
        ),
        (lambda x, y: torch.ones(2, 10), "the output of Returns does not depend on its input"),
    ],
)
def test_a_network_that_is_no_classifier_that_can_be_cut_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        cut_network(stirred(Returns(make)), (3, 2, 2))


def test_a_size_that_the_network_refuses_is_named_with_the_one_it_wants():
    module = network("stitchgrid:vit_tiny", **SMALL_VIT)
    with pytest.raises(
        InputError, match=r"VisionTransformer does not run on images of 16x12 with 3 channels.*made for 8x8"
    ):
        cut_network(module, (3, 16, 12))
    with pytest.raises(InputError, match=r"Tiny10 does not run on images of 8x8 with 3 channels.*choose another size"):
        cut_network(network("stitchgrid:tiny10"), (3, 8, 8))
    with pytest.raises(
        InputError,
        match=r"SmallResNet does not run on images of 8x8 with 1 channel .*takes 3 channels, and the images have 1",
    ):
        cut_network(network("stitchgrid:resnet20"), (1, 8, 8))


def test_halves_take_activations_in_any_memory_format():
    class Flattening(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4 * 8 * 8, 10)

        def forward(self, x):
            a = self.conv(x)
            return self.fc(a.view(a.size(0), -1))

    torch.manual_seed(0)
    cut = cut_network(Flattening(), (3, 8, 8))
    [a] = cut.taps(["conv"])(torch.rand(2, 3, 8, 8))
    suffix = cut.suffix("conv")
    assert torch.equal(suffix(a.contiguous(memory_format=torch.channels_last)), suffix(a))


class Views(nn.Module):
    """Flattens a map by a view, which a map in channels-last format has not; one that branches does so seldom."""

    def __init__(self, *, branches=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, 5)
        self.branches = branches

    def forward(self, x):
        a = self.conv(x)
        if self.branches and a.sum() < 1e30:
            return self.fc(a.flatten(1))
        return self.fc(a.view(a.size(0), -1))


@pytest.mark.parametrize(
    ("made", "is_last"),
    [
        (Views(), False),
        (Views(branches=True), False),  # cut by hooks
        (network("stitchgrid:resnet20", depth=8, width=4), True),
    ],
)
def test_weights_are_channels_last_where_the_networks_own_forward_bears_it(made, is_last):
    x = noise(4, 3, 8, 8)
    cut = cut_network(copy.deepcopy(made), (3, 8, 8))
    whole, node = cut.module(x), cut.cuts[0].node
    prefer_channels_last(cut)
    formats = {
        part.weight.is_contiguous(memory_format=torch.channels_last) and not part.weight.is_contiguous()
        for part in cut.module.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)
    }
    assert formats == {is_last}
    torch.testing.assert_close(cut.module(x), whole)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        a, scores = cut.taps([node, cut.logits])(images)
        torch.testing.assert_close(scores, whole)
        torch.testing.assert_close(cut.suffix(node)(a), whole)


@pytest.mark.parametrize(
    ("error", "is_memory", "is_broken"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
    ],
)
def test_what_stopped_a_networks_first_run_is_told_by_its_error(error, is_memory, is_broken):
    class Fails(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(InputError, match=f"does not run on images of 8x8 .*{error}") as caught:
        cut_network(Fails(), (3, 8, 8))
    assert (is_out_of_memory(caught.value), breaks_worker(caught.value)) == (is_memory, is_broken)


class Switching(nn.Module):
    """A network whose forward does something to a batch norm before it uses it."""

    def __init__(self, switch):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.switch = switch

    def forward(self, x):
        self.switch(self)
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("switch", "what"),
    [
        (lambda net: net.norm.train(), r"norm \(BatchNorm2d\)"),
        (lambda net: net.train(True), "itself"),
        (lambda net: setattr(net.norm, "training", True), r"norm \(BatchNorm2d\)"),
    ],
)
def test_a_forward_that_puts_its_parts_into_training_mode_is_refused(switch, what):
    reason = f"the forward of Switching puts {what} into training mode, where .*take train\\(\\) out of its forward"
    with pytest.raises(InputError, match=reason):
        cut_network(Switching(switch), (3, 8, 8))


@pytest.mark.parametrize("switch", [lambda net: net.eval(), lambda net: net.train(net.training)])
def test_a_forward_that_leaves_its_parts_in_eval_mode_is_not_refused(switch):
    module = freeze(Switching(switch))
    module.train()  # by somebody else, before
    assert cut_network(module, (3, 8, 8)).way == "graph"
