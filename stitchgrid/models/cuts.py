"""Where a network can be cut, and its halves: several activations in one pass, and the rest of the network alone.

A network can be cut at a tensor when every path from input to output passes through it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError, JobFileError, breaks_worker, is_out_of_memory, nearest
from stitchgrid.models.adapt import described
from stitchgrid.models.axes import AxisReading, Windows
from stitchgrid.models.freeze import as_its_author_wrote_it
from stitchgrid.models.user_forward import FAILURES, error_line, quietly
from stitchgrid.records import Layer, Tokens

KINDS = {"NCHW": "map", "NHWC": "map", "NTD": "tokens", "NDT": "tokens", "ND": "vector"}  # by axes
OTHER = "other"  # cuts whose rows are not defined: windows, channel groups; they cannot be selected


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A tensor at which a network can be cut."""

    layer: Layer
    position: int  # of the operation that makes it
    images: int = 0  # which axis is the axis of images, in the network itself
    dtype: torch.dtype = torch.float32  # in the network itself
    order: tuple[int, ...] = ()  # axes from the slowest to the fastest in memory, in the network itself
    windows: Windows | None = None  # how rows that are in windows in the network itself are put back

    @property
    def name(self) -> str:
        """The path of the block or deepest module whose output it is, else torchvision's node name."""
        return self.layer.name

    @property
    def node(self) -> str:
        """Torchvision's node name, unique in a network."""
        return self.layer.node

    @property
    def can_be_stitched(self) -> bool:
        """Whether it has rows of features: a map, a sequence of tokens or a vector."""
        return self.layer.kind != OTHER

    @property
    def is_plain(self) -> bool:
        """Whether the network itself has the images first, in float32, and rows in their places."""
        return not self.images and self.dtype == torch.float32 and self.windows is None

    @property
    def own_form(self) -> tuple[int, torch.dtype, tuple[int, ...], Windows | None]:
        """The form that the tensor has in the network itself, for `as_made` and `as_seen`."""
        return self.images, self.dtype, self.order, self.windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module while the network ran or was traced."""

    path: str
    type: type[nn.Module]
    is_leaf: bool  # calls inside it were not recorded
    has_weights: bool
    made: frozenset[int]  # positions of the operations between its beginning and its end
    output: int | None  # position of the operation that made its result, None where the call did not make it itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The operations of a network in order, and the calls of modules that carry them out."""

    nodes: tuple[str, ...]  # torchvision's node names
    activations: frozenset[int]  # positions of ReLUs and other activation functions
    calls: tuple[Call, ...]  # in order of their end, so the deepest first
    recurrent: frozenset[int] = frozenset()  # positions of what recurrent layers return


class CutNetwork(ABC):
    """A frozen network, its cuts in order of execution, and its halves, which all share its weights.

    Move a network to its device before cutting it, not after.
    """

    #: How the halves are made: by the network's `graph`, or by `hooks` on its modules.
    way: str
    #: Why there is no graph.
    reason: str = ""
    #: A notice about the types of its weights, where they are not float32.
    types: str = ""
    #: Whether halves made from now on are compiled, where they are made by a graph: other speed, same values.
    compiles: bool = False

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, int, int], cuts: Sequence[Cut], operations: Operations
    ):
        self.module = module
        self.input_shape = input_shape
        self.cuts = tuple(cuts)
        self.operations = operations
        self._by_node = {cut.node: cut for cut in cuts}

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
    @abstractmethod
    def ends_in(self) -> str | None:
        """The last operation of the network: "sigmoid", "softmax" (over the classes), or None (another, or unknown)."""

    def whole(self, images: Tensor) -> Tensor:
        """Return the class scores (N, K), in float32, that the network as its author wrote it gives float32 images.

        Raises:
            InputError: If the network fails, or does not return one row of scores for each image.
        """
        name = type(self.module).__name__
        try:
            with quietly(), as_its_author_wrote_it(self.module):
                scores = self.module(images.clone(memory_format=torch.contiguous_format))
        except FAILURES as problem:
            if isinstance(problem, InputError) or is_out_of_memory(problem) or breaks_worker(problem):
                raise
            raise InputError(f"{name} fails on {len(images)} images ({error_line(problem)}).") from problem
        wanted = (len(images), self.num_classes)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != wanted:
            raise InputError(
                f"{name} returns {described(scores)} for {len(images)} images; wanted {wanted}. Its forward must take "
                "any number of images and keep their axis (no squeeze() without a dimension)."
            )
        return scores.float()

    def cut(self, node: str) -> Cut:
        """Return the cut at a node.

        Raises:
            JobFileError: If there is no cut.
        """
        if node not in self._by_node:
            raise JobFileError(
                f"{type(self.module).__name__} has no cut at node {node!r}; {nearest(node, self._by_node)}."
            )
        return self._by_node[node]

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Within a block, do not compile halves: compiling again for each small number of images takes long."""
        before, self.compiles = self.compiles, False
        try:
            yield
        finally:
            self.compiles = before

    def lay_tokens(self, tokens: Tokens) -> None:
        """Read sequences as the job's `tokens` says, some tokens before a grid, where they have that many tokens.

        Raises:
            InputError: If no sequence has that many tokens.
        """
        num = tokens.prefix + tokens.grid[0] * tokens.grid[1]
        told = {"num_prefix": tokens.prefix, "grid": tokens.grid}
        sequences = [cut.layer for cut in self.cuts if cut.layer.kind == "tokens"]
        if not any(layer.num_tokens == num for layer in sequences):
            counts = sorted({layer.num_tokens for layer in sequences})
            have = f"its sequences have {', '.join(map(str, counts))}" if counts else "it has no sequences"
            raise InputError(
                f"{type(self.module).__name__} has no sequence of {tokens.prefix} + {tokens.grid[0]} x "
                f"{tokens.grid[1]} = {num} tokens, as the model's `tokens` says; {have}."
            )
        self.cuts = tuple(
            replace(cut, layer=replace(cut.layer, **told))  # type: ignore[arg-type]
            if cut.layer.kind == "tokens" and cut.layer.num_tokens == num
            else cut
            for cut in self.cuts
        )
        self._by_node = {cut.node: cut for cut in self.cuts}

    @abstractmethod
    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Return a function of images that gives the activations at these nodes, in this order, from one forward pass.

        The pass ends at the last of them. With `logits` among the nodes it is the whole network. Images are float32,
        any number of them; activations have the images first and are float32.
        """

    @abstractmethod
    def suffix(self, node: str) -> nn.Module:
        """Return the rest of the network behind a node: a module from its activation to the class scores, float32."""

    @abstractmethod
    def behind(self, node: str, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Return a function of a node's activation that gives those at later nodes, in this order, float32.

        It runs no further than the last of them.
        """


def as_seen(a: Tensor, images: int, dtype: torch.dtype, _: tuple[int, ...], windows: Windows | None = None) -> Tensor:
    """Return an activation of a network with the images first, in float32 where it is of another floating type.

    Rows in windows are put back in their places.
    """
    if windows is not None:
        split, order, whole, _ = windows
        a = a.reshape(split).permute(order).reshape(whole)
    a = a.movedim(images, 0)
    return a.float() if dtype.is_floating_point and dtype != torch.float32 else a


def as_made(
    a: Tensor, images: int, dtype: torch.dtype, order: tuple[int, ...], windows: Windows | None = None
) -> Tensor:
    """Undo `as_seen`: return its result with the network's own axes, their order in memory, and type."""
    if dtype.is_floating_point and dtype != torch.float32:
        a = a.to(dtype)
    if windows is not None:
        split, places, _, own = windows
        a = a.reshape([split[place] for place in places])
        a = a.permute([places.index(place) for place in range(len(places))]).reshape(own)
    elif not images:
        return a
    a = a.movedim(0, images).permute(order).contiguous()
    return a.permute([order.index(axis) for axis in range(a.dim())])


def make_layer(
    *, name: str, node: str, depth: float, shape: Sequence[int], flops: float, reading: AxisReading | None
) -> Layer:
    """Return the record of a cut whose activation is read by `reading`; None: it has no rows of features."""
    return Layer(
        name=name,
        node=node,
        depth=depth,
        kind=KINDS[reading.axes] if reading else OTHER,
        axes=reading.axes if reading else "",
        shape=tuple(shape),
        flops=flops,
        num_prefix=reading.num_prefix if reading else 0,
        grid=reading.grid if reading else None,
    )


def head_of(module: nn.Module) -> str | None:
    """Return "sigmoid" or "softmax" (over the classes) for a module that is one, else None."""
    if isinstance(module, nn.Sigmoid):
        return "sigmoid"
    return "softmax" if isinstance(module, nn.Softmax) and module.dim in {None, 1, -1} else None
