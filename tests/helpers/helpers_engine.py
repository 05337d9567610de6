"""Small trained networks, images and a sweep made by hand.

Networks are chains of stages, so that tests can cut them by counting stages, without the package's own code.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from math import isnan

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.registry import MATCHERS, default_metrics
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.memory import kept_bytes
from stitchgrid.records import (
    Cell,
    DataSpec,
    Layer,
    MatcherSpec,
    Network,
    NetworkSpec,
    Preprocess,
    Row,
    Shard,
    Sweep,
    canonical,
)
from stitchgrid.reference import Reference

SIDE, NUM_CLASSES = 12, 4
MEAN = (0.5, 0.4, 0.45)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products are slower on many threads, much slower on busy ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class ConvStage(nn.Module):
    def __init__(self, wide_in: int, wide_out: int, *, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(wide_out)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class MeanStage(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class ViewStage(nn.Module):
    """Flattens by `view`, which only contiguous maps allow."""

    def __init__(self, wide_in: int, wide_out: int):
        super().__init__()
        self.linear = nn.Linear(wide_in, wide_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.view(x.size(0), -1)))


class PatchStage(nn.Module):
    def __init__(self, width: int, class_token: nn.Parameter):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)


class AttentionStage(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=2)
        x = x + torch.softmax(q @ k.transpose(1, 2) / 3, dim=2) @ v
        return x + self.mlp(x)


class ClassTokenStage(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Staged(nn.Module):
    """A chain of stages; every one of them ends at a cut."""

    def __init__(self, stages: Sequence[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def conv_net() -> Staged:
    stages = [ConvStage(3, 6), ConvStage(6, 8, stride=2), ConvStage(8, 8), MeanStage(), nn.Linear(8, NUM_CLASSES)]
    return Staged(stages)


def view_net() -> Staged:
    return Staged([ConvStage(3, 5), ConvStage(5, 7, stride=3), ViewStage(7 * 16, 9), nn.Linear(9, NUM_CLASSES)])


def token_net() -> Staged:
    class_token = nn.Parameter(torch.zeros(1, 1, 10))
    net = Staged([PatchStage(10, class_token), AttentionStage(10), ClassTokenStage(), nn.Linear(10, NUM_CLASSES)])
    net.class_token, net.image_size, net.patch_size = class_token, SIDE, 4
    return net


MAKE = {"conv": conv_net, "conv_again": conv_net, "view": view_net, "token": token_net}
#: Layers of every kind: maps of two sizes, tokens, vectors, and what comes out at the end.
FEW = {"conv": (0, 2, 3), "conv_again": (0, 2, 4), "view": (1, 3), "token": (1, 2)}
SEEDS = {"conv": 0, "conv_again": 1, "view": 2, "token": 3}


class FakeSplit:
    """Noisy patterns, one a class, in drawn order."""

    def __init__(self, num: int, *, seed: int):
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.rand(NUM_CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        self.num = num
        self.labels = torch.randint(NUM_CLASSES, (num,), generator=generator)
        noise = torch.rand(num, 3, SIDE, SIDE, generator=generator)
        self.pixels = (255 * (0.22 * patterns[self.labels] + 0.78 * noise)).to(torch.uint8)

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


@dataclass(frozen=True)
class FakeImages:
    fit: FakeSplit
    eval: FakeSplit


IMAGES = FakeImages(fit=FakeSplit(160, seed=1), eval=FakeSplit(90, seed=2))


def preprocessed(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return pixels.to(dtype) / 255 - torch.tensor(MEAN, dtype=dtype)[:, None, None]


def trained(name: str, *, num_steps: int = 60) -> Staged:
    """Return a network that has learnt something, on images of its own."""
    own = FakeSplit(512, seed=100 + SEEDS[name])
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS[name])
        net = MAKE[name]()
        adam = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(num_steps):
            chosen = torch.randint(own.num, (64,))
            loss = functional.cross_entropy(net(preprocessed(own.pixels[chosen])), own.labels[chosen])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Zoo:
    """Networks as chains of stages, and as the engine sees them (cut)."""

    staged: dict[str, Staged]
    cut: dict[str, CutNetwork]

    @classmethod
    def of(cls, **staged: Staged) -> "Zoo":
        awake = {name: deepcopy(net).train().requires_grad_() for name, net in staged.items()}  # cutting freezes
        cut = {name: cut_network(net, (3, SIDE, SIDE)) for name, net in awake.items()}
        return cls(staged=staged, cut=cut)

    def layers(self, name: str) -> tuple[Layer, ...]:
        """Return the layers that the stages end in."""
        cut, net = self.cut[name], self.staged[name]
        made = {call.path: call.output for call in cut.operations.calls}
        position = {c.position: c.layer for c in cut.cuts}
        return tuple(position[made[f"stages.{k}"]] for k in range(len(net.stages)))


@cache
def trained_zoo() -> Zoo:
    """Return all the networks, trained once for all tests."""
    return Zoo.of(**{name: trained(name) for name in MAKE})


def network_record(zoo: Zoo, name: str, layers: Sequence[int] | None = None) -> Network:
    every = zoo.layers(name)
    return Network(
        spec=NetworkSpec(name=name, entry=name, architecture="tests:staged", weights="trained.pt"),
        network_id=f"id of {name}",
        weights_digest=f"weights of {name}",
        preprocess=Preprocess(mean=MEAN),
        layers=every if layers is None else tuple(every[k] for k in layers),
        num_cuts=len(every),
        num_classes=NUM_CLASSES,
        num_parameters=1,
        input_shape=(3, SIDE, SIDE),
        flops=every[-1].flops,
        num_kept_bytes=kept_bytes(zoo.cut[name].module, (3, SIDE, SIDE)),
    )


def matcher(
    kind: str,
    *,
    seed: int | None = None,
    samples: int | None = None,
    metrics: Iterable[str] | None = None,
    **params: object,
) -> MatcherSpec:
    return MatcherSpec(
        kind=kind,
        revision=1,
        params=canonical(MATCHERS[kind].params(**params).for_address()),
        seed=0 if seed is None and MATCHERS[kind].is_trained else seed,
        samples=samples,
        metrics=default_metrics(kind) if metrics is None else tuple(metrics),
    )


def ranked(spec: MatcherSpec, rank: int | None) -> MatcherSpec:
    return spec if rank is None else replace(spec, params=canonical(spec.values | {"rank": rank}))


def make_sweep(
    zoo: Zoo,
    pairs: Sequence[tuple[str, str]],
    matchers: Sequence[MatcherSpec],
    *,
    num_fit_closed: int = 60,
    batch_size: int = 32,
    precision: str = "fp32",
    images: FakeImages = IMAGES,
    layers: Mapping[str, Sequence[int]] | None = None,
) -> Sweep:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return Sweep(
        name="by-hand",
        seed=0,
        data=DataSpec(dataset="fake"),
        networks=tuple(network_record(zoo, name, (layers or {}).get(name)) for name in names),
        pairs=tuple((names.index(f), names.index(g)) for f, g in pairs),
        matchers=tuple(matchers),
        precision=precision,
        batch_size=batch_size,
        eval_data="eval",
        fit_data="fit",
        need_fit=None,
        num_fit=images.fit.num,
        num_eval=images.eval.num,
        num_fit_closed=num_fit_closed,
        matcher_data=tuple("data" for _ in matchers),
    )


def workspace(zoo: Zoo, sweep: Sweep, images: FakeImages = IMAGES) -> Workspace:
    return Workspace(
        sweep=sweep,
        images=images,
        network=lambda position: zoo.cut[sweep.networks[position].name],
        device=torch.device("cpu"),
    )


def whole_shard(sweep: Sweep) -> Shard:
    blocks = tuple(sweep.block(source, target) for source, target in sweep.pairs)
    shard = Shard(unit_id="u", blocks=blocks, matchers=tuple(range(len(sweep.matchers))), flops=1.0, num_cells=0)
    return replace(shard, num_cells=len(list(sweep.cells(shard))))


def run(zoo: Zoo, sweep: Sweep, *, images: FakeImages = IMAGES, wanted: Iterable[str] | None = None) -> list[Row]:
    """Return the rows of a whole sweep as one shard, or of the wanted cells of it."""
    shard = replace(whole_shard(sweep), wanted=None if wanted is None else frozenset(wanted))
    return run_shard(shard, workspace(zoo, sweep, images))


def every_cell(sweep: Sweep) -> dict[str, Cell]:
    return {cell.cell_id: cell for cell in sweep.cells(whole_shard(sweep))}


def by_cell(rows: Iterable[Row], kind: str | None = None) -> dict[str, dict[str | None, Row]]:
    """Return cell -> metric (None for an error) -> row."""
    found: dict[str, dict[str | None, Row]] = {}
    for row in rows:
        if kind in (None, row.matcher):
            found.setdefault(row.cell_id, {})[row.metric] = row
    return found


Values = dict[tuple[str, str | None], float | None]


def values(rows: Iterable[Row]) -> Values:
    return {(row.cell_id, row.metric): row.value for row in rows}


def close(came: float | None, wanted: float | None, *, floor: float = 1e-3, tolerance: float = 1e-5) -> bool:
    """Return whether two values agree as closed-form ones must; undefined agrees with undefined alone."""
    if came is None or wanted is None or isnan(wanted):
        return came is None and (wanted is None or isnan(wanted))
    return abs(came - wanted) <= tolerance * max(abs(wanted), floor)


def ratio(metric: str | None, value: float | None) -> float | None:
    """Return a value as rounding moves it in proportion: r2 is 1 less a ratio of sums of squares."""
    return 1 - value if metric == "r2" and value is not None else value


def assert_close(came: Values, wanted: Values) -> None:
    assert came
    assert came.keys() <= wanted.keys()
    different = {
        key: (value, wanted[key])
        for key, value in came.items()
        if not close(ratio(key[1], value), ratio(key[1], wanted[key]))
    }
    assert not different, different


def reference(zoo: Zoo, sweep: Sweep, images: FakeImages = IMAGES) -> Reference:
    work = workspace(zoo, sweep, images)
    return Reference(sweep, images, work.network, device=work.device)


def unlike_reference(
    sweep: Sweep, rows: Sequence[Row], found: Reference, *, wider: Mapping[str, float] | None = None
) -> dict[str, tuple[float | None, float]]:
    """Return where rows differ from the reference's values; cells of a layer pair share its activations."""
    pairs: dict[tuple[object, object], list[Cell]] = {}
    cells = every_cell(sweep)
    for cell in (cells[cell_id] for cell_id in by_cell(rows)):
        pairs.setdefault((cell.source_key, cell.target_key), []).append(cell)
    wanted = {cell_id: one for together in pairs.values() for cell_id, one in found.values(together).items()}
    return unlike(sweep, rows, lambda cell: wanted[cell.cell_id], wider=wider)


#: Ranks among the few images of these tests move by the rounding of float32 activations: seen, 3e-5 in proportion.
OF_RANKS = dict.fromkeys(("rsa", *OOD_METRICS["mahalanobis"], *OOD_METRICS["energy"]), 2e-4)
#: Sums of positive and negative terms, and the size of the terms: rounding moves the sum in proportion to it.
OF_TERMS = {"soft_matching": 0.3}


def unlike(
    sweep: Sweep,
    rows: Iterable[Row],
    wanted: Callable[[Cell], Mapping[str, float]],
    *,
    wider: Mapping[str, float] | None = None,
) -> dict[str, tuple[float | None, float]]:
    """Return where rows differ from the values wanted of their cells, by what they measured.

    They may by 1e-5, in proportion, and by more in metrics named with a tolerance of their own.
    """
    different = {}
    cells = every_cell(sweep)
    for cell_id, found in by_cell(rows).items():
        values_wanted = wanted(cells[cell_id])
        assert found.keys() == values_wanted.keys()
        for metric, row in found.items():
            came, value = ratio(metric, row.value), ratio(metric, values_wanted[metric or ""])
            tolerance = {**OF_RANKS, **(wider or {})}.get(metric or "", 1e-5)
            if not close(came, value, floor=OF_TERMS.get(metric or "", 1e-3), tolerance=tolerance):
                different[f"{row.matcher} {metric} {row.source_layer} {row.target_layer}"] = (came, value)
    return different
