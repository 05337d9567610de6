"""Figures for papers: heat maps, profiles, best sources and scatters, each with its caption and its numbers.

Nothing here loads matplotlib before a figure is drawn.
"""

from stitchgrid.atlas.figures.options import FORMATS, WIDTH, FigureOptions

__all__ = ["FORMATS", "WIDTH", "FigureOptions"]
