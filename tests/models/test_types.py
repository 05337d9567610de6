"""Networks whose weights are half, bfloat16 or double: measured in the job's precision, known by what was loaded."""

import pytest
import torch
from helpers_engine import one_thread  # noqa: F401  # a fixture
from helpers_flow import run
from helpers_models import noise, spec, stirred
from torch import nn

from stitchgrid.catalog import Catalog
from stitchgrid.models.cut_network import cut_network, types_notice
from stitchgrid.models.weights import state_digest
from stitchgrid.records import Interface
from stitchgrid.store import Store

HALVES = (torch.float16, torch.bfloat16)
NETS = '''
import torch
from torch import nn

class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, branches=False):
        super().__init__()
        self.conv, self.second, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3), nn.Linear(5, 10)
        self.register_buffer("scale", torch.full((5, 1, 1), 1.1))
        self.branches = branches

    def forward(self, x):
        if self.branches and x.sum() > 1e9:
            return x
        x = torch.relu(self.second(torch.relu(self.conv(x)) * self.scale))
        return self.head(x.mean((2, 3)))

class Inside(Net):
    """Computes in the type of its weights, which takes and gives float32."""

    def forward(self, x):
        return super().forward(x.to(torch.DTYPE)).float()

class Outside(Net):
    """Needs images of the type of its weights, and asks for it."""

    def forward(self, x):
        assert x.dtype == self.conv.weight.dtype == torch.DTYPE
        return super().forward(x)

def plain(**args):
    return Net(**args)

def low(kind="Net", **args):
    return {"Net": Net, "Inside": Inside, "Outside": Outside}[kind](**args).to(torch.DTYPE)
'''


def nets(dtype):
    """Return the classes above for a type."""
    home = {"__name__": "nets"}
    exec(NETS.replace("DTYPE", str(dtype).removeprefix("torch.")), home)
    return home


def assert_contract(network, *, close):
    """Images, activations, scores and gradients are float32, whatever is inside."""
    for num in (1, 3):
        x = noise(num, 3, 6, 6)
        whole = network.whole(x)
        activations = network.taps([c.node for c in network.cuts])(x)
        for c, a in zip(network.cuts, activations, strict=True):
            scores = network.suffix(c.node)(a)
            assert {a.dtype, scores.dtype, whole.dtype} == {torch.float32}, c.name
            torch.testing.assert_close(scores, whole, **close)
            (gradient,) = torch.autograd.grad(network.suffix(c.node)(a.requires_grad_()).square().sum(), a)
            assert gradient.dtype == torch.float32
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0


EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "hooks"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_weights_of_other_types_are_run_in_float32(dtype, branches):
    module = stirred(nets(dtype)["low"](branches=branches))
    digest, alone = state_digest(module), nets(dtype)["plain"]()
    alone.load_state_dict({name: value.float() for name, value in module.state_dict().items()})
    network = cut_network(module, (3, 6, 6))
    assert network.way == ("hooks" if branches else "graph")
    assert_contract(network, close=EXACT)
    x = noise(2, 3, 6, 6)
    assert torch.equal(network.whole(x), alone(x))
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert digest != state_digest(module)  # so it must have been taken before
    word = str(dtype).removeprefix("torch.")
    assert types_notice("net", network.types, "bf16") == f"net has {word} weights, run in bf16"


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "hooks"])
@pytest.mark.parametrize("kind", ["Inside", "Outside"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_network_that_needs_its_types_keeps_them_and_gives_float32(dtype, kind, branches):
    module = stirred(nets(dtype)["low"](kind=kind, branches=branches))
    network = cut_network(module, (3, 6, 6))
    assert_contract(network, close=EXACT)
    assert {value.dtype for value in module.state_dict().values()} == {dtype}
    x = noise(2, 3, 6, 6)
    own = type(module).__mro__[1 if kind == "Outside" else 0]
    assert torch.equal(network.whole(x), own.forward(module, x if kind == "Inside" else x.to(dtype)).float())
    assert "left as they are, activations are taken in fp32" in types_notice("net", network.types, "fp32")


def test_a_network_that_computes_in_double_inside_is_cut_in_float32():
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(torch.tanh(self.conv(x).double()).mean((2, 3)).float())

    network = cut_network(stirred(Double()), (3, 6, 6))
    assert network.types == ""
    assert_contract(network, close={"rtol": 1e-5, "atol": 1e-6})


def test_types_and_a_chosen_output_go_together():
    class Both(nets(torch.float16)["Outside"]):
        def forward(self, x):
            return {"logits": super().forward(x)}

    network = cut_network(stirred(Both().half()), (3, 6, 6), Interface(output="logits"))
    assert_contract(network, close=EXACT)


def test_whole_numbers_are_a_cut_that_cannot_be_stitched():
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table, self.head = nn.Conv2d(3, 4, 3), nn.Embedding(4, 5), nn.Linear(5, 10)

        def forward(self, x):
            codes = self.conv(x).argmax(1)
            return self.head(self.table(codes).mean((1, 2)))

    network = cut_network(stirred(Codes()), (3, 6, 6))
    assert {c.name: c.can_be_stitched for c in network.cuts}["argmax"] is False
    x = noise(2, 3, 6, 6)
    (codes,) = network.taps(["argmax"])(x)
    assert codes.dtype == torch.int64
    assert torch.equal(network.suffix("argmax")(codes), network.whole(x))


JOB = """
name = "types"
[data]
dataset = "digits"
fit = { split = "train", samples = 48 }
eval = { split = "test", samples = 32 }
[[models]]
name = "low"
architecture = "nets.py:low"
weights = "random"
[[models]]
name = "inside"
architecture = "nets.py:low"
args = { kind = "Inside" }
weights = "random"
[[matchers]]
kind = "direct"
[[matchers]]
kind = "task_loss"
epochs = 1
samples = 32
[[matchers]]
kind = "cka"
"""


def test_a_sweep_of_such_networks_has_all_its_cells_and_says_it_once(tmp_path):
    (tmp_path / "nets.py").write_text(NETS.replace("DTYPE", "bfloat16"))
    (tmp_path / "types.toml").write_text(JOB)
    where = tmp_path / "types.toml", "--store", tmp_path / "grid", "--address", "none"
    shown = run("launch", *where).stderr
    assert shown.count("low: it has bfloat16 weights, run in fp32") == 1
    assert shown.count("inside: it has bfloat16 weights that its forward needs") == 1
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        rows = catalog.query(
            "select source_model, metric, value from results where source_model = target_model and "
            "source_layer = target_layer and metric in ('residual', 'agreement', 'cka') and matcher <> 'task_loss'"
        ).to_pylist()
        (count,) = catalog.query("select count(*) as n from cells where status = 'done'").to_pylist()
    assert count["n"] == (2 * 2) ** 2 * 3
    assert {row["source_model"] for row in rows} == {"low", "inside"}
    for row in rows:
        assert row["value"] == pytest.approx(0 if row["metric"] == "residual" else 1, abs=1e-6), row
    assert spec("nets.py:low").interface == Interface()
