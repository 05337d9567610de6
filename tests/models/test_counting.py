"""Operations are counted as torch counts them."""

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stitchgrid.models import counting
from stitchgrid.models.counting import FlopCounter


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.cell(x.flatten(1).unflatten(1, (-1, 8)))[0][:, -1])


@pytest.mark.parametrize(
    "make",
    [
        torchvision.models.mobilenet_v3_small,
        lambda: torchvision.models.vit_b_32(image_size=32),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 7), nn.GELU()),
        Recurrent,
    ],
    ids=["convolutions", "attention", "linear", "recurrent"],
)
def test_operations_are_those_that_torch_counts(make, monkeypatch):
    network, x = make().eval(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(counting.sys, "modules", {})  # as where the compiler is not loaded
    came = FlopCounter()
    monkeypatch.undo()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with came:
            one = network(x)
        with FlopCounterMode(display=False) as wanted:
            other = network(x)
    assert came.total == wanted.get_total_flops() > 0
    assert torch.equal(one, other)


def test_the_compiler_is_not_loaded_to_count_and_what_calls_it_is_counted():
    code = """
import sys
import torch
from stitchgrid.models.counting import FlopCounter

def choose(x):
    return torch.cond(x.sum() > 0, lambda a: a @ a.T, lambda a: (a + 1) @ a.T, (x,))

x = torch.ones(4, 8)
with torch.no_grad():
    with FlopCounter() as counter:
        x @ x.T
    print(counter.total, "torch._dynamo" in sys.modules)
    choose(x)
    with FlopCounter() as counter:
        choose(x)
    print(counter.total)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["256.0", "False", "256.0"]
