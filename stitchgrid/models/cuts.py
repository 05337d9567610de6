"""Where a network can be cut, and its halves: several activations in one pass, and the rest of the network alone.

A network can be cut at a tensor when every path from input to output passes through it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from stitchgrid.errors import JobFileError, nearest
from stitchgrid.models.axes import Reading
from stitchgrid.models.freeze import as_its_author_wrote_it
from stitchgrid.records import Layer

KINDS = {"NCHW": "map", "NHWC": "map", "NTD": "tokens", "NDT": "tokens", "ND": "vector"}  # by axes
OTHER = "other"  # cuts whose rows are not defined: windows, channel groups; they cannot be selected


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A tensor at which a network can be cut."""

    layer: Layer
    position: int  # of the operation that makes it

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module while the network ran or was traced."""

    path: str
    type: type[nn.Module]
    is_leaf: bool  # its inside was not looked into
    has_weights: bool
    made: frozenset[int]  # positions of the operations between its begin and its end
    output: int | None  # position of the one that made what it returned, where it made that itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """What a network does, one thing after another, and which module does it."""

    nodes: tuple[str, ...]  # torchvision's node names
    activations: frozenset[int]  # positions of ReLUs and their like
    calls: tuple[Call, ...]  # in order of their end, so the deepest first


class CutNetwork(ABC):
    """A frozen network, its cuts in order of execution, and its halves, which all share its weights.

    Move a network to its device before cutting it, not after.
    """

    #: How the halves are made: by the network's `graph`, or by `hooks` on its modules.
    way: str
    #: Why there is no graph.
    reason: str = ""
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

    def cut(self, node: str) -> Cut:
        """Return the cut at a node.

        Raises:
            JobFileError: If there is none.
        """
        if node not in self._by_node:
            raise JobFileError(
                f"{type(self.module).__name__} has no cut at node {node!r}; {nearest(node, self._by_node)}."
            )
        return self._by_node[node]

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run halves as they are for a while: compiling them anew for a few images of each number takes long."""
        before, self.compiles = self.compiles, False
        try:
            yield
        finally:
            self.compiles = before

    @property
    def ends_in(self) -> str | None:
        """The last operation, "sigmoid" or "softmax", where it is known."""
        return None

    def whole(self, images: Tensor) -> Tensor:
        """Return the class scores of the network's own forward, as its author wrote it."""
        with as_its_author_wrote_it(self.module):
            scores: Tensor = self.module(images.contiguous())
        return scores.float()

    @abstractmethod
    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Return a function of images that gives the activations at these nodes, in this order, from one forward pass.

        The pass ends at the last of them. With `logits` among the nodes it is the whole network.
        """

    @abstractmethod
    def suffix(self, node: str) -> nn.Module:
        """Return the rest of the network behind a node: a module from its activation to the class scores."""


def make_layer(
    *, name: str, node: str, depth: float, shape: Sequence[int], flops: float, reading: Reading | None
) -> Layer:
    """Return the record of a cut whose activation is read in this way, None: not at all."""
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
