"""Every index and closed-form stitcher on two plain matrices with the same rows, without networks or images."""

from typing import Any

from torch import Tensor

from stitchgrid.matchers.gram import ROUNDING, Gram, centred_gram, product_type, spreads
from stitchgrid.matchers.protocol import ClosedForm, Fit, GramIndex, Kind, MomentIndex
from stitchgrid.matchers.registry import kind_of
from stitchgrid.moments import Merger, pair_moments


def index_of_rows(kind: str, x_ND: Tensor, y_NE: Tensor, **params: object) -> dict[str, float]:
    """Return each metric of an index of two matrices with one row per image: (N, D) and (N, E).

    Raises:
        ValueError: If the matrices differ in their number of rows, or the kind is no index.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    >>> index_of_rows("procrustes", x, x)
    {'procrustes': 0.0}
    """
    if x_ND.dim() != 2 or y_NE.dim() != 2 or len(x_ND) != len(y_NE):
        raise ValueError(
            f"{kind} compares two matrices with one row per image, (N, D) and (N, E); got {tuple(x_ND.shape)} and "
            f"{tuple(y_NE.shape)}."
        )
    index = _made(kind, params)
    if isinstance(index, MomentIndex):
        found = index.compare([pair_moments(x_ND, y_NE)])
    elif isinstance(index, GramIndex):
        found = index.compare([(index.prepare(gram_of_rows(x_ND)), index.prepare(gram_of_rows(y_NE)))])
    else:
        raise ValueError(f"{kind} is no index: it finds a map; use fit_rows.")
    return {metric: value_B.item() for metric, value_B in found.items()}


def gram_of_rows(x_NP: Tensor) -> Gram:
    """Return the Gram matrix, with all that kinds read of it, of a layer's flattened activations (N, P)."""
    mean_N, spread_N = spreads([x_NP])
    return Gram(
        centred_NN=centred_gram(x_NP),
        num_features=x_NP.shape[1],
        mean_N=mean_N,
        spread_N=spread_N,
        rounding=ROUNDING[product_type(x_NP.dtype)],
    )


def fit_rows(kind: str, a_RD: Tensor, b_RE: Tensor, **params: object) -> Fit:
    """Return the map of a closed-form stitcher from rows to rows: (R, D) to (R, E).

    Raises:
        ValueError: If the kind is no closed-form stitcher.
    """
    stitcher = _made(kind, params)
    if not isinstance(stitcher, ClosedForm):
        raise ValueError(f"{kind} is no stitcher in closed form.")
    num = stitcher.num_folds
    groups = [pair_moments(a_RD[start::num], b_RE[start::num]) for start in range(num)]
    return stitcher.fit(pair_moments(a_RD, b_RE), Merger().folds(groups))


def _made(kind: str, params: dict[str, object]) -> Kind[Any]:
    of_kind = kind_of(kind)
    return of_kind(of_kind.about.params(**params))
