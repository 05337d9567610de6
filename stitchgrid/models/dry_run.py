"""One run of a traced network on two images: what every operation makes and costs, and whether the scores agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stitchgrid.errors import InputError
from stitchgrid.models.adapt import described, further_arguments, output_line, runs
from stitchgrid.models.counting import FlopCounter
from stitchgrid.models.freeze import as_its_author_wrote_it
from stitchgrid.models.trace import Trace
from stitchgrid.models.user_forward import FAILURES, error_line, quietly

CHANNELS = (3, 1)  # of images that are not arrays of other channels
_OTHER_CHANNELS = "build it for them by its `args` (in timm: in_chans), or give it images as it takes them"
NUM_IMAGES = 2  # more than one, so that the axis of images differs from axes of size 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What one operation made."""

    shape: tuple[int, ...] | None  # for two images; None: not a tensor
    flops: float  # from the input to here, one image
    dtype: torch.dtype = torch.float32
    order: tuple[int, ...] = ()  # axes from the slowest to the fastest in memory

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of one image's share, None where images are not the first axis."""
        return self.shape[1:] if self.shape and self.shape[0] == NUM_IMAGES else None


def probe_input(module: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return two images of noise, always the same, on the network's device: float32 (2, C, H, W)."""
    weight = next(module.parameters(), torch.empty(0))
    return _noise(tuple(input_shape), weight.device).clone()


@lru_cache(maxsize=8)  # a network cut by hooks asks for it at each of its runs
def _noise(input_shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.rand((NUM_IMAGES, *input_shape), generator=torch.Generator().manual_seed(0)).to(device)


def probe_run(module: nn.Module, input_shape: Sequence[int]) -> Any:
    """Return what the network itself makes of the two images; attention runs as plain matrix products.

    Raises:
        InputError: If the network refuses images of that size.
    """
    try:
        with torch.no_grad(), quietly(), as_its_author_wrote_it(module), sdpa_kernel(SDPBackend.MATH):
            return module(probe_input(module, input_shape))
    except InputError:  # its message already says what is wrong with the model's table
        raise
    except FAILURES as problem:  # a network refuses a size with whatever its first failing operation raises
        raise InputError(
            f"{type(module).__name__} does not run on images of {_size(input_shape)} ({error_line(problem)}); "
            f"{_remedy(module, input_shape)}."
        ) from problem


def probe_output(module: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return the class scores of the two images by the network itself.

    Raises:
        InputError: If the network refuses images of that size, or its output is not one tensor (N, classes).
    """
    return checked_scores(module, probe_run(module, input_shape))


def checked_scores(module: nn.Module, output: Any) -> Tensor:
    """Return what a network made of the two images, in float32.

    Raises:
        InputError: If that is not one tensor (N, classes).
    """
    if not is_scores(output):
        line = output_line(output, NUM_IMAGES)
        hint = f"; name it in the model's table: {line}" if line else ""
        if isinstance(output, Tensor) and output.dim() in {3, 4}:
            hint = (
                '; these are scores of positions, not of images: head = "embedding" in the model\'s table takes their '
                "mean over an image, or let its forward return one row of scores an image"
            )
        raise InputError(
            f"{type(module).__name__} returns {described(output)} for {NUM_IMAGES} images; wanted one tensor of class "
            f"scores (N, classes){hint}."
        )
    scores: Tensor = output
    return scores.float()


def is_scores(output: Any) -> bool:
    """Return whether what a network made of the two images is one row of scores an image."""
    return isinstance(output, Tensor) and output.dim() == 2 and output.shape[0] == NUM_IMAGES


def position_axes(output: Any, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of positions in what a network made of the two images; empty where it has none.

    It is (N, tokens, features), or (N, C, H, W) or (N, H, W, C): the ratio of height to width is that of the images.

    Raises:
        InputError: If that ratio does not show which axes are height and width.
    """
    if not isinstance(output, Tensor) or output.dim() not in {3, 4} or output.shape[0] != NUM_IMAGES:
        return ()
    if output.dim() == 3:
        return (1,)
    height, width = input_shape[1:]
    found = [
        axes
        for axes in ((2, 3), (1, 2))
        if abs(output.shape[axes[0]] * width - output.shape[axes[1]] * height) < max(height, width)
    ]
    if len(found) != 1:
        raise InputError(
            f"it is not clear which axes of what it returns, {tuple(output.shape)} for {NUM_IMAGES} images, are height "
            "and width, so positions cannot be averaged; let its forward return one row an image."
        )
    return found[0]


def _remedy(module: nn.Module, input_shape: Sequence[int]) -> str:
    """Return what may help a network that refuses images of a shape."""
    channels, *size = input_shape
    for other in CHANNELS:
        noise = probe_input(module, (other, *size)) if other != channels else None
        if noise is not None and runs(lambda noise=noise: _runs_on(module, noise)):  # type: ignore[misc]
            if channels not in CHANNELS:
                return f"it takes {_channels(other)}, and the images have {channels}: {_OTHER_CHANNELS}"
            return (
                f"it takes {_channels(other)}, and the images have {channels}: set channels = {other} in its "
                "`preprocess`, or give it images as it takes them"
            )
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels not in {*CHANNELS, channels}:
        told = f"its first convolution takes {first.in_channels} channels, and "
        if channels not in CHANNELS:
            return f"{told}the images have {channels}: {_OTHER_CHANNELS}"
        return f"{told}images have 3, or 1 where a model asks; arrays have others if `channels` under [data] says so"
    wanted = getattr(module, "image_size", None)
    hint = f"it is made for {wanted}x{wanted}" if isinstance(wanted, int) else "choose another size"
    hint += ", with `resize` and `crop` in the model's `preprocess`, or change its `args`"
    given, further = further_arguments(module)
    if further:
        hint += f"; constants for further arguments of its forward ({', '.join(further)}) go into `inputs`"
    if given:
        hint += '; whole numbers in `inputs` are written { value = [3], dtype = "int64" }'
    return hint


def _runs_on(module: nn.Module, images: Tensor) -> None:
    with torch.no_grad(), quietly(), as_its_author_wrote_it(module):
        module(images)


def probe(trace: Trace, module: nn.Module, input_shape: Sequence[int], expected: Tensor) -> dict[fx.Node, Probed]:
    """Return what every operation of the graph makes, having checked that the graph's scores are the expected ones.

    Raises:
        InputError: If they are not, because network and graph differ or the network is random, or if an operation
            overwrites its input.
    """
    graph, copies = copy_graph(trace.nodes, {}, [trace.output])
    runner = _Runner(fx.GraphModule(trace.targets, graph), type(module).__name__)
    try:
        with torch.no_grad(), quietly():
            came = runner.run(probe_input(module, input_shape))
    except InputError:
        raise
    except FAILURES as problem:
        raise InputError(
            f"{type(module).__name__} fails when its traced graph is run ({error_line(problem)}); its forward must "
            "not depend on anything but its input."
        ) from problem
    if not torch.allclose(came.float(), expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise InputError(
            f"{type(module).__name__} does not give the same scores when its traced graph is run; its forward must not "
            "be random in eval mode (dropout without `training=self.training`), use a tensor after overwriting it in "
            "place, or depend on anything but its input."
        )
    return {node: runner.probed[copies[node].name] for node in trace.nodes}


def copy_graph(
    nodes: Sequence[fx.Node], inputs: dict[fx.Node, str], outputs: Sequence[fx.Node]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Return a graph of copies of `nodes`, in which `inputs` are placeholders, and the copy of every node."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(name) for node, name in inputs.items()}
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    values = tuple(copies[node] for node in outputs)
    graph.output(values[0] if len(values) == 1 else values)
    return graph, copies


class _Runner(fx.Interpreter):
    """Runs a graph node by node and notes what each makes and costs."""

    def __init__(self, graph: fx.GraphModule, name: str):
        super().__init__(graph)
        self.name = name
        self.extra_traceback = False  # torch would add it to messages for users
        self.probed: dict[str, Probed] = {}
        self.counter = FlopCounter()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        # attention as plain matrix products, as in `probe_output`: devices count fused kernels differently, or not at
        # all
        with sdpa_kernel(SDPBackend.MATH), self.counter:
            return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        given = [value for node in n.all_input_nodes if isinstance(value := self.env[node], Tensor)]
        versions = [value._version for value in given]
        made = super().run_node(n)
        if versions != [value._version for value in given]:
            raise InputError(
                f"{self.name} overwrites a tensor inside {n.name!r}, where it cannot be undone; cached activations "
                "would be wrong. Let the operation return a new tensor."
            )
        flops = self.counter.total / NUM_IMAGES
        if isinstance(made, Tensor):
            shape, order = tuple(made.shape), memory_order(made)
            self.probed[n.name] = Probed(shape=shape, flops=flops, dtype=made.dtype, order=order)
        else:
            self.probed[n.name] = Probed(shape=None, flops=flops)
        return made


def memory_order(value: Tensor) -> tuple[int, ...]:
    """Return the axes of a tensor from the slowest to the fastest in memory."""
    strides = value.stride()
    return tuple(sorted(range(value.dim()), key=lambda axis: -strides[axis]))


def _size(input_shape: Sequence[int]) -> str:
    channels, height, width = input_shape
    return f"{height}x{width} with {_channels(channels)}"


def _channels(num: int) -> str:
    return f"{num} channel{'s' if num > 1 else ''}"
