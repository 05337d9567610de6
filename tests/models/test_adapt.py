"""Networks that take more than images, return more than scores, or fail; and what a cut network offers for a proof."""

import json
import sys
from collections import namedtuple
from dataclasses import dataclass, replace
from math import sqrt

import pytest
import torch
from click.testing import CliRunner
from helpers_engine import FakeSplit, one_thread  # noqa: F401  # the latter is a fixture
from helpers_flow import run, values
from helpers_models import noise, spec, stirred
from torch import nn
from torch.nn import functional as F

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import InputError
from stitchgrid.matchers.registry import default_metrics
from stitchgrid.models.build import make_network
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.freeze import freeze
from stitchgrid.models.training import train_network
from stitchgrid.models.weights import state_digest
from stitchgrid.records import Interface, Recipe, canonical
from stitchgrid.store import Store

SIDE = 6


class Net(nn.Module):
    """What the others vary: two convolutions and a head; with a branch, it is cut by hooks."""

    def __init__(self, *, branches=False, classes=4, channels=3):
        super().__init__()
        self.conv, self.act = nn.Conv2d(channels, 5, 3, padding=1), nn.ReLU()
        self.second, self.head = nn.Conv2d(5, 5, 3), nn.Linear(5, classes)
        self.branches = branches

    def maps(self, x):
        if self.branches and x.sum() > 1e9:
            return x
        return self.act(self.second(self.act(self.conv(x))))

    def forward(self, x):
        return self.head(self.maps(x).mean((2, 3)))


Both = namedtuple("Both", ["features", "logits"])


@dataclass
class Output:
    logits: torch.Tensor
    loss: None = None


class Returns(Net):
    def __init__(self, make, **kwargs):
        super().__init__(**kwargs)
        self.make = make

    def forward(self, x):
        maps = self.maps(x)
        return self.make(maps, self.head(maps.mean((2, 3))))


class Takes(Net):
    """Takes four numbers besides, after which it computes as a network without a graph of them would."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.meta = nn.Linear(4, 4)

    def forward(self, image, meta):
        return super().forward(image) + self.meta(meta)


class Conditioned(Net):
    """Takes a class before the images, and a scale and two switches after them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embed = nn.Embedding(7, 5)

    def forward(self, label, image, scale, mode="plain", *, doubled=False):
        assert mode in {"plain", "other"}
        x = self.maps(image) + self.embed(label)[:, :, None, None]
        return self.head(x.mean((2, 3))) * scale * (2 if doubled else 1)


either = pytest.mark.parametrize("branches", [False, True], ids=["graph", "hooks"])


def cut(module, **interface):
    if "inputs" in interface:
        interface["inputs"] = canonical(interface["inputs"])
    return cut_network(stirred(module), (3, SIDE, SIDE), Interface(**interface))


def assert_halves_give(network, wanted):
    for num in (1, 2, 5):
        x = noise(num, 3, SIDE, SIDE)
        whole = network.whole(x)
        assert torch.equal(whole, wanted(x))
        for c, a in zip(network.cuts, network.taps([c.node for c in network.cuts])(x), strict=True):
            assert len(a) == num
            assert torch.equal(network.suffix(c.node)(a), whole), c.name


@either
@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda maps, y: {"maps": maps, "logits": y}, "logits"),
        (lambda maps, y: (y, maps), 0),
        (lambda maps, y: [maps, y], -1),
        (Both, "logits"),
        (Both, 1),
        (lambda maps, y: Output(logits=y), "logits"),
        (lambda maps, y: {"heads": {"a.b": maps, "c": (maps, y)}}, "heads.c.1"),
        (lambda maps, y: {"a.b": y}, "a.b"),
    ],
)
def test_scores_are_picked_by_key_attribute_position_or_path(make, output, branches):
    module = Returns(make, branches=branches)
    plain = stirred(Net())
    network = cut(module, output=output)
    assert network.way == ("hooks" if branches else "graph")
    plain.load_state_dict(module.state_dict())
    assert_halves_give(network, plain)
    assert {c.name for c in network.cuts} >= {"conv", "second", "head"}


@either
def test_constants_are_repeated_for_each_image(branches):
    module = Takes(branches=branches)
    network = cut(module, inputs={"meta": [0, 1, 0.5, -2]})
    meta = torch.tensor([0, 1, 0.5, -2])
    assert_halves_give(network, lambda x: Takes.forward(module, x, meta.expand(len(x), 4)))
    assert {c.name for c in network.cuts} >= {"conv", "second", "head"}  # none is beside a path


@either
def test_constants_have_the_types_they_are_given_and_images_go_where_none_is(branches):
    module = Conditioned(branches=branches)
    inputs = {"label": {"value": 3, "dtype": "int64"}, "scale": 0.5, "mode": "other", "doubled": True}
    network = cut(module, inputs=inputs)
    label = torch.tensor(3)
    assert_halves_give(network, lambda x: Conditioned.forward(module, label.expand(len(x)), x, 0.5, doubled=True))


def test_functions_that_are_wrapped_when_a_forward_is_traced_are_wrapped_in_one_that_is_called_so_too():
    class Rooted(Net):
        def forward(self, x):
            maps = self.maps(x)
            return {"logits": self.head(maps.mean((2, 3)) / sqrt(maps.shape[1]))}

    network = cut(Rooted(), output="logits")
    assert network.way == "graph"
    assert_halves_give(network, network.module)


def test_names_of_layers_and_of_the_state_stay_those_of_the_network():
    plain, called = stirred(Takes()), stirred(Takes())
    before = state_digest(called), list(called.state_dict()), repr(type(called))
    cut(called, inputs={"meta": [0, 0, 0, 0]})
    assert (state_digest(called), list(called.state_dict()), repr(type(called))) == before
    assert isinstance(called, Takes)
    assert [name for name, _ in called.named_modules()] == [name for name, _ in plain.named_modules()]


def test_a_network_can_be_cut_again_in_another_way():
    module = Returns(lambda maps, y: {"a": y, "b": 2 * y})
    x = noise(2, 3, SIDE, SIDE)
    first, second = cut(module, output="a").whole(x), cut(module, output="b").whole(x)
    assert torch.equal(second, 2 * first)
    with pytest.raises(InputError, match="returns a dict"):
        cut(module)


@pytest.mark.parametrize(
    ("module", "interface", "message"),
    [
        (
            Takes(),
            {},
            r"Takes's forward also needs 'meta'.*inputs = \{ meta = \[0, 0\] \}: a list becomes a float tensor",
        ),
        (Takes(), {"inputs": {"mta": [1]}}, "no argument 'mta'.*did you mean 'meta'"),
        (Takes(), {"inputs": {"meta": [1], "image": [1]}}, "no argument left for the images"),
        (Takes(), {"inputs": {"meta": [[1], [1, 2]]}}, r"\[\[1\], \[1, 2\]\] in `inputs` is no tensor"),
        (
            Takes(),
            {"inputs": {"meta": {"value": [1], "dtype": "int8"}}},
            "dtype 'int8' in `inputs` is unknown; did you",
        ),
        (
            Takes(),
            {"inputs": {"meta": [1, 2]}},
            r"Takes does not run on images of 6x6 .*whole numbers in `inputs` are",
        ),
        (Returns(lambda m, y: {"a": y}), {"output": "b"}, r"no output 'b': the network returns a dict: 'a' \(2, 4\)"),
        (Returns(lambda m, y: (y, y)), {"output": 2}, r"no output 2: .* a tuple: 0 \(2, 4\), 1 \(2, 4\)"),
        (Returns(lambda m, y: (y, m)), {"output": 1}, r"returns a tensor of \(2, 5, 4, 4\) for 2 images"),
        (
            Returns(lambda m, y: y),
            {"output": "logits"},
            r"no output 'logits': the network returns a tensor of \(2, 4\)",
        ),
        (
            Returns(lambda m, y: {"n": 3}),
            {},
            r"returns a dict: 'n' \(int\) for 2 images; wanted one tensor.*classes\)\.$",
        ),
    ],
)
def test_what_is_missing_or_does_not_exist_is_said_with_the_line_to_write(module, interface, message):
    with pytest.raises(InputError, match=message):
        cut(module, **interface)


# one score an image


@either
@pytest.mark.parametrize("make", [lambda m, y: y[:, 0], lambda m, y: y.mean(1), lambda m, y: y[:, 0].sigmoid()])
def test_one_score_an_image_is_a_row_of_one(make, branches):
    module = Returns(make, branches=branches)
    network = cut(module)
    assert network.num_classes == 1
    assert_halves_give(network, lambda x: Returns.forward(module, x)[:, None])


def test_one_score_an_image_survives_a_squeeze_of_a_single_image():
    module = Returns(lambda m, y: y.squeeze(), classes=1)
    network, x = cut(module), noise(1, 3, SIDE, SIDE)
    (a,) = network.taps(["second"])(x)
    wanted = Returns.forward(module, x).reshape(1, 1)
    assert torch.equal(network.whole(x), wanted)
    assert torch.equal(network.suffix("second")(a), wanted)


# the last operation


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda m, y: y, None),
        (lambda m, y: y.sigmoid(), "sigmoid"),
        (lambda m, y: torch.sigmoid(y[:, 0]), "sigmoid"),
        (lambda m, y: y.softmax(-1), "softmax"),
        (lambda m, y: F.softmax(y, dim=1), "softmax"),
        (lambda m, y: F.softmax(y, dim=0), None),
        (lambda m, y: y.log_softmax(1), None),
        (lambda m, y: y.softmax(1) * 2, None),
        (lambda m, y: {"p": y.softmax(1).float()}, "softmax"),
    ],
)
def test_the_last_operation_is_told_by_the_graph(make, wanted):
    output = "p" if isinstance(make(None, torch.zeros(2, 2)), dict) else None
    assert cut(Returns(make), output=output).ends_in == wanted


@either
@pytest.mark.parametrize(
    ("module", "wanted"),
    [(nn.Sigmoid(), "sigmoid"), (nn.Softmax(1), "softmax"), (nn.Softmax(0), None), (nn.Tanh(), None)],
)
def test_the_last_operation_is_told_by_the_last_module(module, wanted, branches):
    class Ends(Net):
        def __init__(self):
            super().__init__(branches=branches)
            self.end = module

        def forward(self, x):
            return self.end(super().forward(x))

    assert cut(Ends()).ends_in == wanted


# the whole network


def test_the_whole_network_is_the_authors_own_not_the_graph():
    class InPlace(Net):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            x *= 2
            return super().forward(x)

    module = InPlace()
    network = cut(module)
    x = noise(3, 3, SIDE, SIDE)
    before, calls = x.clone(), []
    module.act.register_forward_hook(lambda part, *_: calls.append(part.inplace))
    scores = network.whole(x.contiguous(memory_format=torch.channels_last))
    assert calls == [True, True]
    assert torch.equal(x, before)
    assert torch.equal(scores, InPlace.forward(module, x.clone()))


def test_a_network_that_loses_the_axis_of_a_single_image_is_told_of_it():
    network = cut(Returns(lambda m, y: y.squeeze()))
    assert network.whole(noise(2, 3, SIDE, SIDE)).shape == (2, 4)
    with pytest.raises(InputError, match=r"returns a tensor of \(4,\) for 1 images; wanted \(1, 4\).*keep their axis"):
        network.whole(noise(1, 3, SIDE, SIDE))


def test_a_network_that_fails_on_some_images_is_an_error_of_one_line():
    def picky(m, y):
        if y.shape[0] == 7:
            raise ValueError("no\nseven")
        return y

    network = cut(Returns(picky, branches=True))
    with pytest.raises(InputError, match=r"Returns fails on 7 images \(ValueError: no seven\)"):
        network.whole(noise(7, 3, SIDE, SIDE))


# forwards that fail


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError


class Fails(Net):
    def __init__(self, error, *, after=0):
        super().__init__(branches=True)
        self.error, self.after, self.num_calls = error, after, 0

    def forward(self, x):
        self.num_calls += 1
        if self.num_calls > self.after:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(3), r"SystemExit: 3"),
        (KeyError("a"), r"KeyError: 'a'"),
        (RuntimeError("one\n  two\nthree"), "RuntimeError: one two three"),
        (AssertionError(), r"\(AssertionError\)"),
        (RecursionError("deep"), "RecursionError: deep"),
        (UnspeakableError(), r"\(UnspeakableError\)"),
        (ValueError("x" * 9_999), "x{290,300}\\.\\.\\."),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_forward_that_fails_at_whichever_call_is_one_clear_line(error, said, after):
    with pytest.raises(InputError, match=said) as caught:
        cut(Fails(error, after=after))
    assert "\n" not in str(caught.value)
    assert "Fails" in str(caught.value)


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt):
        cut(Fails(KeyboardInterrupt()))


@either
def test_what_a_forward_prints_goes_to_stderr(branches, capsys):
    class Prints(Net):
        def forward(self, x):
            print("inside", type(x).__name__)  # noqa: T201
            return super().forward(x)

    network = cut(Prints(branches=branches))
    x = noise(2, 3, SIDE, SIDE)
    (a,) = network.taps(["second"])(x)
    network.suffix("second")(a)
    network.whole(x)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "inside Tensor" in captured.err
    assert sys.stdout is not sys.stderr


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_module_is_refused_in_one_line():
    scripted = torch.jit.script(Net())
    with pytest.raises(InputError, match=r"^Net is a TorchScript module.*give the module it was scripted from\.$"):
        cut_network(scripted, (3, SIDE, SIDE))


# names


@pytest.mark.parametrize(
    "name", ["code", "graph", "recompile", "_graph", "_code", "print_readable", "meta", "to_folder", "class_member_cls"]
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_parts_may_have_the_names_of_attributes_of_a_graph(name, is_nested):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            home = self
            if is_nested:
                self.inner = home = nn.Module()
            self.head = nn.Linear(4, 4)
            setattr(home, name, nn.Conv2d(3, 4, 3))

        def forward(self, x):
            part = getattr(self.inner if is_nested else self, name)
            return self.head(torch.relu(part(x)).mean((2, 3)))

    network = cut(Named())
    assert network.way == "graph"
    assert network.cuts[0].name == (f"inner.{name}" if is_nested else name)
    assert_halves_give(network, network.module)


@pytest.mark.parametrize("name", ["graph", "code", "_graph"])
def test_parameters_and_buffers_may_have_such_names_too(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
            self.inner = nn.Module()
            self.register_buffer(name, torch.ones(1, 4, 1, 1))
            setattr(self.inner, name, nn.Parameter(torch.ones(4)))

        def forward(self, x):
            x = self.conv(x) * getattr(self, name)
            return self.head(x.mean((2, 3)) + getattr(self.inner, name))

    network = cut(Named())
    assert network.way == "graph"
    assert_halves_give(network, network.module)


# channels


@pytest.mark.parametrize(("takes", "given"), [(1, 3), (3, 1)])
def test_a_wrong_number_of_channels_is_told_as_such(takes, given):
    with pytest.raises(
        InputError, match=rf"it takes {takes} channels?, and the images have {given}: set channels = {takes}"
    ):
        cut_network(Net(channels=takes), (given, SIDE, SIDE))


def test_a_number_of_channels_that_images_do_not_have_is_named():
    with pytest.raises(InputError, match=r"takes 4 channels, and images have 3, or 1 .*; arrays have others if `cha"):
        cut_network(Net(channels=4), (3, SIDE, SIDE))
    for takes in (3, 5):
        wanted = rf"takes {takes} channels, and the images have 12: build it for them by its `args` \(in timm: "
        with pytest.raises(InputError, match=wanted):
            cut_network(Net(channels=takes), (12, SIDE, SIDE))
    assert cut_network(stirred(Net(channels=12)), (12, SIDE, SIDE)).input_shape == (12, SIDE, SIDE)


def test_a_grey_network_is_cut_for_grey_images():
    network = cut_network(stirred(Net(channels=1)), (1, SIDE, SIDE))
    assert network.whole(noise(2, 1, SIDE, SIDE)).shape == (2, 4)


# in a job

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.second, self.head = nn.Conv2d(channels, 5, 3), nn.Conv2d(5, 5, 3), nn.Linear(5, 10)
        self.meta = nn.Linear(2, 10)

    def forward(self, x, meta=None):
        pooled = torch.relu(self.second(torch.relu(self.conv(x)))).mean((2, 3))
        scores = self.head(pooled) + (0 if meta is None else self.meta(meta))
        return {"logits": scores, "pooled": pooled}

def make(**args):
    return Net(**args)
"""
JOB = """
name = "called"
[data]
dataset = "digits"
fit = { split = "train", samples = 32 }
eval = { split = "test", samples = 24 }
[[models]]
name = "plain"
architecture = "nets.py:make"
weights = "random"
output = "logits"
[[models]]
name = "meta"
architecture = "nets.py:make"
weights = "random"
output = "logits"
inputs = { meta = [0.5, 1] }
[[models]]
name = "grey"
architecture = "nets.py:make"
args = { channels = 1 }
weights = "random"
output = "logits"
preprocess = { channels = 1, mean = [0.3], std = [0.5] }
[grid]
pairs = [["plain", "meta"], ["grey", "plain"]]
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka"
"""


def test_a_job_says_how_its_networks_are_called(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "called.toml").write_text(JOB)
    where = "--store", tmp_path / "grid", "--address", "none"
    run("launch", tmp_path / "called.toml", *where)
    before = values(tmp_path / "grid")
    assert len(before) == 2 * 2 * 2 * (1 + len(default_metrics("direct")))
    run("resume", "called", *where)
    assert values(tmp_path / "grid") == before
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        rows = catalog.query("select model, preprocess, network_id from models order by model").to_pylist()
    assert [row["preprocess"].count("channels") for row in rows] == [1, 0, 0]
    assert len({row["network_id"] for row in rows}) == 3


def test_a_network_is_trained_as_it_is_called(tmp_path, capsys):
    (tmp_path / "nets.py").write_text(NETS.replace("pooled = ", "print('training', type(x)); pooled = "))
    interface = Interface(inputs='{"meta":[0.5,1]}', output="logits")
    asked = replace(spec("nets.py:make", base=tmp_path), interface=interface, recipe=Recipe(epochs=1, batch_size=16))
    before = make_network(asked).state_dict()
    trained = train_network(asked, FakeSplit(32, seed=0), lambda pixels: pixels.float() / 255).module
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys()  # also what only the constants reach
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training" in captured.err


def test_layers_are_listed_of_networks_that_are_called_so(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    command = "layers", f"{tmp_path / 'nets.py'}:make", "--input-size", "8x8"
    assert 'output = "logits"' in CliRunner().invoke(cli, [*command]).stderr
    options = "--args", '{"channels": 1}', "--channels", "1", "--output", "logits", "--inputs", '{"meta": [0, 1]}'
    assert [one["name"] for one in json.loads(run(*command, *options, "--format", "json").stdout)] == ["relu", "relu_1"]


def test_what_cannot_be_frozen_is_refused_in_one_line():
    exported = torch.export.export(Net().eval(), (torch.zeros(2, 3, SIDE, SIDE),)).module()
    with pytest.raises(InputError, match=r"cannot be frozen .*give the module that it was made from"):
        freeze(exported)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_part_that_is_a_torchscript_module_is_one_operation():
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.second = torch.jit.trace(nn.Sequential(nn.Conv2d(5, 5, 3), nn.Tanh()), torch.zeros(2, 5, SIDE, SIDE))

    network = cut(Holds())
    assert network.way == "graph"
    assert_halves_give(network, network.module)
