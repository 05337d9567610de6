"""Sizes in the graph of a network: integers that depend only on the number and the size of the images.

`batch, height, width = x.shape[0], x.shape[2], x.shape[3]` is often read once and used much later. Such integers do not
count as a path from the images to the scores: the rest of a network computes them again from its own input.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from stitchgrid.models.adapt import repeat_for
from stitchgrid.models.dry_run import NUM_IMAGES, copy_graph, probe_input
from stitchgrid.models.trace import Trace
from stitchgrid.models.user_forward import FAILURES, quietly

_QUERIES = {"size", "dim", "numel", repeat_for.__name__}


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolicSize:
    """An integer of a graph: a constant, or a multiple of the number of images."""

    fixed: int  # the constant; 0 for a multiple
    each: int  # the amount for each image; 0 for a constant


def varying(trace: Trace) -> frozenset[fx.Node]:
    """Return the values that change with the images, not only with their number and size."""
    found = {trace.input}
    for node in trace.nodes:
        if not _is_query(node) and found.intersection(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def _is_query(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUERIES
    is_shape = node.target is getattr and str(node.args[1]) == "shape"
    return is_shape or (node.op == "call_function" and getattr(node.target, "__name__", "") in _QUERIES)


def find_sizes(trace: Trace, module: nn.Module, input_shape: tuple[int, int, int]) -> dict[fx.Node, SymbolicSize]:
    """Return the sizes among the values of a graph, found by running it on two images and on three.

    Empty where the graph does not run on three.
    """
    changing = varying(trace)
    nodes = [node for node in trace.nodes if node in trace.dependent and node not in changing]
    two = probe_input(module, input_shape)
    try:
        first, second = (_integers(trace, nodes, some) for some in (two, torch.cat([two, two[:1]])))
    except FAILURES:  # a network refuses a number of images with whatever its first failing operation raises
        return {}
    found = {node: _size(first[node], second[node]) for node in first.keys() & second.keys()}
    return {node: size for node, size in found.items() if size is not None}


def copied_size(graph: fx.Graph, images: fx.Node, size: SymbolicSize) -> Any:
    """Return a size in the graph of a half: an integer, or a node that multiplies the number of images."""
    return graph.call_function(num_for, (images, size.each)) if size.each else size.fixed


def num_for(images: Tensor, each: int) -> int:
    """Return `each` times the number of images, the entries of the first axis.

    >>> num_for(torch.zeros(2, 3), 4)
    8
    """
    return len(images) * each


def _size(two: int, three: int) -> SymbolicSize | None:
    if two == three:
        return SymbolicSize(fixed=two, each=0)
    is_each = two % NUM_IMAGES == 0 and two // NUM_IMAGES * (NUM_IMAGES + 1) == three
    return SymbolicSize(fixed=0, each=two // NUM_IMAGES) if is_each else None


def _integers(trace: Trace, nodes: list[fx.Node], images: Tensor) -> dict[fx.Node, int]:
    graph, copies = copy_graph(trace.nodes, {}, [trace.output])
    runner = _Runner(fx.GraphModule(trace.targets, graph))
    with torch.no_grad(), quietly():
        runner.run(images)
    return {node: runner.seen[name] for node in nodes if (name := copies[node].name) in runner.seen}


class _Runner(fx.Interpreter):
    """Runs a graph node by node and notes the integers."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.extra_traceback = False
        self.seen: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if type(made) is int:
            self.seen[n.name] = made
        return made
