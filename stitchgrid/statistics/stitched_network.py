"""Costs of running and training stitched networks, and of scoring the activations T(A) that their tails get."""

from dataclasses import dataclass

from stitchgrid.statistics.base import BACKWARD, EXACT, LayerKey, Statistic
from stitchgrid.statistics.layers import POOLING
from stitchgrid.statistics.rows import LayersSize

SCORE_BYTES = 4  # of one image's score
ADJOINT = 2.0  # cost of a map's gradient, in that of the map
CHECKS = 100.0  # operations on each number of T(A): its sums, and those of its negative part
DISTANCE = 200.0  # and for its distance to B


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """A target layer of stitched networks, and the sources that are stitched into it."""

    key: LayerKey
    num_rows: int
    width: int
    tail_flops: float  # of the network behind it, for one image
    sources: tuple[LayersSize, ...]

    @property
    def num_sources(self) -> int:
        """Number of sources."""
        return sum(len(some.keys) for some in self.sources)

    @property
    def source_width(self) -> int:
        """Features of all sources together."""
        return sum(some.width for some in self.sources)

    @property
    def num_values(self) -> int:
        """Numbers of one image."""
        return self.num_rows * self.width

    @property
    def map_flops(self) -> float:
        """Operations of all maps for one image, each applied on whichever side has fewer rows."""
        fewer = sum(min(self.num_rows, rows) * width for some in self.sources for rows, width in some.widths_by_rows)
        return 2.0 * fewer * self.width


@dataclass(frozen=True, kw_only=True)
class TailStatistic(Statistic):
    """The stitched networks of some matchers that end in one target layer, run once over the images."""

    target: Target
    num_matchers: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The target layer; sources are read for the moments of their pairs as well."""
        return frozenset({self.target.key})

    def flops(self) -> float:
        """Return the cost of the maps, of the tail behind them, and of sums over T(A)."""
        one = self.target.map_flops + self.target.num_sources * (
            self.target.tail_flops + CHECKS * self.target.num_values
        )
        return self.num_images * self.num_matchers * one


@dataclass(frozen=True, kw_only=True)
class RowErrorStatistic(Statistic):
    """The distances of T(A) to B of stitched networks that end in a layer, row by row, where their tail is run."""

    key: LayerKey
    num_values: int  # of an image
    num_stitches: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The target layer."""
        return frozenset({self.key})

    def flops(self) -> float:
        """Return the cost of the differences and their squares, and of B's own."""
        return DISTANCE * self.num_images * (self.num_stitches + 1) * self.num_values


@dataclass(frozen=True, kw_only=True)
class Training(Statistic):
    """The training of one matcher's maps into one target layer."""

    target: Target
    epochs: int
    num_checked: int  # images whose loss is computed at the end

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The target layer."""
        return frozenset({self.target.key})

    def flops(self) -> float:
        """Return the cost of tails forward and back to their input, and of the maps and their gradients."""
        tails, maps = self.target.num_sources * self.target.tail_flops, self.target.map_flops
        there_and_back = (1 + BACKWARD) * tails + (1 + ADJOINT) * maps
        return self.epochs * self.num_images * there_and_back + self.num_checked * (tails + maps)


@dataclass(frozen=True, kw_only=True)
class Distances(Statistic):
    """The scores of B and of every T(A) into a target layer, by the Gaussian of B."""

    target: Target
    num_matchers: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The target layer."""
        return frozenset({self.target.key})

    def flops(self) -> float:
        """Return the cost of products of pooled rows, in float64; one product does both the map and the whitening."""
        widths = self.num_matchers * self.target.source_width + self.target.width
        pooled = POOLING * self.target.num_values
        return EXACT * self.num_images * (2.0 * widths * self.target.width + pooled)

    def held_bytes(self) -> int:
        """Return the size of all scores, and of their sorted copies."""
        return 2 * SCORE_BYTES * self.num_images * (self.num_matchers * self.target.num_sources + 1)


@dataclass(frozen=True, kw_only=True)
class Energies(Statistic):
    """The scores of B and of every T(A) into a target layer, by its detector."""

    target: Target
    num_matchers: int
    detector_flops: float  # for one image
    detector_bytes: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The target layer."""
        return frozenset({self.target.key})

    def flops(self) -> float:
        """Return the operations of the detector."""
        return self.num_images * (self.num_matchers * self.target.num_sources + 1) * self.detector_flops

    def held_bytes(self) -> int:
        """Return the size of the detector's weights."""
        return self.detector_bytes
