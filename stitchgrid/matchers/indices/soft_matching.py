"""Soft matching of units (Khosla & Williams 2024), from second moments.

Shape suffixes: D features of the source, E of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from stitchgrid.errors import InputError
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import About, MomentIndex, Sizes
from stitchgrid.records import Layer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from stitchgrid.moments import PairMoments, Side

CONSTANT = 1e-20  # share of the largest variance up to which a unit's variance is rounding
MOST_STEPS = 10_000_000  # of the network simplex: 1,024 by 512 units take some thousands
ASSIGNMENT, TRANSPORT = 2_500.0, 6_000.0  # operations for each pair of units, about: measured at 128 to 1,024 units
MISSING = (
    "soft_matching of layers of unequal width needs POT, which is not installed; "
    "pip install 'stitchgrid[soft-matching]', or leave soft_matching out."
)


class SoftMatching(MomentIndex[NoParams]):
    """The highest mean correlation of matched units, in [-1, 1]: max sum_ij T_ij corr(x_i, y_j).

    T is a coupling of the units with uniform marginals, 1/D and 1/E: each unit is matched, and a unit of the narrower
    layer is matched with several of the wider. For equal widths some best T is an assignment. Correlations are signed,
    and 0 for constant units. NaN where a layer does not vary. The maximum is found exactly, on the host.
    """

    about = About(
        kind="soft_matching",
        family="index",
        summary="mean correlation of units under the best soft assignment",
        source="Khosla & Williams 2024",
        use=(
            "It shows whether single units are the same. Unequal widths need `pip install 'stitchgrid[soft-matching]'`."
        ),
        bias="the best of many assignments is above 0 for unrelated rows, and higher the fewer rows there are",
        not_when="features are not units: a rotation changes the value",
        metrics=(Metric(name="soft_matching", better="higher", bounds=(-1.0, 1.0), ends=UNIT),),
        score="soft_matching",
        symmetric=True,
        invariances=(frozenset({"shift", "scaling", "permutation"}), frozenset({"shift", "scaling", "permutation"})),
        most_features=1_024,
    )

    @classmethod
    def not_installed(cls, source: Layer, target: Layer) -> str | None:
        """Return how to get POT if widths differ and it is not installed, else None."""
        return MISSING if source.width != target.width and find_spec("ot") is None else None

    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return `soft_matching` of each pair: one transfer of all correlations.

        Raises:
            InputError: If widths differ and POT is not installed.
        """
        import torch

        from stitchgrid.moments import within

        tables = [_correlations(moments) for moments in pairs]
        numbers = torch.cat([table_DE.flatten() for table_DE in tables]).cpu()
        parts = zip(torch.split(numbers, [table_DE.numel() for table_DE in tables]), tables, strict=True)
        found = [_best_mean(part.view(table_DE.shape).numpy()) for part, table_DE in parts]
        return {"soft_matching": within(torch.tensor(found, dtype=torch.float64), -1.0, 1.0).to(tables[0].device)}

    def flops(self, sizes: Sizes) -> float:
        """Return the operations of the assignment, or of the transport, about."""
        each = ASSIGNMENT if sizes.source == sizes.target else TRANSPORT
        return each * sizes.source * sizes.target


def _correlations(moments: PairMoments) -> Tensor:
    """Return the correlations of all pairs of units, (D, E): 0 for constant units, NaN if a layer has no others."""
    return moments.xy_DE * _inverse_scales(moments.x)[:, None] * _inverse_scales(moments.y)


def _inverse_scales(side: Side) -> Tensor:
    """Return 1 over the root of each unit's scatter: 0 for constant units, NaN for all units if none varies."""
    import torch

    variances_D = side.scatter_DD.diagonal()
    largest = variances_D.amax()
    inverse_D = torch.where(variances_D > CONSTANT * largest, variances_D.rsqrt(), 0.0)
    return torch.where(largest > 0, inverse_D, torch.nan)


def _best_mean(correlations_DE: NDArray[np.float64]) -> float:
    """Return the highest mean correlation of a coupling with uniform marginals."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if np.isnan(correlations_DE).any():
        return float("nan")
    width_x, width_y = correlations_DE.shape
    if width_x == width_y:
        return float(correlations_DE[linear_sum_assignment(correlations_DE, maximize=True)].mean())
    try:
        import ot
    except ImportError:
        raise InputError(MISSING) from None
    uniform = np.full(width_x, 1 / width_x), np.full(width_y, 1 / width_y)
    coupling_DE, log = ot.emd(*uniform, 1.0 - correlations_DE, numItermax=MOST_STEPS, log=True)
    if log["warning"]:
        raise ArithmeticError(f"the transport between {width_x} and {width_y} units was not found: {log['warning']}")
    return float((coupling_DE * correlations_DE).sum())
