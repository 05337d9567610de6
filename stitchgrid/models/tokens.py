"""What a network declares about its tokens: class and register tokens, and the grid of patches."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

_PREFIX_TOKENS = (  # parameters (1, T, D), or (D,) for one token
    *("class_token", "cls_token", "dist_token", "reg_token", "register_tokens"),  # of torchvision and timm
    *("class_embedding", "distillation_token"),  # of transformers
)


class DeclaredTokens:
    """Finds the layout of the token sequences of one network; a number of tokens alone never decides it."""

    def __init__(self, network: nn.Module):
        counts = (sum(_count(part, name) for name in _PREFIX_TOKENS) for part in network.modules())
        self.num_prefix = next((count for count in counts if count), 0)
        self.grid = next((grid for part in network.modules() if (grid := _declared_grid(part))), None)

    def layout(self, num_tokens: int, last_map: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
        """Return how many tokens come before the grid, and its height and width where there is one.

        The grid is the declared one, else that of the last map that a convolution made; the number of tokens must be
        the grid's with or without those before it.
        """
        for grid in (self.grid, last_map):
            for num_prefix in (self.num_prefix, 0):  # 0: in layers before the class token is added
                if grid is not None and num_tokens == num_prefix + grid[0] * grid[1]:
                    return num_prefix, grid
        return 0, None


def _count(part: nn.Module, name: str) -> int:
    value = getattr(part, name, None)
    if not isinstance(value, Tensor) or not value.dim():
        return 0
    return value.shape[-2] if value.dim() >= 2 else 1


def _declared_grid(part: nn.Module) -> tuple[int, int] | None:
    patch = _pair(getattr(part, "patch_size", None))
    image = _pair(getattr(part, "image_size", None)) or _pair(getattr(part, "img_size", None))
    if image and patch and all(patch):
        return image[0] // patch[0], image[1] // patch[1]
    return _pair(getattr(part, "grid_size", None))


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(one, int) for one in value)
    return (value[0], value[1]) if is_pair else None
