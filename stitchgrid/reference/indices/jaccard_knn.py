"""Jaccard similarity of k-nearest neighbours, Schumacher et al. 2021."""

from math import nan
from statistics import fmean

from torch import Tensor

from stitchgrid.reference.neighbours import nearest

READS = "flattened"


def jaccard_knn(x_ND: Tensor, y_NE: Tensor, *, k: int) -> dict[str, float]:
    """Return the mean over images of |A & B| / |A | B|, A and B the image's k nearest others in either layer."""
    near_x, near_y = nearest(x_ND, k), nearest(y_NE, k)
    if near_x is None or near_y is None:
        return {"jaccard_knn": nan}
    both = zip(near_x, near_y, strict=True)
    return {"jaccard_knn": fmean(len(x_K & y_K) / len(x_K | y_K) for x_K, y_K in both)}
