"""Sums over rows of layers side by side, and sums of their products, which give the moments of layer pairs.

Shape suffixes: R rows, X features of all sources side by side, Y features of all targets, D and E those of one layer.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from stitchgrid.moments.arithmetic import exact_mean
from stitchgrid.moments.sides import PairMoments, Side

NOT_FINITE = "look at the network's weights, and at the job's precision"  # what to do about inf and NaN

SLICED = 1 << 20  # numbers in the products of all slices of rows together, at most


class PivotedRows:
    """Rows of several layers side by side, minus a pivot: the mean of the first rows seen.

    The pivot keeps a large offset from costing precision.
    """

    def __init__(self, widths: Sequence[int], *, device: str | torch.device = "cpu"):
        self.slices = [slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]
        self.pivot_X = torch.zeros(sum(widths), dtype=torch.float64, device=device)
        self._has_pivot = False

    def centre(self, layers: Sequence[Tensor]) -> Tensor:
        """Return float64 rows (..., X) about the pivot, from a (..., width) tensor of any floating type per layer."""
        rows = torch.empty(*layers[0].shape[:-1], len(self.pivot_X), dtype=torch.float64, device=self.pivot_X.device)
        for layer, columns in zip(layers, self.slices, strict=True):
            rows[..., columns] = layer
        if not self._has_pivot and rows.numel():
            self.pivot_X, self._has_pivot = exact_mean(rows.flatten(0, -2)), True
        return rows.sub_(self.pivot_X)


class RowSums(PivotedRows):
    """Sums over rows of several layers side by side: their number, their total, each layer's products with itself."""

    def __init__(self, widths: Sequence[int], *, device: str | torch.device = "cpu"):
        super().__init__(widths, device=device)
        self.num_rows = 0
        self.total_X = torch.zeros_like(self.pivot_X)
        self._runs: list[tuple[slice, Tensor]] = []  # columns of neighbours of one width, their products (L, D, D)
        for width, some in groupby(self.slices, key=lambda columns: columns.stop - columns.start):
            run = list(some)
            self._runs.append((slice(run[0].start, run[-1].stop), self.pivot_X.new_zeros(len(run), width, width)))
        self.products = [products_DD for _, products_LDD in self._runs for products_DD in products_LDD]
        self._sides: dict[int, Side] = {}  # valid until more rows come, as are the next two
        self._not_finite: set[int] = set()
        self._is_judged = False

    def add(self, rows: Tensor, *, partners: Tensor | None = None, num_rows: int | None = None) -> None:
        """Add rows (..., X) about the pivot.

        Rows Lz, which a linear operator L makes of fewer rows z, need not be computed: give z, the `partners` L'Lz, and
        the number of rows of Lz. For (Lz)'(Lz) = z'(L'Lz), and the rows Lz and the partners have the same sum if L's
        weights sum to one for each of its rows.
        """
        rows_RX = rows.flatten(0, -2)
        partners_RX = rows_RX if partners is None else partners.flatten(0, -2)
        self._sides.clear()
        self._is_judged = False
        self.num_rows += len(partners_RX) if num_rows is None else num_rows
        self.total_X += partners_RX.sum(0)
        for columns, products_LDD in self._runs:
            shape_RLD = -1, *products_LDD.shape[:2]
            rows_LDR = rows_RX[:, columns].reshape(shape_RLD).permute(1, 2, 0)
            products_LDD.baddbmm_(rows_LDR, partners_RX[:, columns].reshape(shape_RLD).transpose(0, 1))

    def share_products(self, all_XX: Tensor) -> None:
        """Take each layer's products with itself from those of all pairs of layers, which `CrossSums` adds up."""
        self.products, self._runs = [all_XX[columns, columns] for columns in self.slices], []

    def side(self, layer: int) -> Side:
        """Return one layer's share of the moments of its pairs.

        Raises:
            ValueError: If no row has been added, or an activation was infinite or NaN.
        """
        if not self.num_rows:
            raise ValueError("moments of a layer pair need at least one row, got none; call add() first.")
        if layer not in self._sides:
            total_D, products_DD = self.total_X[self.slices[layer]], self.products[layer]
            find_finite([self])
            if layer in self._not_finite:
                raise ValueError(f"moments of a layer pair need finite activations, got inf or NaN; {NOT_FINITE}.")
            self._sides[layer] = Side(
                mean_D=self.pivot_X[self.slices[layer]] + total_D / self.num_rows,
                scatter_DD=products_DD - torch.outer(total_D, total_D) / self.num_rows,
            )
        return self._sides[layer]

    def finite_sides(self) -> list[Side]:
        """Return the shares of all layers whose activations were finite."""
        find_finite([self])
        return [self.side(layer) for layer in range(len(self.slices)) if layer not in self._not_finite]


def find_finite(all_sums: Iterable[RowSums]) -> None:
    """Find out, by one transfer for all of these sums, which layers had only finite activations."""
    asked = [sums for sums in dict.fromkeys(all_sums) if not sums._is_judged]
    traces = [products_DD.trace() for sums in asked for products_DD in sums.products]
    told = iter(torch.stack(traces).isfinite().tolist() if traces else ())
    for sums in asked:
        sums._not_finite = {layer for layer in range(len(sums.products)) if not next(told)}
        sums._is_judged = True


class CrossSums:
    """All products x'y of the rows of two sets of layers, or of one set with itself.

    >>> x, y = RowSums([2, 3]), RowSums([3])
    >>> cross = CrossSums(x, y)
    >>> for _ in range(2):
    ...     rows_x, rows_y = x.centre([torch.randn(50, 2), torch.randn(50, 3)]), y.centre([torch.randn(50, 3)])
    ...     cross.add(rows_x, rows_y)
    ...     x.add(rows_x)
    ...     y.add(rows_y)
    >>> cross.pair(1, 0).num_rows, tuple(cross.pair(1, 0).xy_DE.shape)
    (100, (3, 3))
    """

    def __init__(self, x: RowSums, y: RowSums, *, blocks: Sequence[slice] | None = None):
        """`blocks` are columns of a set that is multiplied with itself: each block with itself and those before it."""
        self.x, self.y = x, y
        self.xy_XY = x.pivot_X.new_zeros(len(x.pivot_X), len(y.pivot_X))
        self._blocks = [(slice(0, len(x.pivot_X)), len(y.pivot_X))]  # rows of the products, multiplied up to a column
        if x is y:
            self._blocks = [(block, block.stop) for block in blocks or [slice(0, len(x.pivot_X))]]
            x.share_products(self.xy_XY)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows (..., X) and (..., Y) about their pivots."""
        x_RX, y_RY = x.flatten(0, -2), y.flatten(0, -2)
        for columns, stop in self._blocks:
            _add_products(self.xy_XY[columns, :stop], x_RX[:, columns], y_RY[:, :stop])

    def _products(self, columns_x: slice, columns_y: slice) -> Tensor:
        is_there = any(block.start <= columns_x.start and columns_y.stop <= stop for block, stop in self._blocks)
        return self.xy_XY[columns_x, columns_y] if is_there else self.xy_XY[columns_y, columns_x].mT

    def pair(self, source: int, target: int) -> PairMoments:
        """Return the centred moments of a layer of the one side and a layer of the other.

        Raises:
            ValueError: If no row has been added, or an activation was infinite or NaN.
        """
        columns_x, columns_y = self.x.slices[source], self.y.slices[target]
        x, y = self.x.side(source), self.y.side(target)
        shift_DE = torch.outer(self.x.total_X[columns_x], self.y.total_X[columns_y]) / self.y.num_rows
        return PairMoments(num_rows=self.y.num_rows, x=x, y=y, xy_DE=self._products(columns_x, columns_y) - shift_DE)


def _add_products(sums_XY: Tensor, x_RX: Tensor, y_RY: Tensor) -> None:
    """Add x'y to sums.

    If many rows give a small product, only the rows can be divided among threads: slices of them are multiplied in
    parallel. Two threads of an AMD EPYC took 0.5 to 1 times as long for 32 to 256 features a side.
    """
    num_slices = max(1, min(_num_parallel(x_RX.device), SLICED // sums_XY.numel()))
    length = len(x_RX) // num_slices
    if num_slices > 1 and length:
        sliced = num_slices * length
        x_SRX, y_SRY = (rows[:sliced].view(num_slices, length, -1) for rows in (x_RX, y_RY))
        sums_XY += torch.bmm(x_SRX.mT, y_SRY).sum(0)
        x_RX, y_RY = x_RX[sliced:], y_RY[sliced:]
    if len(x_RX):
        sums_XY.addmm_(x_RX.mT, y_RY)


def _num_parallel(device: torch.device) -> int:
    """Return how many small products a device computes in parallel."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return torch.get_num_threads()


def pair_moments(x_RD: Tensor, y_RE: Tensor) -> PairMoments:
    """Return the centred moments of two matrices with the same rows."""
    x, y = RowSums([x_RD.shape[1]], device=x_RD.device), RowSums([y_RE.shape[1]], device=y_RE.device)
    cross = CrossSums(x, y)
    rows_x, rows_y = x.centre([x_RD]), y.centre([y_RE])
    cross.add(rows_x, rows_y)
    x.add(rows_x)
    y.add(rows_y)
    return cross.pair(0, 0)
