"""The proof of a network against a check by brute force, image by image, and what it says of those that fail."""

from contextlib import nullcontext

import pytest
import torch
from helpers_engine import one_thread  # noqa: F401  # a fixture
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.errors import InputError
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.proof import Findings, Proof, Sample, relative_error, tolerance_for
from stitchgrid.models.select import select_layers

SIZE = 12
NUM = 48


def images(seed: int = 0, num: int = NUM) -> Tensor:
    """Return images of different brightness, as a normalised data set has them."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(-1.5, 1.5, num)[torch.randperm(num, generator=generator)]
    return level[:, None, None, None] + torch.randn(num, 3, SIZE, SIZE, generator=generator)


def prove(module: nn.Module, *, seen: Tensor | None = None, layers: str = "all", batch: int = NUM) -> Findings:
    """Return what the proof says of a network on these images."""
    seen = images() if seen is None else seen
    network = cut_network(module, (3, SIZE, SIZE))
    nodes = {cut.node: cut.name for cut in select_layers(network, [layers])}
    proof = Proof(network, nodes, precision=nullcontext, tolerance=tolerance_for(network, "fp32"))
    order = seen.mean((1, 2, 3)).argsort()
    ordinary, extreme = torch.cat([seen[:4], seen[-4:]]), seen[torch.cat([order[:4], order[-4:]])]
    with torch.no_grad():
        scores = torch.cat([network.whole(part) for part in torch.split(seen, batch)])
    places = torch.cat([torch.arange(4), torch.arange(len(seen) - 4, len(seen)), order[:4], order[-4:]])
    sample = Sample(
        ordinary=ordinary,
        extreme=extreme,
        batch=lambda: seen[:batch],
        more=lambda: seen,
        in_full=lambda: (scores[places], scores),
    )
    return proof.run(sample)


class Norm(nn.Module):
    """Normalises by the batch at hand, without being a BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, training=True)


class Centre(nn.Module):
    """Takes the mean of the batch off."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True)


class Brightest(nn.Module):
    """Scales all images by the brightest of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs().amax())


class Switch(nn.Module):
    """Goes one of two ways, by whether any image of the batch is bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if bool(x.amax() > 1.15) else x


class Capacity(nn.Module):
    """Serves the first 24 images of a batch, as an expert of limited capacity does."""

    def forward(self, x: Tensor) -> Tensor:
        served = torch.cumsum(torch.ones_like(x[:, :1, :1, :1]), 0) <= 24
        return x * served


class PerImage(nn.Module):
    """Looks like batch statistics and is none: each image by its own."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / (1e-3 + x.std((1, 2, 3), keepdim=True))


class Quantised(nn.Module):
    """Decides hard, each image by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4


DEPENDENT = {
    "BatchNorm2d": lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    "Norm": lambda width: Norm(),
    "Centre": lambda width: Centre(),
    "Brightest": lambda width: Brightest(),
    "Switch": lambda width: Switch(),
    "Capacity": lambda width: Capacity(),
}
INDEPENDENT = {
    "BatchNorm2d": nn.BatchNorm2d,
    "GroupNorm": lambda width: nn.GroupNorm(2, width),
    "InstanceNorm2d": nn.InstanceNorm2d,
    "ReLU": lambda width: nn.ReLU(inplace=True),
    "PerImage": lambda width: PerImage(),
    "Quantised": lambda width: Quantised(),
    "Dropout": lambda width: nn.Dropout(0.5),
}
HEADS = {
    "logits": lambda x: x,
    "softmax": lambda x: x.softmax(1),
    "over the batch": lambda x: x.softmax(0),
    "normalised": lambda x: functional.normalize(x, dim=1),
    "normalised over the batch": lambda x: functional.normalize(x, dim=0),
}


class Drawn(nn.Module):
    """A network of random parts."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(names: list[str]) -> str:
            return names[int(torch.randint(len(names), (), generator=generator))]

        width = 4
        parts: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(3):
            kinds = DEPENDENT if torch.rand((), generator=generator) < 0.15 else INDEPENDENT
            parts += [kinds[draw(list(kinds))](width), nn.Conv2d(width, width, 3, padding=1)]
        self.parts, self.fc = nn.Sequential(*parts), nn.Linear(width, 5)
        self.head = draw(list(HEADS) if torch.rand((), generator=generator) < 0.3 else ["logits", "softmax"])
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=generator) * (0.5 if value.dim() > 1 else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return HEADS[self.head](self.fc(self.parts(x).mean((2, 3))))


def depends_by_brute_force(module: nn.Module, seen: Tensor) -> float:
    """Return by how much an image's scores differ alone from what they are in a batch, at most; float64."""
    module = module.double().eval()
    with torch.no_grad():
        together = module(seen.double())
        alone = torch.cat([module(seen[k : k + 1].double()) for k in range(len(seen))])
        halves = torch.cat([module(seen[::2].double()), module(seen[1::2].double())])
        again = torch.cat([together[::2], together[1::2]])
    return max(float(relative_error(together, alone).max()), float(relative_error(again, halves).max()))


@pytest.mark.parametrize("seed", range(40))
def test_the_proof_says_of_random_networks_what_brute_force_says(seed):
    depends = depends_by_brute_force(Drawn(seed), images())
    findings = prove(Drawn(seed))
    if depends > 1e-2:
        assert findings.problems, f"differs by {depends:.2g}"
        assert "other images of its batch" in findings.problems[0] or "cut up" in findings.problems[0]
    elif depends < 1e-9:
        assert not findings.problems


def test_random_networks_are_of_both_kinds():
    by_force = [depends_by_brute_force(Drawn(seed), images()) for seed in range(40)]
    assert sum(one > 1e-2 for one in by_force) >= 10
    assert sum(one < 1e-9 for one in by_force) >= 10


def after(part: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), part)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_network_that_looks_at_its_batch_is_refused_with_the_first_cut_and_the_module_at_fault(name):
    [problem] = prove(after(DEPENDENT[name](4))).problems
    assert "an image's activations depend on the other images of its batch, from " in problem
    if name != "Switch":  # which is cut by hooks, where its halves fit
        assert "from 2.1 on (" in problem
    assert f"2.1 ({name})" in problem


def test_batch_norm_without_statistics_is_named_as_the_cause():
    [problem] = prove(after(nn.BatchNorm2d(4, track_running_stats=False))).problems
    assert "2.1 (BatchNorm2d) normalises by the batch at hand: it is a BatchNorm without running statistics" in problem


def test_batch_norm_without_statistics_that_fails_on_one_image_is_named_as_the_cause():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.append(nn.BatchNorm1d(5, track_running_stats=False)).append(nn.Linear(5, 5))
    [problem] = prove(module, layers="0").problems
    assert "it fails on a batch of one image (ValueError: Expected more than 1 value per channel" in problem
    assert "the likely cause is 3, which normalises by the batch at hand: a BatchNorm without running stat" in problem


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_network_that_looks_at_each_image_alone_is_not_refused(name):
    assert not prove(after(INDEPENDENT[name](4))).problems


def test_a_limited_capacity_that_only_a_full_batch_exceeds_is_found():
    seen = images(num=64)
    assert "other images of its batch" in prove(after(Capacity()), seen=seen, batch=64).problems[0]
    assert not prove(after(Capacity()), seen=images(num=16), batch=16).problems


class Loses(nn.Module):
    """Loses the axis of a single image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).squeeze()


def test_a_network_that_loses_the_axis_of_one_image_is_refused():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), Loses())
    [problem] = prove(module, layers="0").problems
    assert "from a batch of one image it makes a tensor of (5,) at the scores" in problem
    assert "squeeze() takes away an axis of one" in problem


class Noisy(nn.Module):
    """Random in eval mode, but hardly on noise."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.rand_like(x) * (x > 1.0)


class Keeps(nn.Module):
    """Counts its calls, and what it computes depends on them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


@pytest.mark.parametrize("kind", [Noisy, Keeps])
def test_a_network_that_gives_something_else_the_second_time_is_refused(kind):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), kind(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    try:
        [problem] = prove(module).problems
    except InputError as refused:  # one that keeps something is found out where it is cut
        problem = str(refused)
        assert kind is Keeps
    assert "does not give the same twice, from 1 on" in problem or "not give the same scores" in problem


class Overflows(nn.Module):
    """Finite on noise, infinite where an image is bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(400 * x.clamp(min=0))


def test_infinite_activations_are_refused_with_the_first_cut():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), Overflows(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        module[0].weight.copy_(torch.ones_like(module[0].weight) / 27)
    [problem] = prove(module).problems
    assert "its activations at 1 are infinite or NaN on" in problem
    assert "look at its weights, and at the job's precision" in problem


class Bright(nn.Module):
    """Does something else where an image is bright: with these images always, with noise in [0, 1] never."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        bright = bool(x.amax() > 1.5)
        x = self.c2(torch.relu(self.c1(x)))
        if bright:
            x = 3 * x + torch.linspace(-3, 3, 8)[:, None, None]
        return self.fc(torch.relu(x).mean((2, 3)) * 5)


def test_halves_that_do_not_make_the_whole_are_refused():
    torch.manual_seed(0)
    [problem] = prove(Bright(), seen=images() + 3).problems
    assert "its two halves at c1 do not give the scores of the whole network on these images" in problem


class Codes(nn.Module):
    """Rounds to codes, in batches otherwise than alone by as much as kernels round otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * (1 + 2e-8 * x.shape[0]))


class Replaced(nn.Module):
    """Puts the mean of the batch in the place of its brightest image: an effect on few images, but no rounding."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3))
        is_brightest = ((bright == bright.amax()) & (bright > 1.4))[:, None, None, None]
        return torch.where(is_brightest, x.mean(0, keepdim=True), x)


def after_part(part: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(part, nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_few_images_that_rounding_tips_over_are_forgiven_and_said():
    seen = images(num=100)
    seen = torch.where((seen % 1 - 0.5).abs() < 1e-4, seen + 1e-3, seen)  # no other image is on an edge
    seen[0, 0, 0, 0] = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
    findings = prove(after_part(Codes()), seen=seen, batch=100)
    assert not findings.problems
    assert "1 of 100 images differ alone from what they are in a batch" in findings.remarks[0]


def test_an_effect_of_the_batch_on_few_images_is_no_rounding():
    [problem] = prove(after_part(Replaced()), seen=images(num=100), batch=100).problems
    assert "an image's activations depend on the other images of its batch" in problem


def test_relative_error_is_that_of_each_image_whatever_the_scale():
    one = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    other = one + torch.tensor([[0.0, 1e-3], [0.0, 0.0]], dtype=torch.float64)
    for scale in (1e-200, 1.0, 1e200):
        error = relative_error(scale * one, scale * other)
        assert error.tolist() == pytest.approx([1e-3 / 1.5, 0.0], rel=1e-6), "a typical image has size 1.5"
