"""A network -> the network with its cuts: by its graph, or, where it has none, by hooks."""

from torch import nn

from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.freeze import freeze
from stitchgrid.models.graph_cuts import cut_by_graph
from stitchgrid.models.probe import probe_output


def cut_network(module: nn.Module, input_shape: tuple[int, int, int]) -> CutNetwork:
    """Return the network with its cuts, for images of `input_shape` (channels, height, width); freezes it.

    Raises:
        InputError: If the network cannot be cut, refuses such images, or does not return class scores (N, classes).
    """
    freeze(module)
    expected = probe_output(module, input_shape)
    return cut_by_graph(module, input_shape, expected)
