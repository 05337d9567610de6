"""Networks of which one does, when a file says so, what a network should not: code of a job of tests of faults."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn


def _act(word):
    if word == "raise":
        raise ValueError("this network cannot be run")
    if word == "memory":
        raise MemoryError("no room")
    if word == "cuda":
        raise RuntimeError("CUDA error: device-side assert triggered")
    if word == "hang":
        time.sleep(100_000)
    if word == "hog":  # all the memory there is, slowly enough to be seen
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20)) * 256)
            time.sleep(0.2)
    if word == "exit":
        os._exit(3)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)


def mine(x):
    """Pass a tensor on, unless a file says what is to happen: once ("once-WORD"), or for ever (WORD).

    "train-WORD" is for ever, but only when a gradient comes back, as while maps are trained through the network.
    """
    order = Path(os.environ.get("STITCHGRID_TEST_ORDER", "/nonexistent"))
    if order.exists():
        word = order.read_text()
        if word.startswith("once-"):
            try:
                order.rename(order.with_suffix(".done"))
            except FileNotFoundError:
                return x
        if not word.startswith("train-"):
            _act(word.removeprefix("once-"))
        elif x.requires_grad:
            x.register_hook(lambda _: _act(word.removeprefix("train-")))
    return x


torch.fx.wrap("mine")


class Net(nn.Module):
    def __init__(self, width=16, depth=4, mined=False):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)
        )
        self.mined = mined
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.mined:
            x = mine(x)
        return self.head(x.mean((2, 3)))


def net(**args):
    return Net(**args)
