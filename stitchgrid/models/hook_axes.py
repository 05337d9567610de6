"""How activations of modules are read where there is no graph to follow: by the kinds of the modules around them."""

from collections.abc import Iterable, Sequence

from torch import nn

from stitchgrid.models.axes import AxisReading
from stitchgrid.models.axis_inference import puts_features
from stitchgrid.models.hook_runs import ModuleCall
from stitchgrid.models.hook_trial import is_leaf
from stitchgrid.models.tokens import DeclaredTokens
from stitchgrid.vision import Permute


class CallReader:
    """Finds how the output of a call is read.

    A layer of torch.nn whose kind says where it puts features decides. Else two leaf modules decide: the last one up to
    the call and the first one after it that say so of a tensor of this shape. Where neither does, or they disagree,
    nothing is known.
    """

    def __init__(self, network: nn.Module, calls: Sequence[ModuleCall]):
        self.calls = calls
        self.tokens = DeclaredTokens(network)

    def read(self, position: int) -> AxisReading | None:
        """Return how the output of a call is read, None where it has no rows of features or they are not known."""
        returned = self.calls[position].returned
        if returned is None or not returned.dtype.is_floating_point:
            return None
        images, shape = returned.images, returned.shape_of_image
        if len(shape) == 1:
            return AxisReading(axes="ND", images=images)
        where = self._where(position, returned.shape) if len(shape) in {2, 3} else None
        if where == "first" and not images and len(shape) == 3:
            return AxisReading(axes="NCHW", grid=(shape[1], shape[2]))
        if where != "last" or images == len(shape):
            return None
        if len(shape) == 3:
            return AxisReading(axes="NHWC", images=images, grid=(shape[0], shape[1]))
        num_prefix, grid = self.tokens.layout(shape[0], self._last_map(position))
        return AxisReading(axes="NTD", images=images, num_prefix=num_prefix, grid=grid)

    def _where(self, position: int, shape: tuple[int, ...]) -> str | None:
        own = self.calls[position].module
        if is_leaf(own) and (where := puts_features(own)):
            return where
        leaves = [(k, call) for k, call in enumerate(self.calls) if call.begin == k]
        before = ((c, c.returned.shape if c.returned else None) for k, c in reversed(leaves) if k <= position)
        after = ((c, c.given) for k, c in leaves if k > position)
        said = {_first_said(before, shape), _first_said(after, shape)} - {None}
        return said.pop() if len(said) == 1 else None

    def _last_map(self, position: int) -> tuple[int, int] | None:
        """Return height and width of what the last convolution up to a call made."""
        for call in reversed(self.calls[: position + 1]):
            if isinstance(call.module, nn.Conv2d) and call.returned and len(call.returned.shape) == 4:
                return call.returned.shape[2], call.returned.shape[3]
        return None


def _first_said(calls: Iterable[tuple[ModuleCall, tuple[int, ...] | None]], shape: tuple[int, ...]) -> str | None:
    for call, its_shape in calls:
        if isinstance(call.module, Permute):
            return None
        if its_shape == shape and (where := puts_features(call.module)):
            return where
    return None
