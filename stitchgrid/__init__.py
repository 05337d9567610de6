"""stitchgrid: do two neural networks compute the same thing, layer by layer?"""

__version__ = "0.2.0"
