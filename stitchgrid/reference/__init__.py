"""Every value by its textbook definition: the specification with which tests and `bench` compare the engine."""

from stitchgrid.reference.run import Reference

__all__ = ["Reference"]
