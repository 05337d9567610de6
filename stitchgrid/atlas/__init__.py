"""The atlas: every result of a sweep as heat maps, on one self-contained page and in figures."""

from stitchgrid.atlas.atlas import AtlasReport, write_atlas

__all__ = ["AtlasReport", "write_atlas"]
