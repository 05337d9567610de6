"""Where a network can be cut, and its halves: several activations in one pass, and the rest of the network alone.

A network can be cut at a tensor when every path from input to output passes through it. Values that do not change with
the input (parameters, constants) do not count.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, fx, nn

from stitchgrid.errors import JobFileError, nearest
from stitchgrid.models.freeze import freeze
from stitchgrid.models.probe import Probed, copy_graph, probe, probe_output
from stitchgrid.models.tokens import TokenLayout, TokenReader
from stitchgrid.models.trace import Call, Trace, ancestors, trace_network
from stitchgrid.records import Layer

KINDS = {3: "map", 2: "tokens", 1: "vector"}  # by the number of axes of one image's activation
OTHER = "other"  # cuts whose rows are not defined: windows, channel groups; they cannot be selected


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A tensor at which a network can be cut."""

    layer: Layer
    position: int  # of its operation in the graph

    @property
    def name(self) -> str:
        """The path of the deepest module whose output it is, else torchvision's node name."""
        return self.layer.name

    @property
    def node(self) -> str:
        """Torchvision's node name, unique in a network."""
        return self.layer.node

    @property
    def can_be_stitched(self) -> bool:
        """Whether it has rows of features: a map, a sequence of tokens or a vector."""
        return self.layer.kind != OTHER


class CutNetwork:
    """A frozen network, its cuts in order of execution, and its halves, which all share its weights.

    Move a network to its device before cutting it, not after.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, int, int], trace: Trace, cuts: tuple[Cut, ...]):
        self.module = module
        self.input_shape = input_shape
        self.cuts = cuts
        self.trace = trace
        self._by_node = {cut.node: cut for cut in cuts}
        self._parts: dict[tuple[fx.Node, ...], nn.Module] = {}  # by begin and outputs: compiling one takes a while

    @property
    def num_classes(self) -> int:
        """Number of class scores."""
        return self.cuts[-1].layer.shape[-1]

    @property
    def flops(self) -> float:
        """Multiply-adds times two of one forward pass of one image."""
        return self.cuts[-1].layer.flops

    @property
    def logits(self) -> str:
        """Node of the class scores: always a cut, the last one."""
        return self.cuts[-1].node

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call of a module while the network was traced, in order of their end."""
        return self.trace.calls

    def cut(self, node: str) -> Cut:
        """Return the cut at a node.

        Raises:
            JobFileError: If there is none.
        """
        if node not in self._by_node:
            raise JobFileError(
                f"{type(self.module).__name__} has no cut at node {node!r}; {nearest(node, self._by_node)}."
            )
        return self._by_node[node]

    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Return a function of images that gives the activations at these nodes, in this order, from one forward pass.

        The pass ends at the last of them. With `logits` among the nodes it is the whole network.
        """
        outputs = [self.trace.nodes[self.cut(node).position] for node in nodes]
        if not outputs:
            return lambda _: ()
        graph = self._part(self.trace.input, outputs)
        return graph if len(outputs) > 1 else lambda images: (graph(images),)

    def suffix(self, node: str) -> nn.Module:
        """Return the rest of the network behind a node: a module from its activation to the class scores."""
        return self._part(self.trace.nodes[self.cut(node).position], [self.trace.output])

    def _part(self, begin: fx.Node, outputs: Sequence[fx.Node]) -> nn.Module:
        key = (begin, *outputs)
        if key not in self._parts:
            needed = ancestors(list(outputs), stop=begin)
            nodes = [node for node in self.trace.nodes if node in needed]
            graph, _ = copy_graph(nodes, {begin: "x"}, outputs)
            self._parts[key] = fx.GraphModule(self.trace.targets, graph).eval()
        return self._parts[key]


def cut_network(module: nn.Module, input_shape: tuple[int, int, int]) -> CutNetwork:
    """Return the network with its cuts, for images of `input_shape` (channels, height, width); freezes it.

    Raises:
        InputError: If the network cannot be traced, refuses such images, or does not return class scores (N, classes).
    """
    freeze(module)
    expected = probe_output(module, input_shape)
    trace = trace_network(module)
    probed = probe(trace, module, input_shape, expected)
    reader = TokenReader(module, trace, probed)
    positions = [k for k in _bottlenecks(trace) if probed[trace.nodes[k]].shape is not None]
    names = _names(trace, positions)
    cuts = tuple(
        Cut(
            position=position,
            layer=_layer(
                name=name,
                node=trace.names[trace.nodes[position]],
                depth=order / (len(positions) - 1) if len(positions) > 1 else 1.0,
                probed=probed[trace.nodes[position]],
                read_tokens=partial(reader.layout, position),
            ),
        )
        for order, (position, name) in enumerate(zip(positions, names, strict=True))
    )
    return CutNetwork(module, input_shape, trace, cuts)


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


def _names(trace: Trace, positions: Sequence[int]) -> list[str]:
    """Return the names of the cuts at these positions, each of another name.

    A module called more than once has no output of its own, nor has one that returns what it was given.
    """
    num_calls = Counter(call.path for call in trace.calls)
    by_output: dict[fx.Node, str] = {}
    for call in trace.calls:  # the deepest first
        if call.output in call.made and num_calls[call.path] == 1:
            by_output.setdefault(call.output, call.path)
    nodes = [trace.nodes[position] for position in positions]
    taken = {by_output[node] for node in nodes if node in by_output}
    names = []
    for node in nodes:
        own = trace.names[node]
        names.append(by_output.get(node) or (f"node:{own}" if own in taken else own))
    return names


def _layer(*, name: str, node: str, depth: float, probed: Probed, read_tokens: Callable[[int], TokenLayout]) -> Layer:
    shape = probed.image_shape
    kind = OTHER if shape is None else KINDS.get(len(shape), OTHER)
    layout = TokenLayout()
    if kind == "map" and shape:
        layout = TokenLayout(grid=(shape[1], shape[2]))
    elif kind == "tokens" and shape:
        layout = read_tokens(shape[0])
    return Layer(
        name=name,
        node=node,
        depth=depth,
        kind=kind,
        shape=shape or probed.shape or (),
        flops=probed.flops,
        num_prefix=layout.num_prefix,
        grid=layout.grid,
    )
