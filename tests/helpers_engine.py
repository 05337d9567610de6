"""Small trained networks, images and a sweep made by hand, and everything the engine measures computed the slow way.

Networks are chains of stages, so that the oracle cuts them by counting stages, without any of the package's own code.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.engine.workspace import Workspace
from stitchgrid.matchers.catalogue import MATCHERS
from stitchgrid.models.cuts import CutNetwork, cut_network
from stitchgrid.records import (
    Block,
    DataSpec,
    Layer,
    MatcherSpec,
    Network,
    NetworkSpec,
    Preprocess,
    Shard,
    Sweep,
    canonical,
)

SIDE, NUM_CLASSES = 12, 4
MEAN = (0.5, 0.4, 0.45)


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


MAKE = {"conv": conv_net, "conv-again": conv_net, "view": view_net, "token": token_net}
SEEDS = {"conv": 0, "conv-again": 1, "view": 2, "token": 3}


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
    """Networks as the oracle sees them (stages) and as the engine does (cut)."""

    staged: dict[str, Staged]
    cut: dict[str, CutNetwork]

    @classmethod
    def make(cls, names: Sequence[str]) -> "Zoo":
        staged = {name: trained(name) for name in names}
        return cls(
            staged=staged, cut={name: cut_network(deepcopy(net), (3, SIDE, SIDE)) for name, net in staged.items()}
        )

    def layers(self, name: str) -> tuple[Layer, ...]:
        """Return the layers that the stages end in."""
        cut, net = self.cut[name], self.staged[name]
        made = {call.path: call.output for call in cut.calls}
        position = {cut.trace.nodes[c.position]: c.layer for c in cut.cuts}
        return tuple(position[made[f"stages.{k}"]] for k in range(len(net.stages)))


def network_record(zoo: Zoo, name: str, layers: Sequence[int] | None = None) -> Network:
    every = zoo.layers(name)
    return Network(
        spec=NetworkSpec(name=name, entry=name, architecture="tests:staged"),
        network_id=f"id of {name}",
        weights_digest=f"weights of {name}",
        preprocess=Preprocess(mean=MEAN),
        layers=every if layers is None else tuple(every[k] for k in layers),
        num_cuts=len(every),
        num_classes=NUM_CLASSES,
        num_parameters=1,
        input_shape=(3, SIDE, SIDE),
        flops=1.0,
    )


def matcher(kind: str, *, seed: int | None = None, samples: int | None = None, **params: object) -> MatcherSpec:
    return MatcherSpec(
        kind=kind,
        revision=1,
        params=canonical(MATCHERS[kind].params(**params).model_dump()),
        seed=0 if seed is None and MATCHERS[kind].trained else seed,
        samples=samples,
        metrics=tuple(MATCHERS[kind].metrics),
    )


def make_sweep(
    zoo: Zoo,
    pairs: Sequence[tuple[str, str]],
    matchers: Sequence[MatcherSpec],
    *,
    num_fit_closed: int = 60,
    batch_size: int = 32,
) -> Sweep:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return Sweep(
        name="by-hand",
        seed=0,
        data=DataSpec(dataset="fake"),
        networks=tuple(network_record(zoo, name) for name in names),
        pairs=tuple((names.index(f), names.index(g)) for f, g in pairs),
        matchers=tuple(matchers),
        precision="fp32",
        batch_size=batch_size,
        eval_data="eval",
        fit_data="fit",
        need_fit=None,
        num_fit=IMAGES.fit.num,
        num_eval=IMAGES.eval.num,
        num_fit_closed=num_fit_closed,
        matcher_data=tuple("data" for _ in matchers),
    )


def workspace(zoo: Zoo, sweep: Sweep, images: FakeImages = IMAGES) -> Workspace:
    return Workspace(
        sweep=sweep,
        images=images,  # type: ignore[arg-type]
        network=lambda position: zoo.cut[sweep.networks[position].name],
        device=torch.device("cpu"),
    )


def whole_shard(sweep: Sweep) -> Shard:
    blocks = [
        Block(source=f, target=g, target_layers=tuple(range(len(sweep.networks[g].layers)))) for f, g in sweep.pairs
    ]
    shard = Shard(unit_id="u", blocks=tuple(blocks), matchers=tuple(range(len(sweep.matchers))), flops=1.0, num_cells=0)
    return replace(shard, num_cells=len(list(sweep.cells(shard))))


# The slow way, in float64. Shape suffixes: N images, R rows, D features of the source, E of the target.


def prefix_run(net: Staged, last: int, pixels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    x = preprocessed(pixels, dtype)
    for stage in deepcopy(net).to(dtype).stages[: last + 1]:
        x = stage(x)
    return x


def suffix_run(net: Staged, after: int, x: Tensor) -> Tensor:
    for stage in deepcopy(net).to(x.dtype).stages[after + 1 :]:
        x = stage(x)
    return x


def laid(a: Tensor, b: Tensor) -> Tensor:
    """Return A resized to B's positions, in the shape of B with A's features; here sequences have one class token."""
    if b.dim() == 2:
        return pool(a)
    size = b.shape[2:] if b.dim() == 4 else (3, 3)
    grid = a[:, :, None, None] if a.dim() == 2 else a
    if a.dim() == 3:
        grid = a[:, 1:].transpose(1, 2).reshape(len(a), -1, 3, 3)
    if grid.shape[2:] != size:
        grid = functional.interpolate(grid, size=tuple(size), mode="bilinear", align_corners=False)
    if b.dim() == 4:
        return grid
    class_token = a[:, :1] if a.dim() == 3 else pool(a)[:, None]
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)


def pool(a: Tensor) -> Tensor:
    if a.dim() == 4:
        return a.mean((2, 3))
    return a[:, 1:].mean(1) if a.dim() == 3 else a


def as_rows(a: Tensor) -> np.ndarray:
    moved = a.permute(0, 2, 3, 1) if a.dim() == 4 else a
    return moved.reshape(-1, moved.shape[-1]).numpy()


def apply_map(a: Tensor, weight_DE: Tensor, bias_E: Tensor) -> Tensor:
    if a.dim() == 4:
        return functional.conv2d(a, weight_DE.T[:, :, None, None], bias_E)
    return functional.linear(a, weight_DE.T, bias_E)


def least_squares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    rows = as_rows(laid(a, b))
    solution = torch.from_numpy(np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), as_rows(b), rcond=1e-6)[0])
    return solution[:-1], solution[-1]


def stitched_metrics(
    zoo: Zoo, source: str, i: int, target: str, j: int, weight_DE: Tensor, bias_E: Tensor, *, num_fit: int
) -> dict[str, float]:
    """Return every metric of METHOD 2 of one stitched network, run whole, in float64 and in one batch."""
    f, g, images = zoo.staged[source], zoo.staged[target], IMAGES
    labels = images.eval.labels
    a, b = prefix_run(f, i, images.eval.pixels), prefix_run(g, j, images.eval.pixels)
    t = apply_map(laid(a, b), weight_DE, bias_E)
    h_logits, g_logits = suffix_run(g, j, t), suffix_run(g, j, b)
    accuracy = (h_logits.argmax(1) == labels).double().mean().item()
    target_accuracy = (g_logits.argmax(1) == labels).double().mean().item()
    rows_t, rows_b, pooled_t, pooled_b = as_rows(t), as_rows(b), pool(t).numpy(), pool(b).numpy()
    error = np.sum((rows_t - rows_b) ** 2)
    lowest = min(b.min(), prefix_run(g, j, images.fit.pixels[:num_fit]).min())
    covariance = lambda rows: np.atleast_2d(np.cov(rows, rowvar=False))  # noqa: E731
    return {
        "accuracy": accuracy,
        "loss": -torch.log_softmax(h_logits, 1)[torch.arange(len(labels)), labels].mean().item(),
        "relative_accuracy": accuracy / target_accuracy,
        "penalty": (1 - accuracy) - (1 - target_accuracy),
        "agreement": (h_logits.argmax(1) == g_logits.argmax(1)).double().mean().item(),
        "residual": error / np.sum(rows_b**2),
        "r2": 1 - error / np.sum((rows_b - rows_b.mean(0)) ** 2),
        "variance_ratio": np.trace(covariance(pooled_t)) / np.trace(covariance(pooled_b)),
        "negative_mass": np.abs(np.minimum(rows_t, 0)).sum() / np.abs(rows_t).sum() if lowest >= 0 else float("nan"),
    }


def index_sides(zoo: Zoo, source: str, i: int, target: str, j: int, *, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the explicit matrices that CCA and Procrustes compare."""
    pixels = IMAGES.eval.pixels[:num]
    a, b = prefix_run(zoo.staged[source], i, pixels), prefix_run(zoo.staged[target], j, pixels)
    same = a.dim() == b.dim() and (a.shape[2:] == b.shape[2:] if a.dim() == 4 else a.shape[1:2] == b.shape[1:2])
    if a.dim() > 2 and same:
        return as_rows(a), as_rows(b)
    return pool(a).numpy(), pool(b).numpy()


def flattened_sides(zoo: Zoo, source: str, i: int, target: str, j: int, *, num: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = IMAGES.eval.pixels[:num]
    sides = prefix_run(zoo.staged[source], i, pixels), prefix_run(zoo.staged[target], j, pixels)
    return sides[0].flatten(1).numpy(), sides[1].flatten(1).numpy()


def task_loss_alone(
    zoo: Zoo,
    source: str,
    i: int,
    target: str,
    j: int,
    initial: nn.Linear,
    batches: Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
) -> nn.Linear:
    """Return the map trained by itself through the whole stitched network, the plain way, in float32."""
    f, g, images = zoo.staged[source], zoo.staged[target], IMAGES
    module = deepcopy(initial)
    adam = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
    for chosen in batches:
        with torch.no_grad():
            a = prefix_run(f, i, images.fit.pixels[chosen], torch.float32)
            b = prefix_run(g, j, images.fit.pixels[chosen], torch.float32)
        logits = suffix_run(g, j, apply_map(laid(a, b), module.weight.T, module.bias))
        loss = functional.cross_entropy(logits, images.fit.labels[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return module
