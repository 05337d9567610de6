"""What users' own code does wrong is one clear line, and what it does to the process is undone."""

import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_models import spec
from torch import nn

from stitchgrid.errors import InputError, JobFileError
from stitchgrid.models.build import build_network, make_network
from stitchgrid.models.versions import library_versions
from stitchgrid.models.weights import state_digest

MADE = """
import functools, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(x)

class Odd(BaseException):
    def __str__(self):
        raise ValueError

def plain(): return Net()
def compiled(): return torch.compile(Net())
def compiled_itself():
    net = Net()
    net.compile()
    return net
def parallel(): return nn.DataParallel(torch.compile(Net()))
def averaged(): return torch.optim.swa_utils.AveragedModel(nn.DataParallel(Net()))
def scripted(): return torch.jit.script(Net())
def traced(): return torch.jit.trace(Net(), torch.zeros(1, 2))
def kind(): return Net
def function(): return plain
def later(): return functools.partial(Net)
def nothing(): Net()
def state(): return Net().state_dict()
def pair(): return Net(), "a name"
def number(): return 3
def leaves(): raise SystemExit("usage: net.py")
def asserts():
    assert 1 == 2, "first\\nsecond\\n" + "x" * 1000
def odd(): raise Odd
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "net.py").write_text(MADE)
    return tmp_path


@pytest.mark.parametrize("name", ["compiled", "compiled_itself", "parallel", "averaged"])
def test_a_network_is_taken_out_of_what_it_is_wrapped_in(own, name):
    wrapped, plain = (build_network(spec(f"net.py:{one}", base=own)) for one in (name, "plain"))
    assert type(wrapped).__name__ == "Net"
    assert list(wrapped.state_dict()) == ["fc.weight", "fc.bias"]
    assert state_digest(wrapped) == state_digest(plain)
    assert wrapped._compiled_call_impl is None
    assert torch.equal(wrapped(torch.ones(1, 2)), plain(torch.ones(1, 2)))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("scripted", InputError, "torch.jit has compiled .RecursiveScriptModule.*return the network as it was before"),
        ("traced", InputError, "torch.jit has compiled .TopLevelTracedModule.*return the network as it was before"),
        ("kind", InputError, r"returned the class Net, not an instance of it: write Net\(\); wanted a torch.nn.Module"),
        ("function", InputError, r"returned a function \(plain\), not what it returns; wanted"),
        ("later", InputError, r"returned a function \(partial\), not what it returns; wanted"),
        ("nothing", InputError, r"returned nothing \(None\): a `return` is missing"),
        ("state", InputError, "returned a OrderedDict, such as a state dict is, not the network it belongs to"),
        ("pair", InputError, r"returned a tuple of 2 \(Net, str\); wanted a torch.nn.Module"),
        ("number", InputError, "returned a int; wanted a torch.nn.Module"),
        ("leaves", JobFileError, r"net.py:leaves with args \{\} failed: SystemExit: usage: net.py \(net.py, line 34\)"),
        ("asserts", JobFileError, r"net.py:asserts with args \{\} failed: AssertionError: first second x+\.\.\. \(net"),
        ("odd", JobFileError, r"net.py:odd with args \{\} failed: Odd \(net.py, line 37\)"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(own, name, error, message):
    with pytest.raises(error, match=message) as caught:
        build_network(spec(f"net.py:{name}", base=own))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


RUDE = """
import os, random, sys, warnings
import numpy as np, torch
from torch import nn

def behave_badly():
    print("hello from", __name__)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(3); random.seed(3); np.random.seed(3)
    warnings.simplefilter("error")
    os.chdir("/")

if IMPORTED:
    behave_badly()

def make():
    if not IMPORTED:
        behave_badly()
    return nn.Linear(2, 2)

def on_meta():
    torch.set_default_device("meta")
    return nn.Linear(2, 2, device="cpu")
"""


def settings():
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        list(warnings.filters),
        Path.cwd(),
        list(sys.path),
    ]


@pytest.mark.parametrize("imported", [True, False], ids=["import", "construction"])
def test_what_own_code_does_to_the_process_is_undone(tmp_path, capsys, imported):
    torch.set_num_threads(2)
    (tmp_path / "net.py").write_text(f"IMPORTED = {imported}\n{RUDE}")
    before = settings()
    made = make_network(spec("net.py:make", base=tmp_path))
    assert settings() == before
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "hello from net" in printed.err
    assert made.weight.dtype == torch.float64  # what the code asks for holds for its own networks, every time
    assert make_network(spec("net.py:make", base=tmp_path)).weight.dtype == torch.float64
    assert make_network(spec("stitchgrid:tiny10")).state_dict()["conv1.weight"].dtype == torch.float32
    make_network(spec("net.py:on_meta", base=tmp_path))
    assert settings() == before


def test_draws_of_every_generator_follow_the_seed(tmp_path):
    source = (
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\nFIXED = torch.randn(2)\ndef make():\n"
    )
    source += (
        "    made = nn.Linear(2, 2)\n    made.bias.data = torch.tensor([random.random(), np.random.rand()]) + FIXED\n"
    )
    (tmp_path / "net.py").write_text(source + "    return made\n")
    digests = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)
        np.random.rand(3)
        digests.append(state_digest(make_network(spec("net.py:make", base=tmp_path, seed=seed))))
    assert digests[0] == digests[1] != digests[2]


def test_the_versions_of_what_a_network_needs_are_told(tmp_path):
    (tmp_path / "net.py").write_text("import json, PIL.Image\nfrom blocks import x\n")
    (tmp_path / "blocks.py").write_text("def late():\n    import scipy.stats\n    import no_such_module_of_a_test\n")
    always = {name: version(name) for name in ("torch", "torchvision")}
    assert library_versions(spec("stitchgrid:tiny10")) == library_versions(spec("torchvision:resnet18")) == always
    assert library_versions(spec("timm:vit_tiny_patch16_224")) == always | {"timm": version("timm")}
    found = library_versions(spec("net.py:make", base=tmp_path))
    assert found == always | {"pillow": version("pillow"), "scipy": version("scipy")}
    assert library_versions(spec("timm.models.vgg:vgg11")) == always | {"timm": version("timm")}


def test_nothing_of_a_failed_construction_stays(own):
    assert isinstance(make_network(spec("net.py:plain", base=own)), nn.Module)
    before = settings()
    with pytest.raises(JobFileError, match="SystemExit"):
        make_network(spec("net.py:leaves", base=own))
    assert settings() == before
