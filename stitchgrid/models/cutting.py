"""A network -> the network with its cuts: by its graph, or, where it has none, by hooks."""

import torch
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.freeze import freeze
from stitchgrid.models.graph_cuts import cut_by_graph
from stitchgrid.models.hook_cuts import cut_by_hooks
from stitchgrid.models.memory import move
from stitchgrid.models.probe import probe_output


def cut_network(module: nn.Module, input_shape: tuple[int, int, int]) -> CutNetwork:
    """Return the network with its cuts, for images of `input_shape` (channels, height, width); freezes it.

    Raises:
        InputError: If the network cannot be cut, refuses such images, or does not return class scores (N, classes).
    """
    freeze(module)
    expected = probe_output(module, input_shape)
    try:
        return cut_by_graph(module, input_shape, expected)
    except InputError as by_graph:
        try:
            return cut_by_hooks(module, input_shape, expected, reason=_in_short(by_graph))
        except InputError as by_hooks:
            raise InputError(f"{by_graph} Nor can it be cut through hooks on its modules: {by_hooks}") from by_graph


def cut_network_on(
    device: torch.device, module: nn.Module, input_shape: tuple[int, int, int], *, name: str
) -> CutNetwork:
    """Return the network with its cuts on a device; `name` is the model's, for errors.

    Elsewhere than on a CPU, weights of convolutions lie in the channels-last memory format, as the images do: kernels
    would bring them into it at each use.

    Raises:
        InputError: As `cut_network` does, or if there is not enough memory.
    """
    network = cut_network(move(module, device, name), input_shape)
    if device.type != "cpu":
        prefer_channels_last(network)
    return network


def prefer_channels_last(network: CutNetwork) -> None:
    """Bring weights of convolutions into the channels-last memory format, where the network's own forward bears it.

    Maps take the format of their convolution's weight, and there are views that they do not have in this one. Halves
    by a graph do without such views, those by hooks do not.
    """
    if network.way != "graph":
        return
    convolutions = [part for part in network.module.modules() if isinstance(part, nn.Conv2d)]
    before = [part.weight.data for part in convolutions]
    for part in convolutions:
        part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
    try:
        probe_output(network.module, network.input_shape)
    except InputError:
        for part, weight in zip(convolutions, before, strict=True):
            part.weight.data = weight


def way_notice(name: str, way: str, reason: str = "") -> str | None:
    """Return what to know of a network that is not cut by its graph.

    >>> way_notice("net", "graph")
    >>> way_notice("net", "hooks")
    'net cannot be traced; it is cut through hooks on its modules, which is slower'
    """
    if way == "graph":
        return None
    why = f" ({reason})" if reason else ""
    return f"{name} cannot be traced{why}; it is cut through hooks on its modules, which is slower"


def _in_short(problem: InputError) -> str:
    """Return what kept a network from being traced, without the advice."""
    cause = problem.__cause__
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(problem).split(";")[0]
    return text.strip().splitlines()[0].rstrip(".")
