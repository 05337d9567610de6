"""Float64 second moments of two sets of features over the same rows.

Least squares, CCA, Procrustes and linear regression need nothing else. Moments add up over batches, workers and
machines, so one pass over the images serves all layer pairs exactly, in memory that does not grow with the number of
images.
"""

from stitchgrid.moments.arithmetic import exact_mean, within
from stitchgrid.moments.merging import Merger
from stitchgrid.moments.sides import RCOND, PairMoments, Side, alike, find_axes, principal_axes, together
from stitchgrid.moments.sums import NOT_FINITE, CrossSums, PivotedRows, RowSums, find_finite, pair_moments

__all__ = [
    "NOT_FINITE",
    "RCOND",
    "CrossSums",
    "Merger",
    "PairMoments",
    "PivotedRows",
    "RowSums",
    "Side",
    "alike",
    "exact_mean",
    "find_axes",
    "find_finite",
    "pair_moments",
    "principal_axes",
    "together",
    "within",
]
