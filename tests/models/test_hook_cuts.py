"""Networks without a graph are cut at what their modules return, and every half is checked by running it."""

import contextlib
import json
import re

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from helpers_models import network, noise, stirred
from torch import nn

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import InputError, JobFileError
from stitchgrid.models.cut_network import cut_network, way_notice
from stitchgrid.models.dry_run import probe_output
from stitchgrid.models.freeze import freeze
from stitchgrid.models.graph_cuts import cut_by_graph
from stitchgrid.models.hook_cuts import cut_by_hooks
from stitchgrid.models.select import select_layers
from stitchgrid.models.tokens import DeclaredTokens
from stitchgrid.store import Store

SMALL_VIT = {"image_size": 8, "patch_size": 2, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Block(nn.Module):
    """A residual block: nothing inside it is a cut, and one activation is used twice."""

    def __init__(self, width=6):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(x + self.conv2(self.act(self.conv1(x))))


class Chain(nn.Module):
    """Stem, residual blocks and head, with something between them that torch.fx cannot follow."""

    def __init__(self, between, num_blocks=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.blocks = nn.Sequential(*[Block() for _ in range(num_blocks)])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 10)
        self.between = between

    def forward(self, x):
        x = self.between(self, self.stem(x))
        x = self.drop(self.blocks(x))
        return self.head(self.between(self, x).mean((2, 3)))


def branch(_, x):
    return x if x.sum() > 0 else 0.5 * x


def loop(_, x):
    for _ in range(int(x.abs().mean() * 3) % 4):
        x = x * 0.9
    return x


def size_in_if(_, x):
    return x + 1 if x.shape[2] > 4 else x


def overwriting_branch(_, x):
    if x.sum() > -1:
        x += 0.1
        x[:, 0].mul_(0.5)
    return F.relu_(x)


BETWEEN = {"branch": branch, "loop": loop, "size": size_in_if, "overwriting": overwriting_branch}


@pytest.fixture(params=BETWEEN)
def chain(request):
    return cut_network(stirred(Chain(BETWEEN[request.param])), (3, 8, 8))


def forwards_of(module):
    return {name for name, part in module.named_modules() if "forward" in vars(part)}


def names(cut):
    return [c.name for c in cut.cuts]


def test_only_what_all_paths_pass_through_is_a_cut(chain):
    assert chain.way == "hooks"
    assert names(chain) == ["stem.0", "stem.1", "blocks.0", "blocks.1", "blocks.2", "drop", "head"]
    assert [c.layer.axes for c in chain.cuts] == ["NCHW"] * 6 + ["ND"]
    assert [c.layer.grid for c in chain.cuts] == [(8, 8)] * 6 + [None]


def test_the_halves_are_the_whole_bit_for_bit_at_every_cut_and_overwrite_nothing(chain):
    for num in (2, 5):
        x = noise(num, 3, 8, 8)
        whole = chain.module(x)
        assert whole.std(0).min() > 1e-3
        activations = chain.taps([c.node for c in chain.cuts])(x)
        for c, activation in zip(chain.cuts, activations, strict=True):
            before = activation.clone()
            assert torch.equal(chain.suffix(c.node)(activation), whole), c.name
            assert torch.equal(activation, before), c.name
            assert c.layer.shape == tuple(activation.shape[1:])
            (alone,) = chain.taps([c.node])(x)
            assert torch.equal(alone, activation), c.name


def test_words_choose_layers_as_they_do_where_there_is_a_graph(chain):
    chosen = lambda *words: [c.name for c in select_layers(chain, words)]  # noqa: E731
    assert chosen("blocks") == chosen("blocks.*") == ["blocks.0", "blocks.1", "blocks.2"]
    assert chosen("stem") == ["stem.1"]
    assert chosen("blocks.1", "head", "stem.0") == ["stem.0", "blocks.1", "head"]
    with pytest.raises(JobFileError, match=r"'blocks.1.conv2' is not a cut: another path.*nearest: 'blocks.1'"):
        chosen("blocks.1.conv2")


@pytest.mark.parametrize("between", [branch, loop, size_in_if])
def test_halves_share_the_weights_and_gradients_reach_the_activation_alone(between):
    chain = cut_network(stirred(Chain(between)), (3, 8, 8))
    (activation,) = chain.taps(["blocks.0"])(noise(2, 3, 8, 8))
    suffix = chain.suffix("blocks.0")
    assert {id(p) for p in suffix.parameters()} == {id(p) for p in chain.module.parameters()}
    suffix(activation.requires_grad_()).square().sum().backward()
    assert activation.grad.any()
    assert all(p.grad is None for p in chain.module.parameters())


def test_gradients_pass_through_taps_to_the_images():
    cut = cut_network(stirred(Chain(branch)), (3, 8, 8))
    x = noise(2, 3, 8, 8).requires_grad_()
    (activation,) = cut.taps(["blocks.1"])(x)
    activation.sum().backward()
    assert x.grad.any()


def test_the_work_before_a_cut_is_not_done_and_taps_end_at_the_last_of_them(chain):
    calls = []
    for name, part in chain.module.named_modules():
        if name in {"stem.0", "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1", "head"}:
            part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    (activation,) = chain.taps(["blocks.1"])(noise(2, 3, 8, 8))
    assert calls == ["stem.0", "blocks.0.conv1", "blocks.1.conv1"]
    calls.clear()
    chain.suffix("blocks.1")(activation)
    assert calls == ["blocks.2.conv1", "head"]


def test_the_scores_can_be_asked_for_along_with_activations(chain):
    x = noise(3, 3, 8, 8)
    scores, block, again = chain.taps([chain.logits, "blocks.1", chain.logits])(x)
    assert torch.equal(scores, chain.module(x))
    assert again is scores
    assert torch.equal(chain.suffix("blocks.1")(block), scores)
    assert torch.equal(chain.suffix(chain.logits)(scores), scores)
    assert chain.taps([])(x) == ()
    with pytest.raises(JobFileError, match=r"Chain has no cut at node 'blocks.3'; did you mean 'blocks.2'"):
        chain.taps(["blocks.3"])


def test_nothing_stays_behind_on_the_modules_even_after_an_exception(chain):
    def hooks():
        return {n: (len(p._forward_hooks), len(p._forward_pre_hooks)) for n, p in chain.module.named_modules()}

    assert not forwards_of(chain.module)
    assert not any(pair != (0, 0) for pair in hooks().values())
    (activation,) = chain.taps(["blocks.0"])(noise(2, 3, 8, 8))
    for wrong in (activation[:, :2], torch.ones(2, 5)):
        with pytest.raises(Exception, match=r".+"):
            chain.suffix("blocks.0")(wrong)
        with pytest.raises(Exception, match=r".+"):
            chain.taps(["blocks.0"])(wrong)
    assert not forwards_of(chain.module)
    assert not any(pair != (0, 0) for pair in hooks().values())


def test_a_forward_of_the_instance_is_put_back():
    module = stirred(Chain(branch))
    original = module.blocks[0].forward
    module.blocks[0].forward = own = lambda x: original(x) + 1
    cut = cut_network(module, (3, 8, 8))
    x = noise(2, 3, 8, 8)
    assert torch.equal(cut.suffix("blocks.0")(cut.taps(["blocks.0"])(x)[0]), module(x))
    assert vars(module.blocks[0])["forward"] is own


def test_constants_that_tracing_left_on_the_network_are_taken_off():
    def scaled(_, x):
        return branch(_, x * torch.tensor([1.0, 2.0]).mean())

    module = stirred(Chain(scaled))
    before = set(vars(module))
    assert cut_network(module, (3, 8, 8)).way == "hooks"
    assert set(vars(module)) - before == {"train"}  # frozen, and nothing else


# the same as by graph


@pytest.mark.parametrize(
    ("architecture", "args", "side", "num"),
    [
        ("stitchgrid:tiny10", {"padding": 1}, 8, 25),
        ("stitchgrid:resnet20", {"width": 4}, 8, 12),
        ("stitchgrid:vit_tiny", SMALL_VIT, 8, 6),
        ("torchvision:resnet18", {"num_classes": 10}, 32, 14),
    ],
)
def test_a_network_that_has_a_graph_gets_the_same_layers_by_hooks(architecture, args, side, num):
    module = freeze(network(architecture, **args))
    shape = (3, side, side)
    expected = probe_output(module, shape)
    graph = cut_by_graph(module, shape, expected)
    hooked = cut_by_hooks(module, shape, expected, reason="")
    by_name = {c.name: c for c in graph.cuts}
    common = [c for c in hooked.cuts if c.name in by_name]
    assert len(common) == num
    x = noise(3, *shape)
    theirs = graph.taps([by_name[c.name].node for c in common])(x)
    ours = hooked.taps([c.node for c in common])(x)
    for c, a, b in zip(common, ours, theirs, strict=True):
        layer = by_name[c.name].layer
        for field in ("kind", "axes", "shape", "num_prefix", "grid", "flops"):
            assert getattr(c.layer, field) == getattr(layer, field), (c.name, field)
        assert torch.equal(a, b), c.name
        assert torch.equal(hooked.suffix(c.node)(a), graph.suffix(by_name[c.name].node)(b)), c.name
    assert hooked.flops == graph.flops
    blocks = [[c.name for c in select_layers(one, ["blocks"])] for one in (graph, hooked)]
    assert blocks[0] == blocks[1]


# what is a cut and what is not


class Head(nn.Module):
    """Pooled features of one convolution, combined with `rest` in the manner given."""

    def __init__(self, combine):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.act = nn.Tanh()
        self.side = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)
        self.combine = combine

    def forward(self, x):
        if x.sum() > 1e9:
            return self.head(self.side(x).mean((2, 3)))
        return self.head(self.combine(self, x).mean((2, 3)))


def hooked(combine, *, stir=True):
    module = Head(combine)
    return cut_network(stirred(module) if stir else module, (3, 4, 4))


def test_a_module_used_twice_is_no_cut_where_it_is_used_a_second_time():
    assert names(hooked(lambda m, x: m.norm(m.act(m.act(m.conv(x)))))) == ["conv", "norm", "head"]


def test_a_path_that_passes_by_is_noticed_even_if_it_adds_nothing_yet():
    def beside(m, x):
        return m.norm(m.act(m.conv(x)) + m.gate * m.side(x))

    module = stirred(Head(beside))
    module.gate = nn.Parameter(torch.zeros(()))  # as in networks that begin as the identity
    module.head.weight.data.zero_()
    module.head.bias.data.zero_()
    assert names(cut_network(module, (3, 4, 4))) == ["norm", "head"]


class Shortcut(nn.Module):
    """Its shortcut is a module that passes its input on; what is beside it says nothing on images of noise."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.shortcut = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Identity()
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.stem(x)
        if x.sum() > 1e9:
            x = -x
        return self.head((self.shortcut(x) + F.relu(self.body(x) - 1e3)).mean((2, 3)))


def test_a_module_that_passes_its_input_on_is_no_cut_where_another_path_begins_before_it():
    cut = cut_network(stirred(Shortcut()), (3, 8, 8))
    assert cut.way == "hooks"
    assert "stem" in names(cut)
    assert "shortcut" not in names(cut)


def test_a_branch_on_the_images_that_passes_by_a_module_is_noticed():
    found = names(hooked(lambda m, x: m.norm(m.act(m.conv(x)) * (1 if x.sum() > 0 else -1))))
    assert found == ["norm", "head"]


def test_a_run_that_would_never_end_without_the_images_is_ended():
    def until_large(m, x):
        scale = 1.0
        while scale * x.abs().max() < 1:  # for ever, of zeros
            scale *= 2
        return m.norm(m.act(m.conv(x * scale)))

    cut = hooked(until_large)
    assert names(cut) == ["conv", "act", "norm", "head"]
    x = noise(3, 3, 4, 4)
    assert torch.equal(cut.suffix("act")(cut.taps(["act"])(x)[0]), cut.module(x))


def test_what_is_worked_out_without_the_images_is_not_left_out():
    def with_bias(m, x):
        bias = m.side(torch.ones(len(x), 3, 1, 1))
        return m.norm(m.act(m.conv(x)) + bias)

    cut = hooked(with_bias)
    x = noise(3, 3, 4, 4)
    (a,), whole = cut.taps(["act"])(x), cut.module(x)
    calls = []
    for name in ("conv", "side", "norm"):
        cut.module.get_submodule(name).register_forward_hook(
            lambda part, *_, name=name: None if "forward" in vars(part) else calls.append(name)
        )
    assert torch.equal(cut.suffix("act")(a), whole)
    assert calls == ["side", "norm"]


def test_scores_that_no_module_returns_are_the_last_cut():
    class Scaled(Head):
        def forward(self, x):
            return super().forward(x) * 2

    cut = cut_network(stirred(Scaled(lambda m, x: m.act(m.conv(x)))), (3, 4, 4))
    assert names(cut) == ["conv", "act", "head", "output"]
    assert cut.logits == "output"
    assert cut.num_classes == 10
    x = noise(2, 3, 4, 4)
    a, scores = cut.taps(["act", "output"])(x)
    assert torch.equal(scores, cut.module(x))
    assert torch.equal(cut.suffix("act")(a), scores)


def test_an_activation_is_laid_out_in_memory_as_the_network_lays_it_out():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.head = nn.Linear(4 * 16, 10)

        def forward(self, x):
            a = branch(self, self.conv(x))
            return self.head(a.view(a.size(0), -1))

    cut = cut_network(stirred(Viewing()), (3, 4, 4))
    x = noise(2, 3, 4, 4)
    (a,) = cut.taps(["conv"])(x)
    assert torch.equal(cut.suffix("conv")(a.contiguous(memory_format=torch.channels_last)), cut.module(x))
    (scores,) = cut.taps([cut.logits])(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(scores, cut.module(x))


# reading


class Sequences(nn.Module):
    """Tokens whose class token is declared by a part of the network, and a branch."""

    def __init__(self, *, pooled):
        super().__init__()
        self.inner = nn.Module()
        self.inner.cls_token = nn.Parameter(torch.ones(1, 1, 8))
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.drop = nn.Dropout()
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 10)
        self.pooled = pooled

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if tokens.sum() > 1e9:
            tokens = tokens * 2
        if not self.pooled:
            tokens = torch.cat([self.inner.cls_token.expand(len(x), -1, -1), tokens], 1)
        tokens = self.norm(self.mix(self.drop(tokens)))
        return self.head(tokens.mean(1) if self.pooled else tokens[:, 0])


@pytest.mark.parametrize(("pooled", "num_prefix"), [(True, 0), (False, 1)])
def test_tokens_before_the_grid_are_what_the_network_declares(pooled, num_prefix):
    cut = cut_network(stirred(Sequences(pooled=pooled)), (3, 8, 12))
    found = {c.name: (c.layer.axes, c.layer.num_prefix, c.layer.grid) for c in cut.cuts}
    for name in ("drop", "mix", "norm"):
        assert found[name] == ("NTD", num_prefix, (4, 6)), name
    assert found["patches"] == ("NCHW", 0, (4, 6))


@pytest.mark.parametrize(
    ("num_tokens", "last_map", "layout"),
    [(16, (4, 4), (0, (4, 4))), (17, (4, 4), (0, None)), (17, None, (0, None)), (16, None, (0, None))],
)
def test_nothing_is_concluded_from_a_token_count_alone(num_tokens, last_map, layout):
    assert DeclaredTokens(nn.Linear(2, 2)).layout(num_tokens, last_map) == layout


def test_maps_with_features_last_are_read_so_and_unclear_ones_not_at_all():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(3, 5)
            self.act = nn.GELU()
            self.quiet = nn.Tanh()
            self.head = nn.Linear(5, 10)

        def forward(self, x):
            x = branch(self, self.act(self.mix(x.permute(0, 2, 3, 1))))
            return self.head(self.quiet(x.flatten(1, 2).unsqueeze(1)).mean((1, 2)))

    cut = cut_network(stirred(Last()), (3, 4, 6))
    found = {c.name: (c.layer.kind, c.layer.axes, c.layer.grid) for c in cut.cuts}
    assert found["mix"] == found["act"] == ("map", "NHWC", (4, 6))
    assert found["quiet"] == ("other", "", None)


def test_what_modules_before_and_after_say_otherwise_of_is_not_read():
    class Cube(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.quiet, self.mix = nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Linear(4, 4)
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            x = self.quiet(branch(self, self.conv(x)).permute(0, 2, 3, 1))
            return self.head(self.mix(x).mean((1, 2)))

    cut = cut_network(stirred(Cube()), (3, 4, 4))  # as many features as rows and columns
    assert {c.name: c.layer.axes for c in cut.cuts} == {"conv": "NCHW", "quiet": "", "mix": "NHWC", "head": "ND"}


# refused


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda m, x: F.dropout(m.head(m.body(x)), 0.5) if x.sum() < 1e9 else x,
            "cannot be traced by torch.fx .*Nor can it be cut through hooks.*must not be random in eval mode",
        ),
        (
            lambda m, x: m.head(m.body(x)) * (1 if x.sum() > 0 else -1),
            "cannot be traced .*none of the 2 modules that Wrong runs is called once .*wanted blocks that are modules",
        ),
        (
            lambda m, x: m.head(m.body(x)) if len(x) == 2 else m.head(m.body(x).reshape(2, -1)),
            "Wrong fails on 3 images of noise .*must take any number of images",
        ),
    ],
)
def test_what_hooks_cannot_cut_either_is_refused_with_both_reasons(forward, message):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Flatten(), nn.Linear(12, 10)

        def forward(self, x):
            return forward(self, x)

    with pytest.raises(InputError, match=message):
        cut_network(stirred(Wrong()), (3, 2, 2))


def test_a_module_that_is_not_run_on_some_images_is_named():
    cut = hooked(lambda m, x: m.norm(m.act(m.conv(x))))
    with pytest.raises(InputError, match=r"Head did not run 'conv' on these images.*whatever the images"):
        cut.taps(["conv"])(torch.full((2, 3, 4, 4), 1e9))


# through the command line


OWN = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return x + torch.tanh(self.conv(x))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        if x.abs().max() > 1e6:
            x = x / 1e6
        return self.head(x.mean((2, 3)))

def make():
    return Own()
"""
JOB = """
name = "own"
[data]
dataset = "digits"
fit = { split = "train", samples = 96 }
eval = { split = "test", samples = 64 }
[[models]]
name = "own"
architecture = "own.py:make"
weights = "random"
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka"
"""


@contextlib.contextmanager
def job(folder):
    (folder / "own.py").write_text(OWN)
    (folder / "own.toml").write_text(JOB)
    yield folder / "own.toml", "--store", folder / "grid"


def run(*arguments):
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_a_whole_sweep_of_a_network_without_a_graph(tmp_path):
    with job(tmp_path) as where:
        notice = r"own: it cannot be traced; it is cut through hooks on its modules, which is slower"
        assert len(re.findall(notice, run("plan", *where).stderr)) == 1
        assert len(re.findall(notice, run("launch", *where, "--address", "none").stderr)) == 1
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        rows = catalog.query(
            "select source_layer, target_layer, metric, value from results where source_layer = target_layer and "
            "metric in ('residual', 'agreement')"
        ).to_pylist()
        (pairs,) = catalog.query("select count(*) as n from cells").to_pylist()
    assert pairs["n"] == 2 * 2 * 2
    assert {row["source_layer"] for row in rows} == {"blocks.0", "blocks.1"}
    assert all(row["value"] < 1e-6 if row["metric"] == "residual" else row["value"] == 1 for row in rows)


def test_layers_says_that_a_network_cannot_be_traced_and_why(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    shown = run("layers", f"{tmp_path / 'own.py'}:make", "--input-size", "8x8", "--format", "json")
    assert re.search(r"own.py:make cannot be traced \(TraceError: .*\); it is cut through hooks", shown.stderr)
    assert [one["name"] for one in json.loads(shown.stdout)] == ["blocks.0", "blocks.1"]


def test_a_network_with_a_graph_gives_no_notice():
    traced = cut_network(network("stitchgrid:tiny10", padding=1), (3, 8, 8))
    assert way_notice("net", traced.way, traced.reason) is None
