"""Data word -> the same images for everyone: who opens a `DataSpec` sees the same pixels in one order.

A split is listed in sorted order and permuted by (seed, split name); n samples are its first n, so that samples nest.
Importing this package loads no torch: it is imported where a tensor is made.
"""

from stitchgrid.datasets.images import Images, Split
from stitchgrid.datasets.natural_order import natural_order
from stitchgrid.datasets.opening import open_images

__all__ = ["Images", "Split", "natural_order", "open_images"]
