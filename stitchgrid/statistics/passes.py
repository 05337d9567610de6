"""Forward passes of whole networks, each of which serves all layer pairs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stitchgrid.records import Sweep
from stitchgrid.statistics.base import LayerKey, Statistic, layer_of
from stitchgrid.statistics.rows import Geometry

CACHE_BYTES = 1 << 30  # of source activations kept between epochs, where nothing changes them


@dataclass(frozen=True, kw_only=True)
class Pass(Statistic):
    """A network's pass over some images, as far as the last of the layers that are read, or to its scores."""

    keys: frozenset[LayerKey]
    flops_per_image: float

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers that are read."""
        return self.keys

    def flops(self) -> float:
        """Return the network's operations."""
        return self.num_images * self.flops_per_image

    def shared_flops(self) -> float:
        """Return all of it."""
        return self.flops()


@dataclass(frozen=True, kw_only=True)
class SourceReading(Statistic):
    """The passes of sources in the epochs of training, and after it, to compute the loss once more."""

    keys: tuple[LayerKey, ...]
    bytes_per_image: int  # of their activations
    flops_per_image: float
    augment: str
    epochs: int
    num_checked: int  # images whose loss is computed at the end

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers that are read."""
        return frozenset(self.keys)

    def keeps(self, budget: int = CACHE_BYTES) -> bool:
        """Return whether activations are kept from the first epoch on: within a budget, where nothing changes them."""
        return self.augment == "none" and self.bytes_per_image * self.num_images <= budget

    def kept_bytes(self, budget: int = CACHE_BYTES) -> int:
        """Return the size of the activations that are kept."""
        return self.bytes_per_image * self.num_images if self.keeps(budget) else 0

    def flops(self) -> float:
        """Return the networks' operations."""
        passes = self.num_images if self.keeps() else self.epochs * self.num_images + self.num_checked
        return passes * self.flops_per_image

    def shared_flops(self) -> float:
        """Return all of it."""
        return self.flops()


@dataclass(frozen=True, kw_only=True)
class TargetReading(Statistic):
    """The passes of targets that maps are trained to follow: before training, in its epochs, and at its end."""

    keys: tuple[LayerKey, ...]
    flops_per_image: float
    epochs: int
    num_checked: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers behind which targets are read."""
        return frozenset(self.keys)

    def flops(self) -> float:
        """Return the networks' operations."""
        return ((1 + self.epochs) * self.num_images + self.num_checked) * self.flops_per_image

    def shared_flops(self) -> float:
        """Return all of it."""
        return self.flops()


def reading_of(
    geometry: Geometry,
    keys: Sequence[LayerKey],
    *,
    num_images: int,
    augment: str,
    epochs: int = 1,
    num_checked: int = 0,
) -> SourceReading:
    """Return the reading of some sources."""
    return SourceReading(
        num_images=num_images,
        keys=tuple(keys),
        bytes_per_image=4 * sum(geometry.size(key).num_values for key in keys),
        flops_per_image=pass_flops(geometry.sweep, keys),
        augment=augment,
        epochs=epochs,
        num_checked=num_checked,
    )


def pass_flops(sweep: Sweep, keys: Iterable[LayerKey]) -> float:
    """Return the operations of one image's passes through each network as far as the last of its layers."""
    furthest: dict[int, float] = {}
    for key in keys:
        furthest[key[0]] = max(furthest.get(key[0], 0.0), layer_of(sweep, key).flops)
    return sum(furthest.values())
