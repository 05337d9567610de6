"""How residuals of affine maps are computed: from moments of evaluation rows, or from T(A) where a tail runs on it.

Values are the same except for rounding; the cheaper way is used.
"""

from collections.abc import Iterable, Sequence

from stitchgrid.statistics.base import LayerKey, total_flops
from stitchgrid.statistics.needs import CellGrid
from stitchgrid.statistics.planner import AnyMoments, evaluation_moments
from stitchgrid.statistics.rows import Geometry
from stitchgrid.statistics.stitched_network import RowErrorStatistic


def cheaper(
    geometry: Geometry, moments: Sequence[CellGrid], either: Sequence[CellGrid]
) -> tuple[dict[int, AnyMoments], tuple[RowErrorStatistic, ...]]:
    """Return the cheaper statistics for cells that need `moments` and for cells that can use `either` way.

    These are moments for all cells, or moments for the first and row distances for the others.
    """
    of_all = evaluation_moments(geometry, [*moments, *either])
    if not either:
        return of_all, ()
    of_some, errors = evaluation_moments(geometry, moments), row_errors(geometry, either)
    if total_flops(of_some.values()) + total_flops(errors) < total_flops(of_all.values()):
        return of_some, errors
    return of_all, ()


def row_errors(geometry: Geometry, asked: Iterable[CellGrid]) -> tuple[RowErrorStatistic, ...]:
    """Return the distances of T(A) to B, row by row, for every target layer."""
    numbers: dict[tuple[LayerKey, int], int] = {}
    for one in asked:
        for key in one.targets:
            what = key, one.needs.num_eval
            numbers[what] = numbers.get(what, 0) + len(one.sources)
    return tuple(
        RowErrorStatistic(num_images=num_images, key=key, num_values=geometry.size(key).num_values, num_stitches=num)
        for (key, num_images), num in numbers.items()
    )
