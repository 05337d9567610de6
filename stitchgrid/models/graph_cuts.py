"""Cutting a network by its graph: every tensor through which all paths pass, and exact halves that share its weights.

Values that do not change with the input (parameters, constants) do not count.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stitchgrid.models.blocks import ACTIVATIONS, block_calls
from stitchgrid.models.cuts import Cut, CutNetwork, Operations, make_layer
from stitchgrid.models.follow import follow_axes
from stitchgrid.models.probe import Probed, copy_graph, probe
from stitchgrid.models.trace import Trace, ancestors, trace_network

_FUNCTIONS = frozenset(  # of torch, torch.nn.functional and tensors
    {"celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu"}
    | {"relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink"}
)


SHAPES = 64  # of its input for which a half is compiled: stacks and batches, whole and last, with gradients or not


class GraphNetwork(CutNetwork):
    """A network cut by its graph."""

    way = "graph"

    def __init__(self, module: nn.Module, input_shape: tuple[int, int, int], trace: Trace, cuts: Sequence[Cut]):
        nodes = tuple(trace.names[node] for node in trace.nodes)
        activations = frozenset(k for k, node in enumerate(trace.nodes) if _is_activation(trace, node))
        super().__init__(module, input_shape, cuts, Operations(nodes=nodes, activations=activations, calls=trace.calls))
        self.trace = trace
        self._parts: dict[tuple[fx.Node, ...], nn.Module] = {}  # by begin and outputs: making one takes a while
        self._compiled: dict[nn.Module, nn.Module] = {}

    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: D102
        outputs = [self.trace.nodes[self.cut(node).position] for node in nodes]
        if not outputs:
            return lambda _: ()
        graph = self._part(self.trace.input, outputs)
        return graph if len(outputs) > 1 else lambda images: (graph(images),)

    def suffix(self, node: str) -> nn.Module:  # noqa: D102
        return self._part(self.trace.nodes[self.cut(node).position], [self.trace.output])

    def _part(self, begin: fx.Node, outputs: Sequence[fx.Node]) -> nn.Module:
        part = self._plain_part(begin, outputs)
        if not self.compiles:
            return part
        if part not in self._compiled:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled here runs as it is, with a warning
            torch._dynamo.config.recompile_limit = SHAPES  # type: ignore[assignment,unused-ignore]
            self._compiled[part] = cast(nn.Module, torch.compile(part, dynamic=False))  # for each shape, when it comes
        return self._compiled[part]

    def _plain_part(self, begin: fx.Node, outputs: Sequence[fx.Node]) -> nn.Module:
        key = (begin, *outputs)
        if key not in self._parts:
            needed = ancestors(list(outputs), stop=begin)
            nodes = [node for node in self.trace.nodes if node in needed]
            graph, _ = copy_graph(nodes, {begin: "x"}, outputs)
            self._parts[key] = fx.GraphModule(self.trace.targets, graph).eval()
        return self._parts[key]


def cut_by_graph(module: nn.Module, input_shape: tuple[int, int, int], expected: Tensor) -> GraphNetwork:
    """Return a frozen network with its cuts; `expected` are its scores of `probe_input`.

    Raises:
        InputError: If the network cannot be traced, or its graph gives other scores.
    """
    trace = trace_network(module)
    probed = probe(trace, module, input_shape, expected)
    return GraphNetwork(module, input_shape, trace, _cuts(trace, probed))


def _cuts(trace: Trace, probed: Mapping[fx.Node, Probed]) -> list[Cut]:
    readings = follow_axes(trace, probed)
    positions = [k for k in _bottlenecks(trace) if probed[trace.nodes[k]].shape is not None]
    stitchable = [k for k in positions if trace.nodes[k] in readings]
    cuts = []
    for order, (position, name) in enumerate(zip(positions, _names(trace, positions, stitchable), strict=True)):
        node = trace.nodes[position]
        layer = make_layer(
            name=name,
            node=trace.names[node],
            depth=order / (len(positions) - 1) if len(positions) > 1 else 1.0,
            shape=probed[node].image_shape or probed[node].shape or (),
            flops=probed[node].flops,
            reading=readings.get(node),
        )
        cuts.append(Cut(position=position, layer=layer))
    return cuts


def _bottlenecks(trace: Trace) -> list[int]:
    """Return the positions of the nodes, but the input, after which they alone of all values made so far are needed."""
    last_use = {node: k for k, user in enumerate(trace.nodes) for node in user.all_input_nodes}
    last_use[trace.output] = len(trace.nodes)
    live: set[fx.Node] = set()
    found = []
    for k, node in enumerate(trace.nodes):
        live = {value for value in live if last_use[value] > k}
        if node in trace.dependent:
            live.add(node)
            if len(live) == 1 and node is not trace.input:
                found.append(k)
    return found


def _names(trace: Trace, positions: Sequence[int], stitchable: Sequence[int]) -> list[str]:
    """Return the names of the cuts at these positions, each of another name.

    That of the block whose output it is, else that of the deepest module. A module called more than once has no output
    of its own, nor has one that returns what it was given.
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


def _is_activation(trace: Trace, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(trace.targets[str(node.target)], ACTIVATIONS)
    if node.op == "call_method":
        return node.target in _FUNCTIONS
    name = getattr(node.target, "__name__", "")
    return name in _FUNCTIONS and node.target in (getattr(torch, name, None), getattr(F, name, None))
