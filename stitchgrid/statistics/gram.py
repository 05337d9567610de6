"""Gram matrices: the products of every image with every image, one matrix for each layer and each of its ranks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stitchgrid.matchers.protocol import GramIndex
from stitchgrid.statistics.base import NUMBER_BYTES, LayerKey, Statistic

FLOAT32 = 4  # bytes
GRAM_BYTES = {"cpu": 1 << 30, "cuda": 2 << 30}  # of activations kept at a time for Gram matrices

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class GramLayer:
    """A layer, and what its Gram matrices are computed from."""

    num_values: int  # of one image
    num_rows: int
    ranks: frozenset[int | None]  # to which the rows are reduced; None: as they are

    def multiplied(self) -> int:
        """Return how many numbers of an image are multiplied, over all ranks."""
        return sum(self.num_values if rank is None else self.num_rows * rank for rank in self.ranks)


@dataclass(frozen=True, kw_only=True)
class Grams(Statistic):
    """The Gram matrices of all layers over the first images, and what indices compute from each of them."""

    of_layers: Mapping[LayerKey, GramLayer]
    kinds: Sequence[GramIndex[Any, Any]]
    has_groups: bool = False  # values are also computed without each group of images
    has_draws: bool = False  # values are also computed for shuffled images

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers whose activations are read."""
        return frozenset(self.of_layers)

    @property
    def reads_rows(self) -> bool:
        """Whether an index asks for more of each image than its products with others."""
        return any(kind.reads_rows for kind in self.kinds)

    @property
    def num_matrices(self) -> int:
        """Number of Gram matrices."""
        return sum(len(layer.ranks) for layer in self.of_layers.values())

    def flops(self) -> float:
        """Return the cost of half of all products of images; the other half are their mirror images."""
        return float(self.num_images**2 * sum(layer.multiplied() for layer in self.of_layers.values()))

    def shared_flops(self) -> float:
        """Return all of it: every shard computes a layer's matrices again."""
        return self.flops()

    def activation_bytes(self, key: LayerKey) -> int:
        """Return the size of a layer's activations on all images, which are kept until the last has passed."""
        return FLOAT32 * self.num_images * self.of_layers[key].num_values

    def passing_bytes(self, budget: int) -> int:
        """Return the bytes of the activations that are kept at a time: within the budget, or of the largest layer."""
        of_layers = [self.activation_bytes(key) for key in self.of_layers]
        largest = max(of_layers, default=0)
        coordinates = largest * any(any(layer.ranks - {None}) for layer in self.of_layers.values())
        return max(min(budget, sum(of_layers)), largest) + coordinates

    def held_bytes(self) -> int:
        """Return the bytes of all matrices, of what is computed from them, and of the one that is being computed."""
        matrix, each = NUMBER_BYTES * self.num_images**2, [one.prepared_bytes(self.num_images) for one in self.kinds]
        distances = matrix * any(kind.reads_distances for kind in self.kinds)
        found = sum(each) if self.has_draws else max(each, default=0)  # draws are compared with all of them
        total = matrix + self.num_matrices * (matrix + distances + found)
        if self.has_groups or self.has_draws:
            total += (self.num_matrices + 2) * (matrix + distances + max(each, default=0))
        return total


def gram_groups(grams: Sequence[Grams], budget: int) -> list[list[LayerKey]]:
    """Return the layers of Gram matrices in groups: one pass a group, which keeps the activations of its layers."""
    sizes: dict[LayerKey, int] = {}
    for one in grams:
        for key in one.of_layers:
            sizes[key] = sizes.get(key, 0) + one.activation_bytes(key)
    return in_groups(sizes, sizes.__getitem__, budget=budget)


def in_groups(items: Iterable[K], size: Callable[[K], int], *, budget: int) -> list[list[K]]:
    """Return the items in groups whose sizes together stay within the budget; a larger item is a group of its own."""
    groups: list[list[K]] = []
    free = -1
    for item in items:
        if size(item) > free:
            groups.append([])
            free = budget
        groups[-1].append(item)
        free -= size(item)
    return groups
