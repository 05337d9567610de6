"""A network -> the network with its cuts: by its graph, or, where it has none, by hooks."""

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError
from stitchgrid.models.adapt import adapt
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.dry_run import NUM_IMAGES, checked_scores, position_axes, probe_output, probe_run
from stitchgrid.models.dtypes import settle_types
from stitchgrid.models.freeze import check_stays_in_eval, freeze
from stitchgrid.models.graph_cuts import cut_by_graph
from stitchgrid.models.hook_cuts import cut_by_hooks
from stitchgrid.models.memory import move
from stitchgrid.models.user_forward import error_line
from stitchgrid.records import ORDINARY, Interface


def cut_network(module: nn.Module, input_shape: tuple[int, int, int], interface: Interface = ORDINARY) -> CutNetwork:
    """Return the network with its cuts, for images of `input_shape` (channels, height, width).

    Freezes the network, adapts it to `interface`, and turns half and double weights into float32 where it runs so.

    Raises:
        InputError: If the network cannot be cut, refuses such images, does not return class scores (N, classes), or
            puts parts of itself into training mode.
    """
    adapt(freeze(module), interface)
    types = settle_types(module, input_shape, interface)
    output = probe_run(module, input_shape)
    check_stays_in_eval(module)
    if isinstance(output, Tensor) and output.shape == (NUM_IMAGES,):  # one score an image
        adapt(module, interface, casts_to=types.casts_to, is_column=True)
        output = output.reshape(-1, 1)
    elif interface.averages and (averaged := position_axes(output, input_shape)):
        adapt(module, interface, casts_to=types.casts_to, averaged=averaged)
        output = output.mean(averaged)
    network = _cut(module, input_shape, checked_scores(module, output))
    network.types = types.said
    if interface.tokens is not None:
        network.lay_tokens(interface.tokens)
    return network


def _cut(module: nn.Module, input_shape: tuple[int, int, int], expected: Tensor) -> CutNetwork:
    try:
        return cut_by_graph(module, input_shape, expected)
    except InputError as by_graph:
        try:
            return cut_by_hooks(module, input_shape, expected, reason=_in_short(by_graph))
        except InputError as by_hooks:
            raise InputError(f"{by_graph} Nor can it be cut through hooks on its modules: {by_hooks}") from by_graph


def cut_network_on(
    device: torch.device,
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    name: str,
    interface: Interface = ORDINARY,
) -> CutNetwork:
    """Return the network with its cuts on a device; `name` is the model's, for errors.

    On devices other than CPUs, weights of convolutions are stored in the channels-last memory format, as the images
    are: otherwise kernels would convert the weights at each use.

    Raises:
        InputError: As `cut_network` does, or if there is not enough memory.
    """
    network = cut_network(move(module, device, name), input_shape, interface)
    if device.type != "cpu":
        prefer_channels_last(network)
    return network


def prefer_channels_last(network: CutNetwork) -> None:
    """Bring weights of convolutions into the channels-last memory format, where the network's own forward still runs.

    Maps take the format of their convolution's weight, and some calls of `view` fail on maps in channels-last. Halves
    cut by a graph work without such views; halves cut by hooks do not, so their weights stay as they are.
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
    """Return the notice about a network that is not cut by its graph, None for others.

    >>> way_notice("net", "graph")
    >>> way_notice("net", "hooks")
    'net cannot be traced; it is cut through hooks on its modules, which is slower'
    """
    if way in ("graph", "features"):
        return None
    why = f" ({reason})" if reason else ""
    return f"{name} cannot be traced{why}; it is cut through hooks on its modules, which is slower"


def types_notice(name: str, types: str, precision: str) -> str | None:
    """Return the notice about a network whose weights are not float32, None for others.

    >>> types_notice("net", "bfloat16 weights, run in float32", "fp32")
    'net has bfloat16 weights, run in fp32'
    """
    return f"{name} has {types}".replace("float32", precision) if types else None


def _in_short(problem: InputError) -> str:
    """Return why a network could not be traced, without the advice."""
    cause = problem.__cause__
    text = error_line(cause) if cause is not None else str(problem).split(";")[0]
    return text.strip().splitlines()[0].rstrip(".")
