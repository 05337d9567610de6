"""Statistics of single layers on fit images: principal axes of rows, and the Gaussian of pooled rows."""

from dataclasses import dataclass

from stitchgrid.statistics.base import EXACT, NUMBER_BYTES, LayerKey, Statistic

POOLING = 1.0  # operations in float64 on each number that is pooled


@dataclass(frozen=True, kw_only=True)
class RowAxes(Statistic):
    """The principal axes of a layer's own rows, to which a source is reduced."""

    key: LayerKey
    num_rows: int
    width: int
    num_ranks: int  # number of ranks to which it is reduced

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layer."""
        return frozenset({self.key})

    def flops(self) -> float:
        """Return the cost of the products of its rows with themselves, in float64."""
        return 2.0 * EXACT * self.num_images * self.num_rows * self.width**2

    def shared_flops(self) -> float:
        """Return all of it."""
        return self.flops()

    def held_bytes(self) -> int:
        """Return the size of the products, of the scatter matrix, of its axes, and of the reduced scatter matrices."""
        return NUMBER_BYTES * (3 + self.num_ranks) * self.width**2


@dataclass(frozen=True, kw_only=True)
class PooledGaussian(Statistic):
    """The Gaussian of a target layer's pooled rows."""

    key: LayerKey
    num_rows: int
    width: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layer."""
        return frozenset({self.key})

    def flops(self) -> float:
        """Return the cost of pooling, and of the products of pooled rows with themselves, in float64."""
        return EXACT * self.num_images * (POOLING * self.num_rows * self.width + 2.0 * self.width**2)

    def shared_flops(self) -> float:
        """Return all of it."""
        return self.flops()

    def held_bytes(self) -> int:
        """Return the size of the products, of the covariance, and of its inverse root."""
        return 3 * NUMBER_BYTES * self.width**2
