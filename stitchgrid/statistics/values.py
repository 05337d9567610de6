"""Costs of computing values from statistics once all images have passed: decompositions, in float64."""

from collections.abc import Sequence
from itertools import product

from stitchgrid.matchers.protocol import GramIndex, Sizes
from stitchgrid.records import Block, Sweep
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.moments import GroupedMoments
from stitchgrid.statistics.needs import Needs, all_needs, of_blocks
from stitchgrid.statistics.planner import evaluation_moments, fit_moments
from stitchgrid.statistics.rows import Geometry

EIGEN = 10.0  # about, operations of an eigendecomposition of a symmetric matrix, in cubes of its side


def values_flops(sweep: Sweep, block: Block, matchers: Sequence[int]) -> float:
    """Return the float64 operations of decompositions, which are needed once, not for each image."""
    geometry, needs = Geometry(sweep), all_needs(sweep)
    asked = list(of_blocks((needs[matcher] for matcher in matchers), [block]))
    moments = [*fit_moments(geometry, asked).values(), *evaluation_moments(geometry, asked).values()]
    total = sum(
        EIGEN * (1 + one.num_groups if isinstance(one, GroupedMoments) else 1) * one.products.num_axes_cubed
        for one in moments
    )
    return total + sum(_pair_flops(geometry, one.needs, one.sources, one.targets) for one in asked)


def _pair_flops(geometry: Geometry, needs: Needs, sources: Sequence[LayerKey], targets: Sequence[LayerKey]) -> float:
    """Return the operations of one matcher for each layer pair and each layer; mirror images share a value."""
    sweep, kind = geometry.sweep, needs.kind
    num_groups, num_draws = sweep.groups or 0, sweep.shuffles * needs.is_shuffled
    is_shared = kind.about.symmetric and needs.rank is None
    pairs = {(frozenset((s, t)) if is_shared else (s, t)): (s, t) for s, t in product(sources, targets)}
    of_pairs = sum(_one(geometry, needs, *pair) for pair in pairs.values())
    drawn = sum(_one(geometry, needs, *pair) for pair in product(sources, targets)) if num_draws else 0.0
    total = (1 + num_groups * (not needs.is_stitcher)) * of_pairs + num_draws * drawn
    if isinstance(kind, GramIndex):
        num_prepared = (1 + num_groups) * len({*sources, *targets}) + num_draws * len(sources)
        total += num_prepared * kind.layer_flops(needs.num_eval)
    return total


def _one(geometry: Geometry, needs: Needs, source: LayerKey, target: LayerKey) -> float:
    return needs.kind.flops(Sizes(source=geometry.width(source), target=geometry.width(target), num=needs.num_eval))
