"""Words of a job file's `layers` -> cuts of one network."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from stitchgrid.errors import JobFileError, nearest
from stitchgrid.models.blocks import block_calls
from stitchgrid.models.cuts import Call, Cut, CutNetwork


def select_layers(network: CutNetwork, patterns: Sequence[str]) -> tuple[Cut, ...]:
    """Return the cuts that any of the patterns names, in order of execution.

    A pattern is "blocks" (the last cut inside each innermost repeated module, else each activation, else each recurrent
    layer), "all", a glob (tried on the blocks first, then on all cuts), the name of a cut in either spelling, or the
    path of a module, which stands for its last cut.

    Raises:
        JobFileError: If a pattern names no cut; the error lists every such pattern with names near it.
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


def later_blocks(network: CutNetwork, node: str) -> list[str]:
    """Return the nodes of the blocks behind a node, in order of execution; the scores are no block."""
    position = network.cut(node).position
    return [cut.node for cut in _blocks(network) if cut.position > position and cut.node != network.logits]


def last_features(network: CutNetwork, node: str) -> str | None:
    """Return the last node before the scores that can be stitched, None where it does not lie behind `node`."""
    position = network.cut(node).position
    found = [cut for cut in network.cuts if cut.can_be_stitched and cut.node != network.logits]
    return found[-1].node if found and found[-1].position > position else None


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
    return [cut for call in network.operations.calls if call.path == pattern for cut in _inside(network, call)][-1:]


def _matching(cuts: Sequence[Cut], pattern: str) -> list[Cut]:
    return [cut for cut in cuts if fnmatchcase(cut.name, pattern) or fnmatchcase(cut.node, pattern)]


def _inside(network: CutNetwork, call: Call) -> list[Cut]:
    return [cut for cut in network.cuts if cut.can_be_stitched and cut.position in call.made]


def _blocks(network: CutNetwork) -> list[Cut]:
    """Return the last cut inside each block, else each activation, else what each recurrent layer returns."""
    cuts = [cut for cut in network.cuts if cut.can_be_stitched]
    operations = network.operations
    blocks = {last for _, last in block_calls(operations.calls, [cut.position for cut in cuts])}
    found = ([cut for cut in cuts if cut.position in some] for some in (blocks, operations.activations))
    return next(filter(None, found), [cut for cut in cuts if cut.position in operations.recurrent])


def _explain(network: CutNetwork, pattern: str) -> str:
    """Return why a pattern names no cut, and the names near it."""
    names = [cut.name for cut in network.cuts if cut.can_be_stitched]
    if pattern == "blocks":
        return f"'blocks': {_why_no_blocks(network)}; name layers, or use \"all\""
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


def _why_no_blocks(network: CutNetwork) -> str:
    calls, every = network.operations.calls, range(len(network.operations.nodes))
    if repeated := [call.path for call, _ in block_calls(calls, every)]:
        return f"{repeated[0]!r} and the modules like it are no cuts: {_cause(network, repeated[0])}"
    return "no module is repeated, and no activation and no recurrent layer is a cut"


def _cause(network: CutNetwork, name: str) -> str:
    found = [cut for cut in network.cuts if name in (cut.name, cut.node)]
    if found and not found[0].dtype.is_floating_point:
        return "its values are whole numbers"
    if found:
        return (
            "it has no rows of features (windows or groups of channels), or it is not clear which axis holds features"
        )
    if network.way == "hooks":
        return (
            "another path (a shortcut or branch) runs beside it, it is called more than once, or it returns something "
            "else than one tensor with an axis of the images"
        )
    return "another path (a shortcut or branch) runs beside it"


def _positions(network: CutNetwork, name: str) -> list[int]:
    """Return the position of a node, or of the operations inside a module; empty for one that never runs."""
    made = {position for call in network.operations.calls if call.path == name for position in call.made}
    named = {position for position, node in enumerate(network.operations.nodes) if node == name}
    return sorted(made | named)


def _near(network: CutNetwork, position: int) -> str:
    """Return the names of the last cut of the innermost module around an operation, and of the cut before it."""
    cuts = [cut for cut in network.cuts if cut.can_be_stitched]
    around = [_inside(network, call) for call in network.operations.calls if position in call.made]
    block = next((inside[-1:] for inside in around if inside), [])
    after = block or [cut for cut in cuts if cut.position >= position][:1]
    before = [cut for cut in cuts if cut.position < position][-1:]
    return ", ".join(repr(cut.name) for cut in dict.fromkeys(after + before))
