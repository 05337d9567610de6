"""A frozen network -> its graph of operations: traced, nothing in place, nothing that the output does not need."""

import inspect
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stitchgrid.errors import InputError
from stitchgrid.models.adapt import repeat_for
from stitchgrid.models.cuts import Call
from stitchgrid.models.leaves import ENCODERS, encoder_forward, timm_leaves
from stitchgrid.models.user_forward import FAILURES, error_line, quietly
from stitchgrid.vision import NodePathTracer, default_tracer_kwargs


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The graph of a network, and the calls of modules that made its values."""

    nodes: tuple[fx.Node, ...]  # the input first, the output node left out; all are needed for the output
    input: fx.Node
    output: fx.Node
    dependent: frozenset[fx.Node]  # values that change with the input
    names: dict[fx.Node, str]  # torchvision's node names
    calls: tuple[Call, ...]  # in order of their end, so the deepest first
    targets: dict[str, Any]  # modules, parameters and constants that nodes refer to


class _Tracer(NodePathTracer):  # type: ignore[misc]  # torchvision is untyped
    """Torchvision's tracer, which also notes the calls of modules, and looks into torch's transformer encoders."""

    def __init__(self, *, looks_into_encoders: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.looks_into_encoders = looks_into_encoders
        self.records: list[tuple[str, nn.Module, int, int, Any]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operation."""
        if self.looks_into_encoders and type(m) in ENCODERS:
            return False
        return isinstance(m, torch.jit.ScriptModule) or bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace the call as torchvision does, and note what it made and returned."""
        begin = len(self.node_to_qualname)
        if self.looks_into_encoders and type(m) in ENCODERS:
            forward = _begun(encoder_forward(m) if isinstance(m, nn.TransformerEncoder) else forward)
        value = super().call_module(m, forward, args, kwargs)
        self.records.append((self.path_of_module(m), m, begin, len(self.node_to_qualname), value))
        return value

    def name_encoders(self) -> None:
        """Name the output of an encoder as if the encoder were one operation: the name is part of addresses."""
        nodes, taken = list(self.node_to_qualname), set(self.node_to_qualname.values())
        num_calls = Counter[str]()
        for path, module, begin, end, value in self.records:
            if type(module) in ENCODERS and isinstance(value, fx.Proxy) and value.node in nodes[begin:end]:
                name = f"{path}_{num_calls[path]}" if num_calls[path] else path
                num_calls[path] += 1
                if name not in taken:
                    self.node_to_qualname[value.node] = name

    def calls(self, kept: tuple[fx.Node, ...], successors: dict[fx.Node, fx.Node]) -> tuple[Call, ...]:
        """Return the calls noted so far, in order of their end, in terms of the operations that are kept."""
        nodes = list(self.node_to_qualname)
        positions = {node: k for k, node in enumerate(kept)}
        found = []
        for path, module, begin, end, value in self.records:
            made = set(nodes[begin:end])
            output = value.node if isinstance(value, fx.Proxy) else None
            while output is not None and (successor := successors.get(output)) in made:
                output = successor  # the value that replaced its output inside it
            found.append(
                Call(
                    path=path,
                    type=type(module),
                    is_leaf=self.is_leaf_module(module, path),
                    has_weights=any(True for _ in module.parameters()),
                    made=frozenset(positions[node] for node in made if node in positions),
                    output=positions.get(output) if output is not None and output in made else None,
                )
            )
        return tuple(found)


def _begun(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Create nodes of arguments when a module is called, as for an operation: their names are part of addresses.

    torch.fx creates nodes of attributes, such as `x.mT`, only where they are first used.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _ = value.node if isinstance(value, fx.Proxy) else None
        return forward(*args, **kwargs)

    return run


def trace_network(module: nn.Module) -> Trace:
    """Return the graph of a frozen network that returns one tensor; the graph shares its weights.

    Raises:
        InputError: If torch.fx cannot follow the network, or the network overwrites a tensor in a way that cannot be
            undone.
    """
    name = type(module).__name__
    before = set(vars(module))
    try:
        with quietly():
            tracer, graph = _graph(module)
        targets = _rename_targets(module, graph)
    except FAILURES as problem:  # fx stops on user code in many ways
        raise InputError(
            f"{name} cannot be traced by torch.fx ({error_line(problem)}); its forward must not branch "
            "on values of its input. Functions that must not be looked into can be marked with torch.fx.wrap."
        ) from problem
    finally:
        for constant in set(vars(module)) - before:  # tensors made by forward, which the tracer leaves on the network
            delattr(module, constant)
    tracer.name_encoders()
    names = {node: tracer.node_to_qualname.get(node, node.name) for node in graph.nodes}
    successors = _undo_in_place(graph, name)
    _let_views_copy(graph)
    nodes = _needed(graph, name)
    return Trace(
        nodes=nodes,
        input=nodes[0],
        output=_output(graph),
        dependent=_dependent(nodes),
        names={node: names[node] for node in nodes},
        calls=tracer.calls(nodes, successors),
        targets=targets,
    )


def _graph(module: nn.Module) -> tuple[_Tracer, fx.Graph]:
    """Return the graph as fx traces it; encoders and parts of timm that it cannot follow are one operation each."""

    def traced(*, looks_into_encoders: bool = True, **leaves: Any) -> tuple[_Tracer, fx.Graph]:
        tracer = _Tracer(looks_into_encoders=looks_into_encoders, **default_tracer_kwargs(leaves))
        return tracer, tracer.trace(module, concrete_args=_defaults(module) or None)

    try:
        return traced()
    except FAILURES:  # fx stops on user code in many ways
        if any(type(part) in ENCODERS for part in module.modules()):
            try:
                return traced(looks_into_encoders=False)
            except FAILURES:
                pass
        leaves = timm_leaves(module)
        if leaves is None:
            raise
        return traced(leaf_modules=list(leaves.modules), autowrap_functions=leaves.functions)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Return the default values of forward's further arguments: the network is called with its input alone."""
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _rename_targets(module: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """Rename what the nodes refer to, to names that no attribute of a graph module has; return it by these names."""
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in {"call_module", "get_attr"}:
            path = str(node.target)
            node.target = names.setdefault(path, f"part_{len(names)}")
            found[node.target] = _target(module, path)
    return found


def _target(module: nn.Module, path: str) -> Any:
    value: Any = module
    for word in path.split("."):
        stores = (vars(value).get(store, {}) for store in ("_modules", "_parameters", "_buffers"))
        held = next((some for some in stores if word in some), None)
        value = getattr(value, word) if held is None else held[word]
    return value


def _output(graph: fx.Graph) -> fx.Node:
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    assert isinstance(output, fx.Node), output
    return output


def _needed(graph: fx.Graph, name: str) -> tuple[fx.Node, ...]:
    """Return the nodes that the output is made of, the input first."""
    needed = ancestors([_output(graph)])
    nodes = tuple(node for node in graph.nodes if node in needed)
    if not nodes or nodes[0].op != "placeholder":
        raise InputError(f"the output of {name} does not depend on its input.")
    return nodes


def _dependent(nodes: tuple[fx.Node, ...]) -> frozenset[fx.Node]:
    dependent = {nodes[0]}
    for node in nodes:
        if dependent.intersection(node.all_input_nodes) and node.target is not repeat_for:
            dependent.add(node)
    return frozenset(dependent)


def ancestors(
    nodes: list[fx.Node], stop: fx.Node | None = None, known: Container[fx.Node] = frozenset()
) -> set[fx.Node]:
    """Return the nodes and all nodes that they are made from; the search ends at `stop` and at nodes in `known`.

    With `stop`, it also ends at constants of a job file, which are repeated for each image of any batch.
    """
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            is_last = node is stop or node in known or (stop is not None and node.target is repeat_for)
            waiting.extend([] if is_last else node.all_input_nodes)
    return found


def _undo_in_place(graph: fx.Graph, name: str) -> dict[fx.Node, fx.Node]:
    """Let every operation that overwrites its first argument return a new tensor, which later nodes then use.

    Returns:
        For each value that was overwritten, the value that took its place.
    """
    successors = {}
    for node in list(graph.nodes):
        if (_switch_off_flag(node) or _rename_function(node) or _rename_method(node, name)) and node.args:
            overwritten = node.args[0]
            position = {other: k for k, other in enumerate(graph.nodes)}
            overwritten.replace_all_uses_with(node, delete_user_cb=lambda user: position[user] > position[node])  # noqa: B023
            successors[overwritten] = node
    return successors


def _let_views_copy(graph: fx.Graph) -> None:
    """Call `reshape` instead of `view`, so that halves accept an activation in any memory format."""
    for node in graph.nodes:
        is_reinterpreting = any(isinstance(given, torch.dtype) for given in (*node.args, *node.kwargs.values()))
        if node.op == "call_method" and node.target == "view" and not is_reinterpreting:
            node.target = "reshape"


def _switch_off_flag(node: fx.Node) -> bool:
    """Switch `inplace=True` off, wherever in a function's arguments it is; return whether it was on."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # not a function, or built in C without a signature
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _rename_function(node: fx.Node) -> bool:
    """Call `torch.relu` instead of `torch.relu_`; return whether it was such a function."""
    name = getattr(node.target, "__name__", "")
    plain = None
    for home in (torch, F):
        if name.endswith("_") and getattr(home, name, None) is node.target:
            plain = getattr(home, name[:-1], None)
    if node.op != "call_function" or plain is None:
        return False
    node.target = plain
    return True


def _rename_method(node: fx.Node, name: str) -> bool:
    """Call `add` instead of `add_`; return whether it was such a method."""
    method = str(node.target)
    if node.op != "call_method" or not method.endswith("_") or method.endswith("__"):
        return False
    if not callable(getattr(Tensor, method[:-1], None)):
        raise InputError(
            f"{name} overwrites a tensor with {method}(), at {node.name!r}; wanted operations that return a new one, "
            "such as torch.where or torch.zeros_like."
        )
    node.target = method[:-1]
    return True
