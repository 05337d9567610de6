"""A small piece of a sweep, to measure its speed: some layers of a network pair, on a few images of noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from stitchgrid.planning import cost
from stitchgrid.records import Block, MatcherSpec, Network, Preprocess, Sweep, canonical

T = TypeVar("T")

Pair = tuple[int, int]  # positions of source and target in a sweep

FIRST_IMAGES = 8
EPOCHS = 2  # of trained matchers, at most
NOISE_IMAGES = 64  # different ones


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSample:
    """Some layers of a network pair, with all matchers of its sweep."""

    sweep: Sweep  # of one network, or of source and target
    block: Block

    def on(self, num_images: int) -> Sweep:
        """Return the sweep on `num_images` images of each split at most."""
        return replace(
            self.sweep,
            num_fit=min(num_images, self.sweep.num_fit),
            num_fit_closed=min(num_images, self.sweep.num_fit_closed),
            num_eval=min(num_images, self.sweep.num_eval),
        )

    def flops(self, num_images: int) -> float:
        """Return the cost of the sample on `num_images` images, in operations of a network."""
        return cost(self.on(num_images), [self.block], range(len(self.sweep.matchers)))

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return len(self.block.source_layers) * len(self.block.target_layers) * len(self.sweep.matchers)

    @property
    def most_images(self) -> int:
        """Number of images of the larger split; more images do not raise the sample's cost."""
        return max(self.sweep.num_fit, self.sweep.num_eval)


def shrink(sweep: Sweep, pair: Pair, *, max_flops: float) -> SweepSample:
    """Return a network pair with as many evenly spread layers as a first piece of at most `max_flops` allows.

    It has at least one target layer, and two source layers if the source has two.
    """
    num_source, num_target = (len(sweep.networks[position].layers) for position in pair)
    while True:
        sample = _sample(sweep, pair, num_source, num_target)
        if sample.flops(FIRST_IMAGES) <= max_flops or (num_source <= 2 and num_target == 1):
            return sample
        if num_target > 1 and (num_target >= num_source or num_source <= 2):
            num_target = (num_target + 1) // 2
        else:
            num_source = max(2, num_source // 2)


def _sample(sweep: Sweep, pair: Pair, num_source: int, num_target: int) -> SweepSample:
    source, target = (sweep.networks[position] for position in pair)
    size = target.input_shape[1:]
    if pair[0] == pair[1]:
        layers = spread(source.layers, max(num_source, num_target))
        networks = [replace(source, layers=tuple(layers))]
    else:
        networks = [replace(source, layers=tuple(spread(source.layers, num_source)))]
        networks.append(replace(target, layers=tuple(spread(target.layers, num_target))))
    last = len(networks) - 1
    targets = spread(range(len(networks[last].layers)), num_target)
    small = replace(
        sweep,
        networks=tuple(_on_noise(network, size) for network in networks),
        pairs=((0, last),),
        matchers=tuple(_few_epochs(spec) for spec in sweep.matchers),
        probes=None,
        groups=None,  # the cost of evidence is counted, not timed: it does not grow with a sample's few images
        shuffles=0,
    )
    return SweepSample(sweep=small, block=replace(small.block(0, last), target_layers=tuple(targets)))


def spread(items: Sequence[T], num: int) -> list[T]:
    """Return `num` of the items, evenly spread, or all if there are fewer.

    >>> spread("abcdefgh", 2)
    ['c', 'g']
    """
    num = min(num, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * num)] for k in range(num)]


def _on_noise(network: Network, size: tuple[int, ...]) -> Network:
    """Return the network with the preprocessing of images that have the size of the target's input.

    Its fingerprint is removed, since a trial runs it with random weights.
    """
    wanted = network.input_shape[1:]
    resize = None if wanted == size else (wanted[0], wanted[1])
    own = network.preprocess
    preprocess = Preprocess(resize=resize, mean=own.mean, std=own.std, channels=own.channels)
    return replace(network, preprocess=preprocess, fingerprint=None)


def _few_epochs(spec: MatcherSpec) -> MatcherSpec:
    values = spec.values
    if "epochs" not in values:
        return spec
    return replace(spec, params=canonical({**values, "epochs": min(EPOCHS, values["epochs"])}))


class Noise:
    """A split of random images, uint8 (C, H, W), with random labels of `num_classes` classes."""

    def __init__(self, num: int, size: tuple[int, ...], num_classes: int, device: torch.device, *, channels: int = 3):
        generator = torch.Generator().manual_seed(0)
        shape = (min(num, NOISE_IMAGES), channels, *size)
        self.num = num
        self.labels = torch.randint(num_classes, (num,), generator=generator).to(device)
        self.pixels_NCHW = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)

    def batch(self, start: Tensor) -> Tensor:
        """Return the images at these positions: (N, C, H, W)."""
        return self.pixels_NCHW[(start % len(self.pixels_NCHW)).to(self.pixels_NCHW.device)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePair:
    """Both splits of random images."""

    fit: Noise
    eval: Noise
