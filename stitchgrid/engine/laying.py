"""Laying rows of one layout on another, and the way back: `resize_rows` as a linear operator L, with its adjoint.

Products of rows laid on more positions need none of these: (Lx)'y = x'(L'y), and (Lx)'(Lx) = x'(L'Lx).

Shape suffixes: N images, P positions of the source, Q of the target, D features.
"""

import torch
from torch import Tensor

from stitchgrid.matchers.alignment import Layout, keeps_means, resize_rows
from stitchgrid.matchers.catalogue import Rules

SMALL_GRID = 64  # rows of the smaller side up to which a product with a matrix is faster than interpolation,
MATRIX_ROWS = 1024  # unless a source of more rows than these would make the matrix large


class Laying:
    """The operator between two layouts, in float64."""

    def __init__(self, source: Layout, target: Layout, rules: Rules, *, device: torch.device):
        self.source, self.target, self.rules = source, target, rules
        #: Whether L's weights sum to one for each row, so that means stay means.
        self.keeps_means = keeps_means(target, rules)
        self._matrix_QP: Tensor | None = None
        self._there_and_back_PP: Tensor | None = None
        if min(source.num_rows, target.num_rows) <= SMALL_GRID and source.num_rows <= MATRIX_ROWS:
            unit_1PP = torch.eye(source.num_rows, dtype=torch.float64, device=device)[None]
            self._matrix_QP = resize_rows(unit_1PP, source, target, rules)[0].contiguous()
            self._there_and_back_PP = self._matrix_QP.mT @ self._matrix_QP

    @property
    def enlarges(self) -> bool:
        """Whether the target has more rows."""
        return self.source.num_rows < self.target.num_rows

    def there(self, x_NPD: Tensor) -> Tensor:
        """Return Lx: (N, Q, D)."""
        if self._matrix_QP is not None:
            return self._matrix_QP @ x_NPD
        return resize_rows(x_NPD, self.source, self.target, self.rules)

    def back(self, y_NQD: Tensor) -> Tensor:
        """Return L'y: (N, P, D)."""
        if self._matrix_QP is not None:
            return self._matrix_QP.mT @ y_NQD
        with torch.enable_grad():
            start_NPD = y_NQD.new_zeros(len(y_NQD), self.source.num_rows, y_NQD.shape[2], requires_grad=True)
            return torch.autograd.grad(self.there(start_NPD), start_NPD, y_NQD)[0]

    def there_and_back(self, x_NPD: Tensor) -> Tensor:
        """Return L'Lx: (N, P, D)."""
        if self._there_and_back_PP is not None:
            return self._there_and_back_PP @ x_NPD
        with torch.enable_grad():
            x_NPD = x_NPD.detach().requires_grad_()
            laid_NQD = self.there(x_NPD)
            return torch.autograd.grad(laid_NQD, x_NPD, laid_NQD.detach())[0]
