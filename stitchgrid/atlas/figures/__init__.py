"""Figures for papers: heat maps, profiles, best sources and scatter plots, each with its caption and its numbers.

Importing this package does not import matplotlib.
"""

from stitchgrid.atlas.figures.options import FORMATS, WIDTH, FigureOptions

__all__ = ["FORMATS", "WIDTH", "FigureOptions"]
