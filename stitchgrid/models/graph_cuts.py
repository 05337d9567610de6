"""Cutting a network by its graph: every tensor through which all paths pass, and exact halves that share its weights.

Values that do not change with the input (parameters, constants) are left out of account.
"""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stitchgrid.models.adapt import repeat_for
from stitchgrid.models.axes import AxisReading
from stitchgrid.models.axis_inference import follow_axes, recurrent_part
from stitchgrid.models.blocks import ACTIVATIONS, block_calls
from stitchgrid.models.cuts import Cut, CutNetwork, Operations, as_made, as_seen, head_of, make_layer
from stitchgrid.models.dry_run import Probed, probe
from stitchgrid.models.symbolic_sizes import SymbolicSize, copied_size, find_sizes, varying
from stitchgrid.models.trace import Trace, ancestors, trace_network

_FUNCTIONS = frozenset(  # of torch, torch.nn.functional and tensors
    {"celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu"}
    | {"relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink"}
)


_RESHAPING = frozenset({"reshape", "view", "flatten", "squeeze", "unsqueeze", "contiguous", "float", "double", "to"})
SHAPES = 64  # most input shapes for which a half is compiled: stacks, batches, last batches, with gradients or not


class GraphNetwork(CutNetwork):
    """A network cut by its graph."""

    way = "graph"

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, int, int],
        trace: Trace,
        cuts: Sequence[Cut],
        sizes: Mapping[fx.Node, SymbolicSize],
    ):
        nodes = tuple(trace.names[node] for node in trace.nodes)
        activations = frozenset(k for k, node in enumerate(trace.nodes) if _is_activation(trace, node))
        recurrent = frozenset(k for k, node in enumerate(trace.nodes) if recurrent_part(trace, node) is not None)
        operations = Operations(nodes=nodes, activations=activations, calls=trace.calls, recurrent=recurrent)
        super().__init__(module, input_shape, cuts, operations)
        self.trace, self.sizes = trace, sizes
        self._parts: dict[tuple[Cut | None, ...], nn.Module] = {}  # by first cut and outputs: making one takes a while
        self._compiled: dict[nn.Module, nn.Module] = {}

    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: D102
        outputs = [self.cut(node) for node in nodes]
        if not outputs:
            return lambda _: ()
        graph = self._part(None, outputs)
        return graph if len(outputs) > 1 else lambda images: (graph(images),)

    def suffix(self, node: str) -> nn.Module:  # noqa: D102
        return self._part(self.cut(node), self.cuts[-1:])

    def behind(self, node: str, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: D102
        part = self._part(self.cut(node), [self.cut(later) for later in nodes])
        return part if len(nodes) > 1 else lambda a: (part(a),)

    @property
    def ends_in(self) -> str | None:  # noqa: D102
        node = self.trace.output
        while _says(node) in _RESHAPING and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        module = self.trace.targets[str(node.target)] if node.op == "call_module" else None
        if module is not None:
            return head_of(module)
        word = _says(node)
        dims = [value for value in (*node.args[1:2], node.kwargs.get("dim")) if value is not None]
        return word if word == "sigmoid" or (word == "softmax" and set(dims) <= {1, -1}) else None

    def _part(self, begin: Cut | None, outputs: Sequence[Cut]) -> nn.Module:
        part = self._plain_part(begin, outputs)
        if not self.compiles:
            return part
        if part not in self._compiled:
            # A half that cannot be compiled here runs as it is, with a warning.
            torch._dynamo.config.suppress_errors = True
            torch._dynamo.config.recompile_limit = SHAPES  # type: ignore[assignment,unused-ignore]
            # It is compiled for each shape at its first use.
            self._compiled[part] = cast(nn.Module, torch.compile(part, dynamic=False))
        return self._compiled[part]

    def _plain_part(self, begin: Cut | None, outputs: Sequence[Cut]) -> nn.Module:
        key = (begin, *outputs)
        if key not in self._parts:
            self._parts[key] = fx.GraphModule(self.trace.targets, self._graph(begin, outputs)).eval()
        return self._parts[key]

    def _graph(self, begin: Cut | None, outputs: Sequence[Cut]) -> fx.Graph:
        """Return the graph from the images or a cut's activation on; activations have the images first, in float32."""
        first = self.trace.nodes[begin.position] if begin else self.trace.input
        ends = [self.trace.nodes[cut.position] for cut in outputs]
        sizes = self.sizes if begin else {}
        needed = ancestors(ends, stop=first, known=sizes)
        graph = fx.Graph()
        x = graph.placeholder("x")
        copies = {first: x if begin is None or begin.is_plain else graph.call_function(as_made, (x, *begin.own_form))}
        for node in self.trace.nodes:
            if node in sizes:
                copies[node] = copied_size(graph, x, sizes[node])
            elif node in needed and node not in copies:
                origin = {self.trace.input: x} if node.target is repeat_for else copies
                copies[node] = graph.node_copy(node, origin.__getitem__)
        values = tuple(
            copies[node] if cut.is_plain else graph.call_function(as_seen, (copies[node], *cut.own_form))
            for node, cut in zip(ends, outputs, strict=True)
        )
        graph.output(values[0] if len(values) == 1 else values)
        return graph


def cut_by_graph(module: nn.Module, input_shape: tuple[int, int, int], expected: Tensor) -> GraphNetwork:
    """Return a frozen network with its cuts; `expected` are its scores of `probe_input`.

    Raises:
        InputError: If the network cannot be traced, or its graph gives other scores.
    """
    trace = trace_network(module)
    probed = probe(trace, module, input_shape, expected)
    readings = {node: one for node, one in follow_axes(trace, probed).items() if probed[node].dtype.is_floating_point}
    positions, sizes = _positions(trace, probed, readings, lambda: find_sizes(trace, module, input_shape))
    return GraphNetwork(module, input_shape, trace, _cuts(trace, probed, readings, positions), sizes)


def _positions(
    trace: Trace,
    probed: Mapping[fx.Node, Probed],
    readings: Mapping[fx.Node, AxisReading],
    sizes: Callable[[], Mapping[fx.Node, SymbolicSize]],
) -> tuple[list[int], Mapping[fx.Node, SymbolicSize]]:
    """Return the positions of the cuts, and the sizes that may bypass them: none unless this makes more blocks cuts."""

    def found(known: Container[fx.Node]) -> tuple[list[int], int]:
        tensors = [k for k in _bottlenecks(trace, known) if probed[trace.nodes[k]].shape is not None]
        return tensors, len(block_calls(trace.calls, [k for k in tensors if trace.nodes[k] in readings]))

    positions, num_blocks = found(frozenset())
    if found(trace.dependent - varying(trace))[1] == num_blocks:
        return positions, {}
    known = sizes()
    more, num_more = found(known)
    return (more, known) if num_more > num_blocks else (positions, {})


def _cuts(
    trace: Trace, probed: Mapping[fx.Node, Probed], readings: Mapping[fx.Node, AxisReading], positions: Sequence[int]
) -> list[Cut]:
    stitchable = [k for k in positions if trace.nodes[k] in readings]
    cuts = []
    for order, (position, name) in enumerate(zip(positions, _names(trace, positions, stitchable), strict=True)):
        node = trace.nodes[position]
        reading, made = readings.get(node), probed[node]
        layer = make_layer(
            name=name,
            node=trace.names[node],
            depth=order / (len(positions) - 1) if len(positions) > 1 else 1.0,
            shape=_shape(made, reading),
            flops=made.flops,
            reading=reading,
        )
        images, windows = (reading.images, reading.windows) if reading else (0, None)
        own = {"images": images, "dtype": made.dtype, "order": made.order, "windows": windows}
        cuts.append(Cut(position=position, layer=layer, **own))  # type: ignore[arg-type]
    return cuts


def _shape(made: Probed, reading: AxisReading | None) -> tuple[int, ...]:
    """Return the shape of one image's part, or of the whole tensor where the part is not known."""
    shape = made.shape or ()
    if reading is not None and reading.windows is not None:
        return reading.windows[2][1:]
    if reading is not None and reading.images:
        return shape[: reading.images] + shape[reading.images + 1 :]
    return made.image_shape or shape


def _bottlenecks(trace: Trace, known: Container[fx.Node] = frozenset()) -> list[int]:
    """Return the positions of the nodes, but not of the input, whose value is the only one that later nodes need.

    Values in `known`, which the rest of the network can make itself, do not count.
    """
    last_use = {node: k for k, user in enumerate(trace.nodes) for node in user.all_input_nodes}
    last_use[trace.output] = len(trace.nodes)
    live: set[fx.Node] = set()
    found = []
    for k, node in enumerate(trace.nodes):
        live = {value for value in live if last_use[value] > k}
        if node in trace.dependent and node not in known:
            live.add(node)
            if len(live) == 1 and node is not trace.input:
                found.append(k)
    return found


def _names(trace: Trace, positions: Sequence[int], stitchable: Sequence[int]) -> list[str]:
    """Return the names of the cuts at these positions; no two are the same.

    A cut has the name of the block whose output it is, else that of the deepest module. A module that is called more
    than once has no output of its own; nor has one that returns its input.
    """
    num_calls = Counter(call.path for call in trace.calls)
    by_output: dict[int, str] = {}
    blocks = [call for call, last in block_calls(trace.calls, stitchable) if call.output == last]
    for call in [*blocks, *trace.calls]:  # the deepest first
        if call.output is not None and num_calls[call.path] == 1:
            by_output.setdefault(call.output, call.path)
    taken = {by_output[position] for position in positions if position in by_output}
    names = []
    for position in positions:
        own = trace.names[trace.nodes[position]]
        names.append(by_output.get(position) or (f"node:{own}" if own in taken else own))
    return names


def _says(node: fx.Node) -> str:
    """Return the name of a function or method."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _is_activation(trace: Trace, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(trace.targets[str(node.target)], ACTIVATIONS)
    if node.op == "call_method":
        return node.target in _FUNCTIONS
    name = getattr(node.target, "__name__", "")
    return name in _FUNCTIONS and node.target in (getattr(torch, name, None), getattr(F, name, None))
