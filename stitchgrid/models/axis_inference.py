"""Following axes through the graph of a network: convolutions and poolings put features first, linear layers last."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from stitchgrid.models.axes import (
    Axes,
    AxisReading,
    coarser,
    fresh,
    images_axis,
    joined,
    permuted,
    put_back,
    read,
    reshaped,
    resized,
    scaled,
    sliced,
)
from stitchgrid.models.dry_run import Probed
from stitchgrid.models.symbolic_sizes import varying
from stitchgrid.models.trace import Trace
from stitchgrid.vision import Permute

_FEATURES_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.PixelShuffle,
    nn.Upsample,
)
_FEATURES_FIRST_WORDS = ("conv", "pool", "batch_norm", "group_norm", "instance_norm", "interpolate", "pixel_shuffle")
_RESHAPING = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "Flatten", "Unflatten"}
_PERMUTING = {"permute", "Permute"}
_TRANSPOSING = {"transpose", "swapaxes", "swapdims"}
_AVERAGING = {"mean", "sum", "amax", "amin"}
_RANKING = {"max", "min", "median"}  # with an axis they return the values and their positions
_RESIZING = {"chunk", "split", "tensor_split", "narrow", "pad"}
_JOINING = {"cat", "concat", "concatenate"}
_MULTIPLYING = {"matmul", "bmm"}
_ATTENDING = {"scaled_dot_product_attention"}
_OPAQUE_TO_US = {"movedim", "moveaxis", "einsum", "rot90", "getattr"}


def follow_axes(trace: Trace, probed: Mapping[fx.Node, Probed]) -> dict[fx.Node, AxisReading]:
    """Return how the activation of every node is read, for those whose axes could be followed."""
    axes = _Follower(trace, probed).axes
    return {node: reading for node in trace.nodes if (reading := _reading(axes.get(node))) is not None}


def _reading(axes: Axes | None) -> AxisReading | None:
    """Return how an activation is read; rows in windows are put back in their places."""
    reading = read(axes)
    is_clear = reading is not None and (reading.axes not in {"NTD", "NDT"} or reading.grid is not None)
    return reading if is_clear else put_back(axes) or reading


class _Follower:
    """Follows axes from input to output; repeats this where operations on a tensor show what its axes are."""

    def __init__(self, trace: Trace, probed: Mapping[fx.Node, Probed]):
        self.trace, self.probed = trace, probed
        self.varying = varying(trace)
        self.axes: dict[fx.Node, Axes] = {}
        told: dict[fx.Node, Axes] = {}
        while True:
            self._follow(told)
            more = self._told_by_users()
            if not more.keys() - told.keys():
                break
            told |= more

    def _follow(self, told: Mapping[fx.Node, Axes]) -> None:
        self.axes = {}
        for node in self.trace.nodes:
            shape = self.probed[node].shape
            if shape is None:
                continue
            axes = told.get(node) or self._made(node, shape)
            if axes is not None and tuple(axis.size for axis in axes) == shape:
                self.axes[node] = axes

    def _told_by_users(self) -> dict[fx.Node, Axes]:
        """Return axes of maps that could not be followed but that a convolution or pooling takes in."""
        found = {}
        for user in self.trace.nodes:
            given = user.args[0] if user.args else None
            if isinstance(given, fx.Node) and given in self.varying and self._puts_features(user) == "first":
                shape = self.probed[given].shape
                if shape is not None and len(shape) == 4 and read(self.axes.get(given)) is None:
                    found[given] = fresh(shape, "NCHW")
        return found

    def _made(self, node: fx.Node, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of what an operation makes, where they follow from its kind and its inputs' axes."""
        where = self._puts_features(node)
        if node is self.trace.input or (where == "first" and len(shape) == 4):
            return fresh(shape, "NCHW")
        if (part := recurrent_part(self.trace, node)) is not None:
            return self._remembered(*part, shape)
        known = [tensor for tensor in self._tensors(node) if tensor in self.axes]
        if not known:
            return None
        axes = self.axes[known[0]]
        if where == "last" and len(axes) == len(shape):
            return (*axes[:-1], *fresh(shape[-1:], "C"))
        if where == "first" and len(axes) == len(shape) == 3:  # a convolution or pooling along one axis
            return (axes[0], *fresh(shape[1:], "C?"))
        return self._by_name(node, axes, known, shape)

    def _by_name(  # noqa: PLR0911  # one line an operation
        self, node: fx.Node, axes: Axes, known: Sequence[fx.Node], shape: tuple[int, ...]
    ) -> Axes | None:
        name, pooled = self._operation(node), _ranked(node) or node
        if name in _RESHAPING:
            return reshaped(axes, shape) or _unread(axes, shape)
        if name in _PERMUTING:
            module = self.trace.targets[str(node.target)] if node.op == "call_module" else None
            return permuted(axes, module.dims if module is not None else _integers(node, "dims"))
        if name in _TRANSPOSING or (name == "getattr" and node.args[1] in {"mT", "mH", "T", "H"}):
            return _transposed(axes, _integers(node, "dim0", "dim1") or [-1, -2])
        if name in _AVERAGING or pooled is not node:
            return _averaged(axes, {place % len(axes) for place in _integers(pooled, "dim", "axis")}, shape)
        if name in _RESIZING:
            return resized(axes, shape)
        if name == "getitem":
            return self._taken(node, axes, shape)
        if name in _JOINING:
            return self._joined(node, shape)
        if name in _MULTIPLYING:
            second = self.axes.get(node.args[1]) if isinstance(node.args[1], fx.Node) else None
            return (*axes[:-1], second[-1] if second else fresh(shape[-1:], "C")[0])
        if name in _ATTENDING and isinstance(node.args[0], fx.Node) and node.args[0] not in self.varying:
            return self._attended(node, shape)
        if name in _OPAQUE_TO_US:
            return None
        for tensor in known:
            if self.probed[tensor].shape == shape:
                return self.axes[tensor]
        is_torchs = str(getattr(node.target, "__module__", "")).startswith("torch.")
        return scaled(axes, shape) if node.op == "call_function" and not is_torchs else None

    def _operation(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.trace.targets[str(node.target)]).__name__
        return _name(node)

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensors an operation takes in, also those from which a tuple that it takes in was made."""
        found: list[fx.Node] = []
        for given in node.all_input_nodes:
            if self.probed[given].shape is not None:
                found.append(given)
            elif given in self.varying:
                found.extend(self._tensors(given))
        return found

    def _puts_features(self, node: fx.Node) -> str | None:
        """Return whether an operation puts features `first` or `last`; None where it does not say."""
        if node.op == "call_module":
            return puts_features(self.trace.targets[str(node.target)])
        if node.op == "call_function":
            name = _name(node)
            if name == "linear":
                return "last"
            if any(word in name for word in _FEATURES_FIRST_WORDS):
                return "first"
        return None

    def _taken(self, node: fx.Node, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
        """Return what indexing leaves of axes."""
        whole, keys = node.args[0], node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not isinstance(whole, fx.Node) or self.probed[whole].shape is None:  # one of several tensors
            if isinstance(whole, fx.Node) and _name(whole) == "unbind":
                gone = [*_integers(whole, "dim"), 0][0] % len(axes)
                return (*axes[:gone], *axes[gone + 1 :])
            return resized(axes, shape)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = (*keys[:at], *[slice(None)] * (len(axes) - len(keys) + 1), *keys[at + 1 :])
        keys = (*keys, *[slice(None)] * (len(axes) - len(keys)))
        if len(keys) != len(axes) or not all(map(_is_known, keys)):
            return None
        sizes = iter(shape)
        kept = [(axis, key) for axis, key in zip(axes, keys, strict=True) if isinstance(key, slice)]
        return tuple(sliced(axis, key, next(sizes)) for axis, key in kept)

    def _remembered(self, call: fx.Node, path: Sequence[int], shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of what a recurrent layer returns: its output, or its last states, one a layer."""
        given = call.args[0] if call.args else None
        axes = self.axes.get(given) if isinstance(given, fx.Node) else None
        images = images_axis(axes)
        if axes is None or images is None or len(axes) != 3 or len(shape) != 3:
            return None
        (features,) = fresh(shape[-1:], "C")
        return (*axes[:-1], features) if path == (0,) else (fresh(shape[:1], "?")[0], axes[images], features)

    def _attended(self, node: fx.Node, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of what attention returns whose learned queries are the same for all images."""
        keys, values = (self.axes.get(given) if isinstance(given, fx.Node) else None for given in node.args[1:3])
        if keys is None or values is None or len(keys) != len(shape):
            return None
        return (*keys[:-2], fresh((shape[-2],), "?")[0], values[-1])

    def _joined(self, node: fx.Node, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of tensors side by side."""
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(tensors, list | tuple):
            return None
        at = ([*_integers(node, "dim", "axis"), 0][0]) % len(shape)
        varying = [tensor for tensor in tensors if tensor in self.varying]
        axes = self.axes.get(varying[0]) if varying else None
        if axes is None or not all(tensor in self.axes for tensor in varying):
            return None
        in_front = len(varying) == 1 and tensors[-1] is varying[0]
        return joined(axes, at, shape[at] - axes[at].size, in_front=in_front)


def recurrent_part(trace: Trace, node: fx.Node) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Return the call of a recurrent layer that made a tensor, and where that is in what it returned."""
    path: tuple[int, ...] = ()
    while _name(node) == "getitem" and isinstance(node.args[0], fx.Node) and isinstance(at := node.args[1], int):
        node, path = node.args[0], (at, *path)
        if node.op == "call_module" and isinstance(module := trace.targets[str(node.target)], nn.RNNBase):
            is_lstm = isinstance(module, nn.LSTM)
            return (node, path) if path == (0,) or len(path) == 1 + is_lstm else None
    return None


def puts_features(module: nn.Module) -> str | None:
    """Return whether a module puts features `first`, after the images, or `last`; None where it does not say.

    A module with parts answers as its parts do, where all parts that have an answer agree.
    """
    parts = list(module.modules())
    if any(isinstance(part, Permute) for part in parts):
        return None
    said = {"first" for part in parts if isinstance(part, _FEATURES_FIRST)}
    said |= {"last" for part in parts if isinstance(part, nn.Linear | nn.RNNBase)}
    return said.pop() if len(said) == 1 else None


def _name(node: fx.Node) -> str:
    """Return the name of a function or method; an empty one for a module."""
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function":
        return "getitem" if node.target is operator.getitem else getattr(node.target, "__name__", "")
    return ""


def _ranked(node: fx.Node) -> fx.Node | None:
    """Return the `max`, `min` or `median` along an axis whose values a node takes, None where it takes none."""
    made, which = (*node.args, None, None)[:2]
    is_values = (_name(node) == "getattr" and which == "values") or (_name(node) == "getitem" and which == 0)
    return made if is_values and isinstance(made, fx.Node) and _name(made) in _RANKING else None


def _is_known(key: Any) -> bool:
    """Return whether an index is an integer or a slice between integers, none of which the graph computes."""
    parts = (key.start, key.stop, key.step) if isinstance(key, slice) else (key,)
    return isinstance(key, int | slice) and all(part is None or isinstance(part, int) for part in parts)


def _integers(node: fx.Node, *words: str) -> list[int]:
    """Return the integers among the arguments of an operation after the first, or those given by keyword."""
    given: list[Any] = [node.kwargs[word] for word in words if word in node.kwargs] or list(node.args[1:])
    flat = [one for value in given for one in (value if isinstance(value, list | tuple) else [value])]
    return [one for one in flat if isinstance(one, int) and not isinstance(one, bool)]


def _unread(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Return the axis of the images and unknown axes after it, None where that axis is no longer the first."""
    if not axes[0].is_only("N") or axes[0].size != shape[0]:
        return None
    return (axes[0], *fresh(shape[1:], "?" * (len(shape) - 1)))


def _transposed(axes: Axes, pair: Sequence[int]) -> Axes | None:
    if len(pair) != 2:
        return None
    made = list(axes)
    made[pair[0]], made[pair[1]] = made[pair[1]], made[pair[0]]
    return tuple(made)


def _averaged(axes: Axes, gone: set[int], shape: Sequence[int]) -> Axes | None:
    if not gone:
        return None
    left = coarser(axes, gone)
    if len(shape) == len(axes):
        return tuple(fresh((1,), "?")[0] if k in gone else axis for k, axis in enumerate(left))
    return tuple(axis for k, axis in enumerate(left) if k not in gone)
