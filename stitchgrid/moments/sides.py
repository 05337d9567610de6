"""Centred second moments of one layer pair, and the principal axes of each of its sides.

Shape suffixes: D and E features of one layer, K directions kept, r those of a basis.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

STACK_BYTES = 64 << 20  # of matrices of one shape that are decomposed together
RCOND = 1e-12  # eigenvalues below this share of the largest are rounding, not variance


def principal_axes(scatter_DD: Tensor, rcond: float = RCOND) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (K,) and eigenvectors (D, K) of a symmetric scatter matrix, largest first, K its rank.

    A matrix of zeros has rank 0. Least squares and CCA agree on the rank, since both call this function.

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
        """Return its `principal_axes` within the span of the basis, outside of which there is only rounding."""
        return self._outer(principal_axes(self.inner_rr, rcond))

    @property
    def inner_shape(self) -> torch.Size:
        """Shape of `inner_rr`."""
        return torch.Size([self.num_features, self.num_features])

    @property
    def inner_rr(self) -> Tensor:
        """Scatter in the coordinates of the basis; the whole scatter if there is no basis."""
        return self.scatter_DD if self.basis_Dr is None else self.basis_Dr.mT @ self.scatter_DD @ self.basis_Dr

    def _outer(self, axes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return axes if self.basis_Dr is None else (axes[0], self.basis_Dr @ axes[1])


def find_axes(sides: Iterable[Side]) -> None:
    """Find the `axes` of many sides together, and store them in each: one decomposition per width.

    If a decomposition fails, its sides are left out; the side that causes the failure raises it when its axes are read.
    """
    asked = list({id(side): side for side in sides if "axes" not in vars(side)}.values())
    for positions in alike(asked, lambda side: (side.inner_shape,)):
        some = [asked[position] for position in positions]
        with suppress(RuntimeError):  # the base of LinAlgError
            for side, axes in zip(some, _stacked_axes([side.inner_rr for side in some], RCOND), strict=True):
                vars(side)["axes"] = side._outer(axes)  # what the cached property would find


def alike(items: Sequence[T], shapes: Callable[[T], tuple[torch.Size, ...]]) -> Iterator[list[int]]:
    """Yield positions of items whose matrices have the same shapes, at most `STACK_BYTES` of matrices at a time."""
    found: dict[tuple[torch.Size, ...], list[int]] = {}
    for position, item in enumerate(items):
        found.setdefault(shapes(item), []).append(position)
    for some, positions in found.items():
        step = max(1, STACK_BYTES // max(1, 8 * sum(shape.numel() for shape in some)))
        yield from (positions[start : start + step] for start in range(0, len(positions), step))


def together(
    compute: Callable[[Sequence[T]], Tensor], items: Sequence[T], shapes: Callable[[T], tuple[torch.Size, ...]]
) -> Tensor:
    """Return the results of `compute` for all items, (B, ...), computed for one stack of `alike` items at a time."""
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
