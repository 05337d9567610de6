"""The base class of all statistics, and the units of their costs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from stitchgrid.records import Layer, Sweep

LayerKey = tuple[int, int]  # (position of the network in the sweep, position of the layer in the network)

EXACT = 10.0  # cost of a float64 operation on rows, overhead included, in operations of a network
DRAWN = 0.2  # of EXACT, for an operation on shuffled rows, which are read already
BACKWARD = 1.0  # cost of a gradient with respect to a tail's input, in forward passes
NUMBER_BYTES = 8  # of a float64


@dataclass(frozen=True, kw_only=True)
class Statistic(ABC):
    """A quantity that is computed for some layers from the first images of a split."""

    num_images: int

    @property
    @abstractmethod
    def layers(self) -> frozenset[LayerKey]:
        """The layers whose activations are read."""

    @abstractmethod
    def flops(self) -> float:
        """Return its cost while the images pass, in operations of a network."""

    def shared_flops(self) -> float:
        """Return the part of `flops` that other shards with some of the same layers compute again."""
        return 0.0

    def held_bytes(self) -> int:
        """Return its memory in bytes once all images have passed and values have been computed from it."""
        return 0


def num_rows(layer: Layer) -> int:
    """Return how many rows of features a layer has per image."""
    return num_values(layer) // layer.width


def num_values(layer: Layer) -> int:
    """Return how many numbers a layer has per image."""
    return prod(layer.shape)


def layer_of(sweep: Sweep, key: LayerKey) -> Layer:
    """Return the record of a layer."""
    return sweep.networks[key[0]].layers[key[1]]


def total_flops(statistics: Iterable[Statistic]) -> float:
    """Return the cost of several statistics together."""
    return sum(one.flops() for one in statistics)


def total_bytes(statistics: Iterable[Statistic]) -> int:
    """Return the memory in bytes that several statistics take together."""
    return sum(one.held_bytes() for one in statistics)
