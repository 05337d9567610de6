"""Float64 second moments of two sets of features over the same rows.

Least squares, CCA, Procrustes and linear regression need nothing else, and moments add up over batches, workers and
machines: one pass over the images serves every layer pair, exactly, in memory that does not depend on their number.

Shape suffixes: R rows, X features of all sources side by side, Y features of all targets, D and E those of one layer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

NOT_FINITE = "look at the network's weights, and at the job's precision"  # what to do about inf and NaN

BLOCK = 128  # features of a side multiplied with those before them at a time: half of its products are mirror images
SLICED = 1 << 20  # numbers in the products of all slices of rows together, at most
STACK_BYTES = 64 << 20  # of matrices of one shape that are decomposed together
ROUNDING = 1e-9  # beyond its bounds, up to which an index is at them
RCOND = 1e-12  # eigenvalues below this share of the largest are rounding, not variance


def principal_axes(scatter_DD: Tensor, rcond: float = RCOND) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (K,) and eigenvectors (D, K) of a symmetric scatter matrix, largest first, K its rank.

    A matrix of zeros has rank 0. Least squares and CCA agree on the rank, since both ask here.

    >>> values_K, axes_DK = principal_axes(torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)))
    >>> values_K.tolist(), tuple(axes_DK.shape)
    ([4.0, 1.0], (3, 2))
    """
    [found] = _stacked_axes([scatter_DD], rcond)
    return found


def _stacked_axes(scatters: Sequence[Tensor], rcond: float) -> list[tuple[Tensor, Tensor]]:
    """Return the `principal_axes` of matrices of one width: one decomposition, and one transfer of all ranks."""
    values_BD, axes_BDD = torch.linalg.eigh(torch.stack(list(scatters)))
    ranks = ((values_BD > rcond * values_BD[:, -1:]) & (values_BD > 0)).sum(1).tolist()
    values_BD, axes_BDD = values_BD.flip(1), axes_BDD.flip(2)
    return [
        (values_D[:rank], axes_DD[:, :rank]) for values_D, axes_DD, rank in zip(values_BD, axes_BDD, ranks, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One layer's share of the moments of all its pairs; what depends on it alone is computed once."""

    mean_D: Tensor
    scatter_DD: Tensor  # (x - mean)'(x - mean), a sum, not an average
    basis_Dr: Tensor | None = None  # orthonormal: the rows lie in its span; None: anywhere

    @property
    def num_features(self) -> int:
        """Number of directions in which rows can vary: features, or those of the basis."""
        return len(self.mean_D) if self.basis_Dr is None else self.basis_Dr.shape[1]

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Its `principal_axes`."""
        return self.axes_above(RCOND)

    def axes_above(self, rcond: float) -> tuple[Tensor, Tensor]:
        """Return its `principal_axes`, looked for in the span of the basis: what lies outside is rounding."""
        return self._outer(principal_axes(self.inner_rr, rcond))

    @property
    def inner_shape(self) -> torch.Size:
        """Shape of `inner_rr`."""
        return torch.Size([self.num_features, self.num_features])

    @property
    def inner_rr(self) -> Tensor:
        """Scatter in the coordinates of the basis; all of it where there is none."""
        return self.scatter_DD if self.basis_Dr is None else self.basis_Dr.mT @ self.scatter_DD @ self.basis_Dr

    def _outer(self, axes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return axes if self.basis_Dr is None else (axes[0], self.basis_Dr @ axes[1])


def find_axes(sides: Iterable[Side]) -> None:
    """Find the `axes` of many sides together, for each of them to know: one decomposition a width.

    A width whose decomposition fails is left out, so that the side which is to blame says so when it is asked.
    """
    asked = list({id(side): side for side in sides if "axes" not in vars(side)}.values())
    for positions in alike(asked, lambda side: (side.inner_shape,)):
        some = [asked[position] for position in positions]
        with suppress(RuntimeError):  # LinAlgError is one
            for side, axes in zip(some, _stacked_axes([side.inner_rr for side in some], RCOND), strict=True):
                vars(side)["axes"] = side._outer(axes)  # what the cached property would find


def alike(items: Sequence[T], shapes: Callable[[T], tuple[torch.Size, ...]]) -> Iterator[list[int]]:
    """Yield the positions of items whose matrices have the same shapes, no more at a time than a stack may hold."""
    found: dict[tuple[torch.Size, ...], list[int]] = {}
    for position, item in enumerate(items):
        found.setdefault(shapes(item), []).append(position)
    for some, positions in found.items():
        step = max(1, STACK_BYTES // max(1, 8 * sum(shape.numel() for shape in some)))
        yield from (positions[start : start + step] for start in range(0, len(positions), step))


def together(
    compute: Callable[[Sequence[T]], Tensor], items: Sequence[T], shapes: Callable[[T], tuple[torch.Size, ...]]
) -> Tensor:
    """Return what `compute` finds for all items, (B, ...), a stack of `alike` ones at a time."""
    found: dict[int, Tensor] = {}
    for positions in alike(items, shapes):
        found |= zip(positions, compute([items[position] for position in positions]), strict=True)
    return torch.stack([found[position] for position in range(len(items))])


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMoments:
    """Centred second moments of one layer pair, all float64."""

    num_rows: int
    x: Side
    y: Side
    xy_DE: Tensor

    @property
    def mean_x_D(self) -> Tensor:
        """Mean of the source's rows."""
        return self.x.mean_D

    @property
    def mean_y_E(self) -> Tensor:
        """Mean of the target's rows."""
        return self.y.mean_D

    @property
    def xx_DD(self) -> Tensor:
        """Scatter of the source's rows."""
        return self.x.scatter_DD

    @property
    def yy_EE(self) -> Tensor:
        """Scatter of the target's rows."""
        return self.y.scatter_DD


class Merger:
    """Moments of several sets of rows made those of all of them (Chan, Golub & LeVeque 1979).

    What depends on one layer alone is found once for all its pairs.
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

        Where part has no rows, or has them all, that is `whole`, or moments of no rows, all NaN.
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
            first_D = parts[0].mean_D  # about which means are averaged, so that equal ones stay what they are
            shift_D = sum((n * (part.mean_D - first_D) for n, part in zip(counts, parts, strict=True)), 0.0 * first_D)
            mean_D = first_D + shift_D / sum(counts)
            scatter_DD = torch.stack([part.scatter_DD for part in parts]).sum(0)
            for n, part in zip(counts, parts, strict=True):
                scatter_DD = scatter_DD + n * torch.outer(part.mean_D - mean_D, part.mean_D - mean_D)
            side = Side(mean_D=mean_D, scatter_DD=scatter_DD, basis_Dr=parts[0].basis_Dr)
            self._sides[key] = side, tuple(parts)
        return self._sides[key][0]


class RowSums:
    """Sums over the rows of several layers side by side: their number, their total, each layer's products with itself.

    Rows are taken about a pivot, the mean of the first rows seen, so that a large offset does not cost precision.
    """

    def __init__(self, widths: Sequence[int], *, device: str | torch.device = "cpu"):
        self.slices = [slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]
        self.num_rows = 0
        self.pivot_X = torch.zeros(sum(widths), dtype=torch.float64, device=device)
        self.total_X = torch.zeros_like(self.pivot_X)
        self._runs: list[tuple[slice, Tensor]] = []  # columns of neighbours of one width, their products (L, D, D)
        for width, some in groupby(self.slices, key=lambda columns: columns.stop - columns.start):
            run = list(some)
            self._runs.append((slice(run[0].start, run[-1].stop), self.pivot_X.new_zeros(len(run), width, width)))
        self.products = [products_DD for _, products_LDD in self._runs for products_DD in products_LDD]
        self._has_pivot = False
        self._sides: dict[int, Side] = {}  # until more rows come, as are
        self._not_finite: set[int] = set()
        self._is_judged = False

    def centre(self, layers: Sequence[Tensor]) -> Tensor:
        """Return float64 rows (..., X) about the pivot, from a (..., width) tensor of any floating type per layer."""
        rows = torch.empty(*layers[0].shape[:-1], len(self.pivot_X), dtype=torch.float64, device=self.pivot_X.device)
        for layer, columns in zip(layers, self.slices, strict=True):
            rows[..., columns] = layer
        if not self._has_pivot and rows.numel():
            self.pivot_X, self._has_pivot = exact_mean(rows.flatten(0, -2)), True
        return rows.sub_(self.pivot_X)

    def add(self, rows: Tensor, *, partners: Tensor | None = None, num_rows: int | None = None) -> None:
        """Add rows (..., X) about the pivot.

        Rows Lz that a linear operator L would make of fewer rows z are never made: give z, `partners` L'Lz and the
        number of rows of Lz. For (Lz)'(Lz) = z'(L'Lz), and the rows Lz sum to what the partners sum to, where L's
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
        """Read each layer's products with itself from those of all layers with all, which are summed elsewhere."""
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
    """Find out of which layers the activations were finite, for all of these sums to know: one transfer."""
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

    def __init__(self, x: RowSums, y: RowSums):
        self.x, self.y = x, y
        self.xy_XY = x.pivot_X.new_zeros(len(x.pivot_X), len(y.pivot_X))
        self._blocks = [(slice(0, len(x.pivot_X)), len(y.pivot_X))]  # rows of the products, multiplied up to a column
        if x is y:
            self._blocks = [(block, block.stop) for block in _blocks(x.slices)]
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

    Where many rows make a small product there is little to share out but the rows: slices of them are multiplied side
    by side. Two threads of an AMD EPYC took 0.5 to 1 times as long for 32 to 256 features a side.
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
    """Return how many small products a device finds side by side."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return torch.get_num_threads()


def _blocks(layers: Sequence[slice]) -> list[slice]:
    """Return the columns of layers that lie side by side as blocks of whole layers, of `BLOCK` features or more."""
    blocks: list[slice] = []
    for columns in layers:
        if blocks and blocks[-1].stop - blocks[-1].start < BLOCK:
            blocks[-1] = slice(blocks[-1].start, columns.stop)
        else:
            blocks.append(columns)
    return blocks


def exact_mean(exact: Tensor, dim: int = 0, *, keepdim: bool = False) -> Tensor:
    """Return the mean over float64 rows; that of equal float32 numbers is the number itself, so they centre to 0.

    Hence a division, and by a tensor: `Tensor.mean`, and on a GPU division by a number of the host, multiply by a
    rounded reciprocal.
    """
    return exact.sum(dim, keepdim=keepdim) / exact.new_full((), exact.shape[dim])


def within(values: Tensor, lowest: float, highest: float) -> Tensor:
    """Return values with those that rounding brought out of their bounds at them; what is further out stays to be seen.

    >>> within(torch.tensor([1 + 1e-12, 1.5, -1e-12], dtype=torch.float64), 0.0, 1.0).tolist()
    [1.0, 1.5, 0.0]
    """
    at_bound = values.clamp(lowest, highest)
    return torch.where((values - at_bound).abs() <= ROUNDING, at_bound, values)


def pair_moments(x_RD: Tensor, y_RE: Tensor) -> PairMoments:
    """Return the centred moments of two matrices with the same rows."""
    x, y = RowSums([x_RD.shape[1]], device=x_RD.device), RowSums([y_RE.shape[1]], device=y_RE.device)
    cross = CrossSums(x, y)
    rows_x, rows_y = x.centre([x_RD]), y.centre([y_RE])
    cross.add(rows_x, rows_y)
    x.add(rows_x)
    y.add(rows_y)
    return cross.pair(0, 0)
