"""Networks as workers load them, and where in memory their weights lie."""

from collections.abc import Iterable
from pathlib import Path
from time import sleep

import torch
from helpers_models import spec

from stitchgrid.models.build import build_network
from stitchgrid.models.weights import save_state, state_digest
from stitchgrid.records import Network, Preprocess
from stitchgrid.resolve import load_network, network_id

OWN_NETWORK = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4, bias=False)
        self.by_class = self.head.weight.T  # a view, which no state dict names

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3)) @ self.by_class

def own(width=8):
    return Own(width)
"""


class OneArtefact:
    """A store of one trained network, which notes in a file how often it was read."""

    def __init__(self, content: bytes, notes: Path):
        self.content, self.notes = content, notes
        self.seconds = 0.0  # that reading takes

    def has_artefact(self, kind: str, key: str) -> bool:
        return True

    def read_artefact(self, kind: str, key: str) -> bytes:
        with self.notes.open("a") as file:
            file.write(f"{kind} {key}\n")
        sleep(self.seconds)
        return self.content

    @property
    def num_reads(self) -> int:
        return len(self.notes.read_text().splitlines()) if self.notes.exists() else 0


def record_of(asked, weights, *, artefact=None, size=32) -> Network:
    """Return a network as a sweep was planned with it."""
    return Network(
        spec=asked,
        network_id=network_id(asked, Preprocess(), weights),
        weights_digest=weights,
        preprocess=Preprocess(),
        layers=(),
        num_cuts=1,
        num_classes=4,
        num_parameters=1,
        input_shape=(3, size, size),
        flops=1.0,
        num_kept_bytes=1_000,
        artefact=artefact,
    )


def stored(folder: Path, **args) -> tuple[Network, OneArtefact]:
    """Return a network of one's own that a sweep trained, and the store of its weights."""
    (folder / "own.py").write_text(OWN_NETWORK)
    trained = build_network(spec("own.py:own", base=folder, seed=5, **args))
    store = OneArtefact(save_state(trained), folder / "reads")
    return record_of(spec("own.py:own", base=folder, **args), state_digest(trained), artefact="key"), store


def load(network: Network, store=None, *, cache=None, device="cpu"):
    return load_network(network, store, device=torch.device(device), cache=cache)


def mappings(path: Path) -> list[tuple[range, dict[str, int]]]:
    """Return where a file lies in this process's memory, with the kernel's counts of kB."""
    found, is_of_path = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if first.endswith(":"):
            if is_of_path and rest[-1] == "kB":
                found[-1][1][first[:-1]] = int(rest[0])
        elif is_of_path := line.endswith(str(path)):
            begin, end = (int(address, 16) for address in first.split("-"))
            found.append((range(begin, end), {}))
    return found


def private_bytes() -> int:
    """Return how much memory this process has that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def lie_in(values: Iterable[torch.Tensor], path: Path) -> list[bool]:
    """Return whether the memory of each tensor is pages of a file."""
    found = mappings(path)
    return [any(value.data_ptr() in addresses for addresses, _ in found) for value in values]


def hold_with_others(network, store, cache, barrier) -> tuple[dict[str, int], bytes]:
    """Load a network, and return the kernel's counts of its file, and scores, while all other processes hold it too."""
    torch.set_num_threads(1)
    barrier.wait()
    cut = load(network, store, cache=cache)
    with torch.no_grad():
        scores = cut.module(torch.ones(2, *network.input_shape))
    barrier.wait()
    [(_, counts)] = mappings(cache / "weights" / network.weights_digest)
    barrier.wait()
    return counts, scores.numpy().tobytes()
