"""The atlas: every result of a sweep as heat maps, on one self-contained page and in figures."""

from stitchgrid.atlas.atlas import AtlasReport, draw_figures, write_atlas
from stitchgrid.atlas.figures import FORMATS, WIDTH, FigureOptions

__all__ = ["FORMATS", "WIDTH", "AtlasReport", "FigureOptions", "draw_figures", "write_atlas"]
