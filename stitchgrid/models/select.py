"""Words of a job file's `layers` -> cuts of one network."""

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import nn

from stitchgrid.errors import JobFileError, nearest
from stitchgrid.models.cuts import Cut, CutNetwork
from stitchgrid.models.trace import Call

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # by exact type: a subclass may well be a block
_ACTIVATIONS = tuple(
    kind
    for kind in vars(torch.nn.modules.activation).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in {nn.Module, nn.MultiheadAttention}
)
_FUNCTIONS = frozenset(  # of torch, torch.nn.functional and tensors
    {"celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "prelu"}
    | {"relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink"}
)


def select_layers(network: CutNetwork, patterns: Sequence[str]) -> tuple[Cut, ...]:
    """Return the cuts that any of the patterns names, in order of execution.

    A pattern is "blocks" (the last cut inside each innermost repeated module, else each activation), "all", a glob
    (tried on the blocks first, then on all cuts), the name of a cut in either spelling, or the path of a module, which
    stands for its last cut.

    Raises:
        JobFileError: If a pattern names no cut; lists every such pattern with what is near it.
    """
    chosen: set[Cut] = set()
    problems = []
    for pattern in patterns:
        found = _find(network, pattern)
        chosen.update(found)
        if not found:
            problems.append(_explain(network, pattern))
    if problems:
        raise JobFileError(f"layers at which {type(network.module).__name__} cannot be cut", problems)
    return tuple(cut for cut in network.cuts if cut in chosen)


def _find(network: CutNetwork, pattern: str) -> list[Cut]:
    cuts = [cut for cut in network.cuts if cut.can_be_stitched]
    if pattern == "all":
        return cuts
    blocks = _blocks(network)
    if pattern == "blocks":
        return blocks
    if any(mark in pattern for mark in "*?["):
        return _matching(blocks, pattern) or _matching(cuts, pattern)
    by_name = [cut for cut in cuts if cut.name == pattern] or [cut for cut in cuts if cut.node == pattern]
    if by_name:
        return by_name
    return [cut for call in network.calls if call.path == pattern for cut in _inside(network, call)][-1:]


def _matching(cuts: Sequence[Cut], pattern: str) -> list[Cut]:
    return [cut for cut in cuts if fnmatchcase(cut.name, pattern) or fnmatchcase(cut.node, pattern)]


def _inside(network: CutNetwork, call: Call) -> list[Cut]:
    return [cut for cut in network.cuts if cut.can_be_stitched and network.trace.nodes[cut.position] in call.made]


def _blocks(network: CutNetwork) -> list[Cut]:
    """Return the last cut inside each call of an innermost repeated module, else each activation.

    Calls are counted, not modules: a block that is applied again and again is repeated.
    """
    inner = [call for call in network.calls if not call.is_leaf and call.type not in _CONTAINERS]
    num_calls = Counter(call.type for call in inner)
    repeated = [(call, cuts) for call in inner if num_calls[call.type] > 1 and (cuts := _inside(network, call))]
    innermost = [cuts[-1] for call, cuts in repeated if not any(other.made < call.made for other, _ in repeated)]
    if innermost:
        return [cut for cut in network.cuts if cut in innermost]
    return [cut for cut in network.cuts if cut.can_be_stitched and _is_activation(network, cut)]


def _is_activation(network: CutNetwork, cut: Cut) -> bool:
    node = network.trace.nodes[cut.position]
    if node.op == "call_module":
        return isinstance(network.trace.targets[str(node.target)], _ACTIVATIONS)
    if node.op == "call_method":
        return node.target in _FUNCTIONS
    name = getattr(node.target, "__name__", "")
    return name in _FUNCTIONS and node.target in (getattr(torch, name, None), getattr(F, name, None))


def _explain(network: CutNetwork, pattern: str) -> str:
    """Return why a pattern names no cut, and what is near it."""
    names = [cut.name for cut in network.cuts if cut.can_be_stitched]
    if pattern == "blocks":
        return "'blocks': no module is repeated and no activation is a cut; name layers, or use \"all\""
    if any(mark in pattern for mark in "*?["):
        return f"{pattern!r} matches no cut; {nearest(pattern, names)}"
    at = _positions(network, pattern)
    if at:
        return f"{pattern!r} is not a cut: {_cause(network, pattern)}; nearest: {_near(network, at[-1])}"
    if pattern in dict(network.module.named_modules()):
        parent = pattern.rpartition(".")[0]
        while parent and not (at := _positions(network, parent)):
            parent = parent.rpartition(".")[0]
        if at:
            return f"{pattern!r} is not a cut: {parent!r} is not looked into; nearest: {_near(network, at[-1])}"
        return f"{pattern!r} is never run when the network is evaluated; {nearest(pattern, names)}"
    return f"there is no layer {pattern!r}; {nearest(pattern, names)}"


def _cause(network: CutNetwork, name: str) -> str:
    if any(name in (cut.name, cut.node) for cut in network.cuts):
        return "it has no rows of features (windows or groups of channels)"
    return "another path (a shortcut or branch) runs beside it"


def _positions(network: CutNetwork, name: str) -> list[int]:
    """Return where in the graph a node lies, or what a module makes; nothing for what is never run."""
    trace = network.trace
    made = {node for call in network.calls if call.path == name for node in call.made}
    return [k for k, node in enumerate(trace.nodes) if trace.names[node] == name or node in made]


def _near(network: CutNetwork, position: int) -> str:
    """Return the names of the last cut of the innermost module around an operation, and of the cut before it."""
    cuts = [cut for cut in network.cuts if cut.can_be_stitched]
    around = [_inside(network, call) for call in network.calls if network.trace.nodes[position] in call.made]
    block = next((inside[-1:] for inside in around if inside), [])
    after = block or [cut for cut in cuts if cut.position >= position][:1]
    before = [cut for cut in cuts if cut.position < position][-1:]
    return ", ".join(repr(cut.name) for cut in dict.fromkeys(after + before))
