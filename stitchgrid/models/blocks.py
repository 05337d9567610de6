"""What a block of a network is: an innermost repeated module, with weights, in which the network can be cut."""

from collections import Counter
from collections.abc import Collection, Sequence

from torch import nn

from stitchgrid.models.cuts import Call

ACTIVATIONS = tuple(
    kind
    for kind in vars(nn.modules.activation).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in {nn.Module, nn.MultiheadAttention}
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # by exact type: a subclass may well be a block
_LAYERS = (  # layers of torch.nn: what is derived from one is a layer too, and no block
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Linear,
    *ACTIVATIONS,
)


def block_calls(calls: Sequence[Call], cuts: Collection[int]) -> list[tuple[Call, int]]:
    """Return the calls of innermost repeated modules with a cut inside, each with the position of its last cut.

    Calls are counted, not modules: a block that is applied several times counts as repeated.
    """
    inner = [call for call in calls if call.has_weights and not call.is_leaf and _is_block(call.type)]
    num_calls = Counter(call.type for call in inner)
    repeated = [
        (call, max(found)) for call in inner if num_calls[call.type] > 1 and (found := call.made.intersection(cuts))
    ]
    return [(call, last) for call, last in repeated if not any(other.made < call.made for other, _ in repeated)]


def _is_block(kind: type[nn.Module]) -> bool:
    return kind not in _CONTAINERS and not issubclass(kind, _LAYERS)
