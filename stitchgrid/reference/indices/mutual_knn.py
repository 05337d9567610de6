"""Mutual k-nearest neighbours, Huh et al. 2024."""

from math import nan
from statistics import fmean

from torch import Tensor

from stitchgrid.reference.neighbours import nearest

READS = "flattened"


def mutual_knn(x_ND: Tensor, y_NE: Tensor, *, k: int) -> dict[str, float]:
    """Return the mean over images of |A & B| / k, A and B the image's k nearest others in either layer."""
    near_x, near_y = nearest(x_ND, k), nearest(y_NE, k)
    if near_x is None or near_y is None:
        return {"mutual_knn": nan}
    both = zip(near_x, near_y, strict=True)
    return {"mutual_knn": fmean(len(x_K & y_K) / k for x_K, y_K in both)}
