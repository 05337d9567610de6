"""Sequences of tokens: images on any axis, torch's encoders looked into, and geometry that is known or is not."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers_engine import (  # noqa: F401  # one_thread is a fixture
    NUM_CLASSES,
    SIDE,
    Zoo,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    network_record,
    one_thread,
    reference,
    run,
    trained_zoo,
    unlike_reference,
)
from helpers_models import noise, spec, stirred
from torch import nn

from stitchgrid.driver.preview import geometry_notices
from stitchgrid.errors import InputError
from stitchgrid.matchers.layouts import alignment_name
from stitchgrid.matchers.params import Rules
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.select import select_layers
from stitchgrid.records import Interface, Layer, Preprocess, Recipe, Tokens, framed
from stitchgrid.resolve import network_id, training_key

WIDTH = 8


class Attending(nn.Module):
    """A transformer block of torch's attention, which returns a tuple."""

    def __init__(self, *, batch_first):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        y = self.norm_1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm_2(x))


class Clip(nn.Module):
    """A vision transformer as CLIP's: 1 + 3x3 tokens of 12x12 images, no name of which tells the class token."""

    def __init__(self, *, images_on=1, has_graph=True, has_class_token=True, patch=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, patch, patch, bias=False)
        self.start = nn.Parameter(torch.zeros(WIDTH))
        self.blocks = nn.Sequential(*[Attending(batch_first=images_on == 0) for _ in range(2)])
        self.head = nn.Linear(WIDTH, NUM_CLASSES)
        self.images_on, self.has_graph, self.has_class_token = images_on, has_graph, has_class_token

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        if not self.has_graph and x.sum() > 1e9:
            x = x / 2
        if self.has_class_token:
            start = self.start if self.has_graph else self.start.clone()
            x = torch.cat([start.expand(x.shape[0], 1, -1), x], dim=1)
        x = self.blocks(x.movedim(0, self.images_on) if not self.has_graph else x.transpose(0, self.images_on))
        return self.head(x.mean(1 - self.images_on))


class Encoded(nn.Module):
    def __init__(self, *, batch_first, norm=False, masked=False, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 4, 4)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=batch_first, **kwargs)
        last = nn.LayerNorm(WIDTH) if norm else None
        self.encoder = nn.TransformerEncoder(layer, 2, norm=last, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, NUM_CLASSES)
        self.batch_first = batch_first
        self.register_buffer("mask", torch.zeros(9, 9) if masked else None)

    def forward(self, x):
        x = self.conv(x).flatten(2)
        x = x.permute(0, 2, 1) if self.batch_first else x.permute(2, 0, 1)
        return self.head(self.encoder(x, mask=self.mask).mean(1 if self.batch_first else 0))


def cut(module, **interface):
    return cut_network(stirred(module).eval(), (3, SIDE, SIDE), Interface(**interface))


def assert_halves_are_exact(network, *, names):
    """Every cut of the network gives its own scores bit for bit, for any number of images, and lets gradients pass."""
    assert {c.name for c in network.cuts} >= set(names)
    for num in (1, 2, 5):
        x = noise(num, 3, SIDE, SIDE)
        whole = network.whole(x)
        activations = network.taps([c.node for c in network.cuts])(x)
        for c, a in zip(network.cuts, activations, strict=True):
            assert torch.equal(network.suffix(c.node)(a), whole), c.name
            if c.can_be_stitched:
                assert tuple(a.shape) == (num, *c.layer.shape)
                (gradient,) = torch.autograd.grad(network.suffix(c.node)(a.requires_grad_()).square().sum(), a)
                assert gradient.abs().sum() > 0, c.name


@pytest.mark.parametrize("images_on", [0, 1])
@pytest.mark.parametrize("has_graph", [True, False])
def test_blocks_are_cuts_whichever_axis_their_images_are_on(has_graph, images_on):
    network = cut(Clip(images_on=images_on, has_graph=has_graph))
    assert network.way == ("graph" if has_graph else "hooks")
    assert_halves_are_exact(network, names=["blocks.0", "blocks.1"])
    chosen = select_layers(network, ["blocks"])
    assert [(c.name, c.layer.axes, c.layer.shape, c.images) for c in chosen] == [
        (f"blocks.{k}", "NTD", (10, WIDTH), images_on) for k in range(2)
    ]


def test_an_image_among_others_has_the_activation_it_has_alone():
    network = cut(Clip(images_on=1))
    x = noise(4, 3, SIDE, SIDE)
    taps = network.taps(["blocks.0.add_1"])
    together, alone = taps(x)[0], torch.cat([taps(x[k : k + 1])[0] for k in range(4)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together[0], together[1])


def test_images_on_the_last_axis_are_moved_to_the_first():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, NUM_CLASSES)

        def forward(self, x):
            x = self.conv(x).permute(1, 2, 3, 0)
            x = torch.tanh(x)
            return self.head(x.permute(3, 0, 1, 2).mean((2, 3)))

    network = cut(Last())
    assert_halves_are_exact(network, names=["tanh"])
    (tanh,) = select_layers(network, ["tanh"])
    assert (tanh.layer.axes, tanh.layer.shape, tanh.images) == ("NCHW", (4, 10, 10), 3)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("variant", [{}, {"norm": True}, {"norm_first": True, "activation": "gelu"}], ids=str)
def test_layers_of_torchs_encoder_are_blocks(batch_first, variant):
    network = cut(Encoded(batch_first=batch_first, **variant))
    assert network.way == "graph"
    assert_halves_are_exact(network, names=[])
    chosen = select_layers(network, ["blocks"])
    assert [c.name for c in chosen] == ["encoder.layers.0", "encoder.layers.1"]
    assert {(c.layer.axes, c.layer.grid) for c in chosen} == {("NTD", (3, 3))}


def test_an_encoder_that_is_not_followed_stays_one_operation():
    network = cut(Encoded(batch_first=True, masked=True))
    assert network.way == "graph"
    assert [c.node for c in network.cuts] == ["conv", "flatten", "permute", "encoder", "mean", "head"]


def test_nodes_of_version_0_1_0_keep_their_names_where_encoders_are_looked_into():
    class Twice(nn.Module):
        """Two layers of torch's encoder, each applied twice."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, WIDTH, 4, 4)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True) for _ in range(2))
            self.head = nn.Linear(WIDTH, NUM_CLASSES)

        def forward(self, x):
            x = self.conv(x).flatten(2).mT
            for layer in [*self.layers, *self.layers]:
                x = layer(x)
            return self.head(x.mean(1))

    before = ["conv", "flatten", "permute", "encoder", "mean", "head"]
    network = cut(Encoded(batch_first=True))
    assert [c.node for c in network.cuts if c.node in before] == before
    assert network.cut("encoder").layer.layout == '["NTD",0,[3,3]]'
    before = ["conv", "flatten", "layers.0.getattr", "layers.0", "layers.1", "layers.0_1", "layers.1_1", "mean", "head"]
    assert [c.node for c in cut(Twice()).cuts if c.node in before] == before


# geometry


def sequence(num, *, prefix=0, grid=None, name="s"):
    return Layer(
        name=name, node=name, depth=0, kind="tokens", axes="NTD", shape=(num, 4), flops=1, num_prefix=prefix, grid=grid
    )


VIT, WORDS = sequence(17, prefix=1, grid=(4, 4), name="vit"), sequence(17, name="words")
MAP = Layer(name="map", node="map", depth=0, kind="map", axes="NCHW", shape=(4, 4, 4), flops=1, grid=(4, 4))
VECTOR = Layer(name="vector", node="vector", depth=0, kind="vector", axes="ND", shape=(4,), flops=1)


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        (WORDS, VIT, "identity"),
        (VIT, WORDS, "identity"),
        (WORDS, WORDS, "identity"),
        (WORDS, VECTOR, "mean"),
        (VECTOR, WORDS, "broadcast"),
        (sequence(17, prefix=1), VIT, "identity"),
        (sequence(18, prefix=2), VIT, "cls_left_out"),
        (VIT, sequence(18, prefix=2), "cls_copy_pool"),
        (sequence(16), sequence(16, grid=(4, 4)), "identity"),
    ],
)
def test_tokens_correspond_by_their_order_where_counts_agree_and_no_more_is_known(source, target, name):
    assert alignment_name(source, target) == name


NO_GRID = r"{}.* cannot be laid on {}.*nothing tells how the tokens of .*'words'.* lie on a grid.*tokens = . prefix = 1"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (WORDS, sequence(10, prefix=1, grid=(3, 3), name="other")),
        (sequence(16, grid=(4, 4), name="other"), WORDS),
        (WORDS, sequence(9, name="other")),
        (sequence(16, name="words"), replace(VIT, name="other")),  # 16 patches, or 16 tokens one of which is a class's
        (replace(MAP, name="other"), sequence(16, name="words")),
        (sequence(18, prefix=1, name="words"), replace(VIT, name="other")),
        (sequence(17, prefix=2, name="words"), replace(VIT, name="other")),
    ],
)
def test_nothing_is_resized_on_a_guess(source, target):
    with pytest.raises(InputError, match=NO_GRID.format(f"'{source.name}'", f"'{target.name}'")):
        alignment_name(source, target)


def test_prefix_tokens_are_not_told_from_others_on_a_guess():
    for cls in ("pool", "drop"):
        with pytest.raises(InputError, match=f'cls = "{cls}" needs to know which tokens.*tokens = {{ prefix'):
            alignment_name(WORDS, VIT, Rules(cls=cls))
        assert alignment_name(VIT, WORDS, Rules(cls=cls)) == "identity"
        assert alignment_name(sequence(17, prefix=1), VIT, Rules(cls=cls)) == f"cls_{cls}"


@pytest.fixture(scope="module")
def zoo():
    """Return a CLIP-like network that hides its class token, a ViT of 1 + 3x3 tokens and other networks."""
    trained = trained_zoo()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nets = {
            "clip": cut(Clip(has_graph=False)),
            "told": cut(Clip(has_graph=False), tokens=Tokens(prefix=1, grid=(3, 3))),
        }
    return Zoo(staged=trained.staged, cut={**trained.cut, **nets})


def records(zoo, *names):
    """Return records of networks: of the CLIP-like ones the second block, of others a sequence or map in the middle."""
    found = []
    for name in names:
        if name in zoo.staged:
            found.append(network_record(zoo, name, [1]))
        else:
            layers = tuple(c.layer for c in select_layers(zoo.cut[name], ["blocks.1"]))
            like = network_record(trained_zoo(), "token", [1])
            found.append(replace(like, spec=replace(like.spec, name=name), network_id=f"id of {name}", layers=layers))
    return tuple(found)


def sweep_of(zoo, source, target, matchers):
    names = [source, target] if source != target else [source]
    pairs = ((0, len(names) - 1),)
    return replace(make_sweep(zoo, [], matchers), networks=records(zoo, *names), pairs=pairs)


@pytest.mark.parametrize(
    ("source", "target"), [("clip", "token"), ("token", "clip"), ("clip", "clip"), ("told", "token")]
)
def test_a_hidden_class_token_is_compared_by_order_with_the_values_of_the_reference(zoo, source, target):
    kinds = [
        matcher("direct"),
        matcher("task_loss", epochs=1, batch_size=64, samples=64),
        matcher("cka"),
        matcher("pwcca"),
    ]
    sweep = sweep_of(zoo, source, target, kinds)
    rows, checked = run(zoo, sweep), reference(zoo, sweep)
    assert {row.alignment for row in rows if row.matcher in {"direct", "task_loss"}} == {"identity"}
    assert not any(row.error for row in rows)
    assert not unlike_reference(sweep, rows, checked, wider={"pwcca": 1e-4, "loss": 1e-4})


def test_a_stitch_of_unknown_geometry_fails_alone_and_says_what_to_write(zoo):
    sweep = sweep_of(zoo, "clip", "conv", [matcher("direct"), matcher("cka"), matcher("task_loss", epochs=1)])
    found = {row.matcher: row for row in run(zoo, sweep)}
    assert found["cka"].value is not None
    (notice,) = geometry_notices(sweep)
    assert notice.startswith(
        "clip: nothing tells how the tokens of its sequences lie on a grid, so that 2 of its cells"
    )
    assert not geometry_notices(sweep_of(zoo, "clip", "token", [matcher("direct")]))
    assert not geometry_notices(sweep_of(zoo, "clip", "conv", [matcher("cka")]))
    for kind in ("direct", "task_loss"):
        assert found[kind].status == "failed"
        assert "'blocks.1' (10 tokens, no known grid) cannot be laid on" in found[kind].error
        assert "tokens = { prefix = 1, grid = [4, 4] }" in found[kind].error
    told = run(zoo, sweep_of(zoo, "told", "conv", [matcher("direct")]))
    assert {row.alignment for row in told} == {"tokens_to_map+cls_left_out+bilinear"}


def test_pooled_scores_of_prefix_tokens_by_order_leave_out_what_the_target_leaves_out(zoo):
    asked = matcher("direct", metrics=("residual", "variance_ratio", "ood_mahalanobis_auroc"))
    sweep = sweep_of(zoo, "clip", "token", [asked])
    rows, checked = run(zoo, sweep), reference(zoo, sweep)
    assert not unlike_reference(sweep, rows, checked)


def test_tokens_that_fit_no_sequence_are_refused():
    with pytest.raises(InputError, match=r"Clip has no sequence of 1 \+ 4 x 4 = 17 tokens.*its sequences have 9, 10"):
        cut(Clip(), tokens=Tokens(prefix=1, grid=(4, 4)))


def test_tokens_of_a_job_are_laid_on_sequences_of_as_many_alone():
    network = cut(Clip(has_graph=False), tokens=Tokens(prefix=1, grid=(3, 3)))
    assert {c.layer.layout for c in network.cuts if c.layer.kind == "tokens"} == {'["NTD",1,[3,3]]'}
    network = cut(Clip(), tokens=Tokens(prefix=1, grid=(3, 3)))
    layouts = {c.name: c.layer.layout for c in network.cuts if c.layer.kind == "tokens"}
    assert layouts["permute"] == '["NTD",0,[3,3]]'
    assert layouts["blocks.1"] == '["NTD",1,[3,3]]'


# addresses


def old_cell_id(sweep, cell):
    """Return the address that version 0.1.0 gave a cell."""
    parts = b""
    for network, layer in (cell.source_key, cell.target_key):
        record = sweep.networks[network]
        parts += framed(record.network_id, record.layers[layer].node, record.layers[layer].layout)
    return hashlib.sha256(parts + framed(sweep.matcher_address[cell.matcher])).hexdigest()[:32]


@pytest.mark.parametrize(
    ("source", "target", "changed"),
    [
        (WORDS, WORDS, set()),
        (VIT, MAP, set()),
        (WORDS, VECTOR, set()),
        (VECTOR, WORDS, set()),
        (sequence(9), sequence(9, grid=(1, 9)), set()),
        (WORDS, VIT, {"direct", "task_loss"}),
        (MAP, WORDS, {"direct", "task_loss"}),
        (WORDS, sequence(9), {"direct", "task_loss"}),
    ],
)
def test_only_cells_that_were_resized_on_a_guess_have_other_addresses(source, target, changed):
    kinds = [matcher("direct"), matcher("task_loss"), matcher("cka"), matcher("pwcca")]
    sweep = make_sweep(trained_zoo(), [("conv", "token")], kinds)
    networks = tuple(replace(one, layers=(layer,)) for one, layer in zip(sweep.networks, (source, target), strict=True))
    sweep = replace(sweep, networks=networks)
    found = {sweep.matchers[c.matcher].kind for c in every_cell(sweep).values() if c.cell_id != old_cell_id(sweep, c)}
    assert found == changed


def test_addresses_of_version_0_1_0_stand():
    layer = replace(VIT, name="x", node="x")
    sweep = make_sweep(trained_zoo(), [("conv", "token")], [matcher("direct")])
    sweep = replace(sweep, networks=(replace(sweep.networks[0], layers=(layer,)),), pairs=((0, 0),))
    assert sweep.cell(0, 0, 0, 0, 0).cell_id == "d3d53a530abace2a46b9f861ed261c53"
    resnet = spec("torchvision:resnet18", num_classes=10)
    resnet = replace(resnet, args='{"num_classes":10}')
    known = network_id(resnet, Preprocess(resize=8, mean=(0.5, 0.5, 0.5)), "w")
    assert known == "1ea796f603a0faa10ac9682697adc9a6"
    images = SimpleNamespace(fit=SimpleNamespace(num=3, digest=lambda num: "d"))
    asked = replace(resnet, recipe=Recipe(epochs=2))
    assert training_key(asked, Preprocess(), images) == "fd861ada7453ca82331eadd708dc9bc9"


@pytest.mark.parametrize(
    ("interface", "preprocess", "changes"),
    [
        (Interface(tokens=Tokens(prefix=1, grid=(3, 3))), Preprocess(), False),  # part of the layers' addresses
        (Interface(output="logits"), Preprocess(), True),
        (Interface(output=0), Preprocess(), True),
        (Interface(inputs='{"a":1}'), Preprocess(), True),
        (Interface(), Preprocess(channels=1), True),
    ],
)
def test_what_decides_the_scores_is_part_of_a_networks_address(interface, preprocess, changes):
    plain = replace(spec("torchvision:resnet18"), recipe=Recipe(epochs=2))
    called = replace(plain, interface=interface)
    images = SimpleNamespace(fit=SimpleNamespace(num=3, digest=lambda num: "d"))
    assert (network_id(called, preprocess, "w") != network_id(plain, Preprocess(), "w")) == changes
    assert (training_key(called, preprocess, images) != training_key(plain, Preprocess(), images)) == changes
