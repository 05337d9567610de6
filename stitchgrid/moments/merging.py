"""Merges moments of several sets of rows, and removes the moments of a part from those of a set.

Shape suffixes: D and E features of one layer.
"""

from collections.abc import Sequence

import torch

from stitchgrid.moments.sides import PairMoments, Side


class Merger:
    """Merges moments of several sets of rows (Chan, Golub & LeVeque 1979).

    Moments that depend on one layer only are computed once for all its pairs.
    """

    def __init__(self) -> None:
        self._sides: dict[tuple[int, ...], tuple[Side, tuple[Side, ...]]] = {}  # with its parts, which keep their ids
        self._rests: dict[tuple[int, int], tuple[Side, tuple[Side, Side]]] = {}

    def __call__(self, parts: Sequence[PairMoments]) -> PairMoments:
        """Return the moments of the rows of all parts of one layer pair."""
        counts = [part.num_rows for part in parts]
        x = self._side([part.x for part in parts], counts)
        y = self._side([part.y for part in parts], counts)
        xy_DE = torch.stack([part.xy_DE for part in parts]).sum(0)
        for part in parts:
            xy_DE = xy_DE + part.num_rows * torch.outer(part.mean_x_D - x.mean_D, part.mean_y_E - y.mean_D)
        return PairMoments(num_rows=sum(counts), x=x, y=y, xy_DE=xy_DE)

    def folds(self, parts: Sequence[PairMoments]) -> list[tuple[PairMoments, PairMoments]]:
        """Return, for each part that has rows, the moments of all others, and its own."""
        filled = [part for part in parts if part.num_rows]
        return [(self([other for other in filled if other is not part]), part) for part in filled if len(filled) > 1]

    def without(self, whole: PairMoments, part: PairMoments) -> PairMoments:
        """Return the moments of the rows of `whole` that are not among those of `part`.

        If `part` has no rows, they equal `whole`; if it has all rows, they are moments of no rows, all NaN.
        """
        left = whole.num_rows - part.num_rows
        x, y = (self._rest(*sides, whole.num_rows, part.num_rows) for sides in ((whole.x, part.x), (whole.y, part.y)))
        apart = torch.outer(x.mean_D - part.mean_x_D, y.mean_D - part.mean_y_E)
        xy_DE = whole.xy_DE - part.xy_DE - left * part.num_rows / whole.num_rows * apart
        return PairMoments(num_rows=left, x=x, y=y, xy_DE=xy_DE)

    def _rest(self, whole: Side, part: Side, num_rows: int, num_part: int) -> Side:
        key = id(whole), id(part)
        if key not in self._rests:
            left = num_rows - num_part
            mean_D = whole.mean_D + (whole.mean_D - part.mean_D) * (num_part / left if left else torch.nan)
            apart_D = mean_D - part.mean_D
            scatter_DD = whole.scatter_DD - part.scatter_DD - left * num_part / num_rows * torch.outer(apart_D, apart_D)
            rest = Side(mean_D=mean_D, scatter_DD=scatter_DD, basis_Dr=whole.basis_Dr)
            self._rests[key] = rest, (whole, part)
        return self._rests[key][0]

    def _side(self, parts: Sequence[Side], counts: Sequence[int]) -> Side:
        key = tuple(map(id, parts))
        if key not in self._sides:
            first_D = parts[0].mean_D  # means are averaged about the first, so that equal means stay unchanged
            shift_D = sum((n * (part.mean_D - first_D) for n, part in zip(counts, parts, strict=True)), 0.0 * first_D)
            mean_D = first_D + shift_D / sum(counts)
            scatter_DD = torch.stack([part.scatter_DD for part in parts]).sum(0)
            for n, part in zip(counts, parts, strict=True):
                scatter_DD = scatter_DD + n * torch.outer(part.mean_D - mean_D, part.mean_D - mean_D)
            side = Side(mean_D=mean_D, scatter_DD=scatter_DD, basis_Dr=parts[0].basis_Dr)
            self._sides[key] = side, tuple(parts)
        return self._sides[key][0]
