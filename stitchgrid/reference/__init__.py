"""Every value the textbook way: the specification in code, to which tests and `stitchgrid bench` hold the engine."""

from stitchgrid.reference.run import Reference

__all__ = ["Reference"]
