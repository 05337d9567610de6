"""From cells to the statistics that they need: each statistic once, however many cells need it."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from stitchgrid.matchers.protocol import GramIndex
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.gram import GramLayer, Grams
from stitchgrid.statistics.layers import PooledGaussian, RowAxes
from stitchgrid.statistics.moments import (
    NO_AXES,
    GroupedMoments,
    Moments,
    PairsAsked,
    Products,
    ShuffledMoments,
    SideName,
    products_of,
)
from stitchgrid.statistics.needs import CellGrid
from stitchgrid.statistics.rows import Geometry

K = TypeVar("K")

FitKey = tuple[int, int]  # number of fit images, and of groups that they are divided into (0: none)
AnyMoments = Moments | GroupedMoments


def fit_moments(geometry: Geometry, asked: Iterable[CellGrid]) -> dict[FitKey, AnyMoments]:
    """Return the moments of fit images from which maps are computed, in folds where a kind divides the images."""
    wanted = [((one.needs.num_fit, one.needs.num_folds), one) for one in asked if one.needs.closed is not None]
    found: dict[FitKey, AnyMoments] = {}
    for (num_images, num_folds), products in _by_key(geometry, wanted, is_fit=True).items():
        found[num_images, num_folds] = (
            GroupedMoments(num_images=num_images, products=products, num_groups=num_folds)
            if num_folds
            else Moments(num_images=num_images, products=products)
        )
    return found


def fit_shuffles(geometry: Geometry, asked: Iterable[CellGrid]) -> dict[int, ShuffledMoments]:
    """Return the products of shuffled fit images, by number of images."""
    wanted = [(one.needs.num_fit, one) for one in asked if one.needs.closed is not None and one.needs.is_shuffled]
    return _shuffles(geometry, wanted, is_fit=True)


def evaluation_moments(geometry: Geometry, asked: Iterable[CellGrid]) -> dict[int, AnyMoments]:
    """Return the moments of evaluation images, by their number; by groups of images where a sweep has them."""
    num_groups = geometry.sweep.groups
    wanted = [(one.needs.num_eval, one) for one in asked if one.needs.has_rows]
    return {
        num_images: GroupedMoments(num_images=num_images, products=products, num_groups=num_groups)
        if num_groups
        else Moments(num_images=num_images, products=products)
        for num_images, products in _by_key(geometry, wanted, is_fit=False).items()
    }


def evaluation_shuffles(geometry: Geometry, asked: Iterable[CellGrid]) -> dict[int, ShuffledMoments]:
    """Return the products of shuffled evaluation images, by number of images."""
    wanted = [(one.needs.num_eval, one) for one in asked if one.needs.has_rows and one.needs.is_shuffled]
    return _shuffles(geometry, wanted, is_fit=False)


def _shuffles(
    geometry: Geometry, wanted: Sequence[tuple[int, CellGrid]], *, is_fit: bool
) -> dict[int, ShuffledMoments]:
    return {
        num_images: ShuffledMoments(num_images=num_images, products=products, num_draws=geometry.sweep.shuffles)
        for num_images, products in _by_key(geometry, wanted, is_fit=is_fit).items()
    }


def _by_key(geometry: Geometry, wanted: Iterable[tuple[K, CellGrid]], *, is_fit: bool) -> dict[K, Products]:
    by_key: dict[K, dict[object, PairsAsked]] = {}
    for key, one in wanted:
        some = _pairs(one, is_fit=is_fit)
        by_key.setdefault(key, {})[id(some.rules), some.axes, some.sources, some.targets] = some
    return {key: products_of(geometry, some.values()) for key, some in by_key.items()}


def _pairs(asked: CellGrid, *, is_fit: bool) -> PairsAsked:
    """Return the layer pairs of some cells, and the sides for which the kind asks for axes of these moments."""
    needs = asked.needs
    kind = needs.closed if is_fit else needs.kind
    axes: frozenset[SideName] = NO_AXES if kind is None or (needs.is_stitcher and not is_fit) else kind.axes_of
    return PairsAsked(sources=asked.sources, targets=asked.targets, rules=needs.rules, axes=axes)


def grams_of(geometry: Geometry, asked: Iterable[CellGrid]) -> dict[int, Grams]:
    """Return the Gram matrices of all layers that are asked for, by number of images."""
    ranks: dict[int, dict[LayerKey, set[int | None]]] = {}
    kinds: dict[int, dict[int, GramIndex[Any, Any]]] = {}
    for one in asked:
        if not isinstance(one.needs.kind, GramIndex):
            continue
        kinds.setdefault(one.needs.num_eval, {})[one.needs.position] = one.needs.kind
        of_layers = ranks.setdefault(one.needs.num_eval, {})
        for key in one.sources:
            of_layers.setdefault(key, set()).add(
                None if one.needs.rank is None else one.needs.rank_of(geometry.width(key))
            )
        for key in one.targets:
            of_layers.setdefault(key, set()).add(None)
    return {
        num_images: Grams(
            num_images=num_images,
            of_layers={key: _gram_layer(geometry, key, some) for key, some in of_layers.items()},
            kinds=tuple(kinds[num_images].values()),
            has_groups=bool(geometry.sweep.groups),
            has_draws=bool(geometry.sweep.shuffles),
        )
        for num_images, of_layers in sorted(ranks.items())
    }


def _gram_layer(geometry: Geometry, key: LayerKey, ranks: Iterable[int | None]) -> GramLayer:
    size = geometry.size(key)
    return GramLayer(num_values=size.num_values, num_rows=size.num_rows, ranks=frozenset(ranks))


def row_axes(geometry: Geometry, asked: Iterable[CellGrid]) -> tuple[RowAxes, ...]:
    """Return the principal axes of sources of low rank, each layer's for every number of fit images."""
    ranks: dict[tuple[LayerKey, int], set[int]] = {}
    for one in asked:
        for key in one.sources if one.needs.rank is not None else ():
            if (rank := one.needs.rank_of(geometry.width(key))) is not None:
                ranks.setdefault((key, one.needs.num_fit), set()).add(rank)
    return tuple(
        axes_of_layer(geometry, key, num_images=num_images, num_ranks=len(some))
        for (key, num_images), some in ranks.items()
    )


def axes_of_layer(geometry: Geometry, key: LayerKey, *, num_images: int, num_ranks: int) -> RowAxes:
    """Return the principal axes of one layer."""
    size = geometry.size(key)
    return RowAxes(num_images=num_images, key=key, num_rows=size.num_rows, width=size.width, num_ranks=num_ranks)


def gaussians(geometry: Geometry, asked: Iterable[CellGrid]) -> tuple[PooledGaussian, ...]:
    """Return the Gaussian of every target layer for every number of fit images."""
    wanted = {(key, one.needs.num_fit): None for one in asked if one.needs.asks_distances for key in one.targets}
    return tuple(
        PooledGaussian(
            num_images=num_images,
            key=key,
            num_rows=geometry.size(key).num_rows,
            width=geometry.width(key),
        )
        for key, num_images in wanted
    )
