"""Data sets: every process that opens the same `DataSpec` gets the same images in the same order.

A split is listed in sorted order and permuted by (seed, split name). `samples = n` takes the first n images of that
order, so smaller samples are subsets of larger ones. Importing this package does not import torch.
"""

from stitchgrid.datasets.images import Images, Split
from stitchgrid.datasets.natural_order import natural_order
from stitchgrid.datasets.opening import open_images

__all__ = ["Images", "Split", "natural_order", "open_images"]
