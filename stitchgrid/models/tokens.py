"""What the tokens of a sequence stand for, read from the network: class and register tokens, the grid of patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from stitchgrid.models.probe import Probed
from stitchgrid.models.trace import Trace

_PREFIX_TOKENS = ("class_token", "cls_token", "dist_token", "reg_token", "register_tokens")  # parameters (1, T, D)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """How many tokens of a sequence come before the grid, and the grid's height and width where it has one."""

    num_prefix: int = 0
    grid: tuple[int, int] | None = None


class TokenReader:
    """Tells the layout of each sequence of one network; nothing is concluded from a token count alone.

    The grid is the network's declared one (image and patch size), else the size of the map that its last convolution
    before the sequence made. The number of tokens before it is what the network's parameters say.
    """

    def __init__(self, module: nn.Module, trace: Trace, probed: Mapping[fx.Node, Probed]):
        self._num_prefix = sum(_count(module, name) for name in _PREFIX_TOKENS)
        self._declared = _declared_grid(module)
        self._maps = [
            (position, shape[1:])
            for position, node in enumerate(trace.nodes)
            if node.op == "call_module" and isinstance(trace.targets[str(node.target)], nn.Conv2d)
            if (shape := probed[node].image_shape) is not None and len(shape) == 3
        ]

    def layout(self, position: int, num_tokens: int) -> TokenLayout:
        """Return the layout of the sequence that the node at `position` makes."""
        grids = [self._declared] if self._declared else [(h, w) for at, (h, w) in self._maps if at < position][-1:]
        for height, width in grids:
            for num_prefix in (self._num_prefix, 0):  # 0: before the class token is put in front
                if num_tokens == num_prefix + height * width:
                    return TokenLayout(num_prefix=num_prefix, grid=(height, width))
        return TokenLayout()


def _count(module: nn.Module, name: str) -> int:
    value = getattr(module, name, None)
    return value.shape[-2] if isinstance(value, Tensor) and value.dim() >= 2 else 0


def _declared_grid(module: nn.Module) -> tuple[int, int] | None:
    image, patch = _pair(getattr(module, "image_size", None)), _pair(getattr(module, "patch_size", None))
    if image and patch:
        return image[0] // patch[0], image[1] // patch[1]
    return _pair(getattr(getattr(module, "patch_embed", None), "grid_size", None))


def _pair(value: int | Sequence[int] | None) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) and len(value) == 2 else None
