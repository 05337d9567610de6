"""The interface of a kind of matcher: its description, and the methods that the engine calls.

A kind is one file: its description (`About`) and its maths. An *index* compares two layers by statistics of their
activations. A *stitcher* finds a map from the source's layer into the target's, and the stitched network is then run.
This module imports no torch; kinds load it when they compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from stitchgrid.matchers.evidence import metric_of
from stitchgrid.matchers.metrics import Metric
from stitchgrid.matchers.params import NoParams, Params

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.gram import Gram
    from stitchgrid.matchers.span import Span
    from stitchgrid.matchers.stitchers.affine import AffineMap
    from stitchgrid.moments import PairMoments
    from stitchgrid.records import Head, Layer

P = TypeVar("P", bound=Params)
S = TypeVar("S")  # what a kind prepares of one layer

#: Transformations of a layer's features: a constant is added to each, all are multiplied by one number, ...
Transform = Literal["shift", "scaling", "permutation", "rotation", "linear"]
UP_TO_ROTATION: frozenset[Transform] = frozenset({"shift", "scaling", "permutation", "rotation"})
UP_TO_LINEAR: frozenset[Transform] = UP_TO_ROTATION | {"linear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The description of a kind, from which tests, pages and help texts are made.

    In `bias` and `not_when`, N rows (images or positions) of a source with D features and a target with E are compared.
    """

    kind: str
    family: Literal["index", "stitcher"]
    summary: str  # one line, for people
    source: str  # who defined it
    use: str  # what one asks it, in sentences
    bias: str  # of its score, on how many rows; the end of "Bias: "
    not_when: str  # when a user should take another kind; the end of "Do not use it where "
    metrics: tuple[Metric, ...]
    score: str  # the metric by which layers are ranked
    params: type[Params] = NoParams  # of a stitcher: `Rules`, or a class made from it
    revision: int = 1  # raised when the maths changes, so that stored values are not mistaken for new ones
    symmetric: bool = False  # whether source and target may be exchanged
    #: Transformations of the source, and of the target, that do not change the score.
    invariances: tuple[frozenset[Transform], frozenset[Transform]] = (frozenset(), frozenset())
    most_images: int | None = None  # read by default: n x n matrices grow with the square of their number
    fewest_images: int = 2  # with fewer it is undefined
    is_trained: bool = False  # has seeds, epochs and a generator
    needs_labels: bool = False  # to find its map
    widths: Literal["any", "equal", "not narrower"] = "any"  # of the target, compared with the source
    most_features: int | None = None  # of either layer

    def __post_init__(self) -> None:
        assert self.score in self.metric_names, f"{self.kind} has no metric {self.score}"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of its metrics, in order."""
        return tuple(metric.name for metric in self.metrics)

    def metric(self, name: str) -> Metric:
        """Return a metric by the name of a row: `residual_at:LAYER` gives `residual_at`, evidence gives its metric."""
        return next(metric for metric in self.metrics if metric.name == metric_of(name).partition(":")[0])

    def why_not(self, source: Layer, target: Layer) -> str | None:
        """Return why the kind does not apply to two layers, None if it does."""
        return self.why_not_widths((source.name, source.width), (target.name, target.width))

    def why_not_widths(self, source: tuple[str, int], target: tuple[str, int]) -> str | None:
        """Return why the kind does not apply to two layers, each as (name, number of features); None if it does."""
        found = _in_words(source, target)
        if self.widths == "equal" and source[1] != target[1]:
            return f"{self.kind} needs layers of equal width, and {found}"
        if self.widths == "not narrower" and source[1] > target[1]:
            return f"{self.kind} needs a target as wide as the source at least, and {found}"
        if self.most_features is not None and max(source[1], target[1]) > self.most_features:
            return f"{self.kind} takes layers of up to {self.most_features:,} features, and {found}"
        return None


def widths_of(source: Layer, target: Layer) -> str:
    """Return how wide two layers are, in words."""
    return _in_words((source.name, source.width), (target.name, target.width))


def _in_words(source: tuple[str, int], target: tuple[str, int]) -> str:
    return f"{source[0]} has {source[1]:,} features, {target[0]} {target[1]:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes that the cost of a pair depends on: features of both layers, and the number of rows or images."""

    source: int
    target: int
    num: int


def svd_flops(rows: int, columns: int) -> float:
    """Return roughly the operations of a singular value decomposition with vectors (Golub & Van Loan)."""
    return 22.0 * max(rows, columns) * min(rows, columns) ** 2


def singular_values_flops(rows: int, columns: int) -> float:
    """Return roughly the operations of singular values without vectors."""
    return 0.4 * svd_flops(rows, columns)


class Kind(ABC, Generic[P]):
    """One kind of matcher, with its parameters."""

    about: ClassVar[About]
    reads_target: ClassVar[bool] = False  # whether maps are trained on the target's activations on the same images
    #: The sides whose principal axes (`moments.x.axes`, `moments.y.axes`) it reads: `plan`, estimates and limits on
    #: memory add up the decomposition and its result for these, and `flops` for each pair.
    axes_of: ClassVar[frozenset[Literal["source", "target"]]] = frozenset()

    def __init__(self, params: P):
        self.params = params

    def why_not(self, source: Layer, target: Layer) -> str | None:
        """Return why the kind with these parameters does not apply to two layers, None if it does."""
        return self.about.why_not(source, target)

    @property
    def fewest_images(self) -> int:
        """Smallest number of images for which it is defined with its parameters."""
        return self.about.fewest_images

    @classmethod
    def not_installed(cls, source: Layer, target: Layer) -> str | None:  # noqa: ARG003
        """Return which package two layers need that is not installed, and how to get it; None if none is missing."""
        return None

    def flops(self, sizes: Sizes) -> float:  # noqa: ARG002
        """Return the float64 operations for one pair of layers, beyond the statistics and axes that it reads."""
        return 0.0


class MomentIndex(Kind[P]):
    """An index computed from second moments of rows: positions, tokens, or pooled images (`matchers.alignment`)."""

    @abstractmethod
    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return each metric of B pairs of layers: (B,), float64; NaN where it is undefined."""


class GramIndex(Kind[P], Generic[P, S]):
    """An index computed from n x n Gram matrices of images, whose features are flattened layers."""

    #: Of `prepare`, roughly: measured on one thread of an AMD EPYC, relative to a decomposition for 1,000 images.
    operations_per_pair_of_images: ClassVar[float] = 4.0
    reads_rows: ClassVar[bool] = False  # whether it reads each image's mean and spread (`Gram.mean_N`, `spread_N`)
    reads_distances: ClassVar[bool] = False  # whether it reads the distances, which a Gram matrix then keeps

    @abstractmethod
    def prepare(self, gram: Gram) -> S:
        """Return what `compare` needs of one layer, computed once for all its pairs."""

    @abstractmethod
    def compare(self, pairs: Sequence[tuple[S, S]]) -> dict[str, Tensor]:
        """Return each metric of B pairs of layers: (B,), float64; NaN where it is undefined."""

    def layer_flops(self, num_images: int) -> float:
        """Return the cost of `prepare`, in the float64 operations that a decomposition does in the same time."""
        return self.operations_per_pair_of_images * num_images**2

    def flops(self, sizes: Sizes) -> float:
        """Return the operations for one pair of layers: an inner product of n x n matrices, or less."""
        return 4.0 * sizes.num**2

    def prepared_bytes(self, num_images: int) -> int:  # noqa: ARG002
        """Return how much memory `prepare` takes for a layer beside the Gram matrix and its distances."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A map found in closed form.

    A map that any rows of the source determine needs neither `span` nor `doubts`. Least squares gives `span`: whether a
    cell is `underdetermined` then depends on the rows on which it is evaluated. What is known once the map is fitted,
    such as a tie that makes it one of many, is one of `doubts`: it becomes a flag of the cell.
    """

    map: AffineMap
    span: Span | None = None  # of the source's fit rows; the map is arbitrary outside of it
    doubts: Mapping[str, Tensor] = field(default_factory=dict)  # flag -> whether it is to be set
    values: Mapping[str, Tensor] = field(default_factory=dict)  # of metrics that only this kind has


#: For each group of fit images: the moments of all others, and those of the group.
Folds = Sequence[tuple["PairMoments", "PairMoments"]]


class ClosedForm(Kind[P]):
    """A stitcher whose map follows from second moments of the fit rows."""

    @abstractmethod
    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:
        """Return the map of one pair of layers; `folds` are the groups that it asks for by `num_folds`."""

    def refit(self, fit: Fit, moments: PairMoments) -> AffineMap:  # noqa: ARG002
        """Return the map for other rows, with the parameters that `fit` chose by cross-validation."""
        return self.fit(moments).map

    @property
    def num_folds(self) -> int:
        """Into how many groups of fit images the moments are to be divided, for cross-validation; 0: none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a trained kind's loss reads: of S stitched networks into one layer of a target g, and of g, on N images."""

    head: Head  # of g
    labels_N: Tensor
    scores_SNK: Tensor | None = None  # of the stitched networks
    target_scores_NK: Tensor | None = None  # of g, if the kind reads it
    #: Flattened activations by node of g, in order of execution: of stitched networks (S, N, P), and of g (N, P).
    stitched: Mapping[str, Tensor] = field(default_factory=dict)
    target: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Mapping[str, Tensor] = field(default_factory=dict)  # mean squared norms of g's over the fit images, by node


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """The mean of some rows, and the mean of their squared norms."""

    row_P: Tensor
    square: Tensor  # of the norm


class Trained(Kind[P]):
    """A stitcher whose map is trained, step by step, through the frozen rest of the target."""

    #: Layers of g that are compared: `none`, the `last` cut before the scores, or the stitch and all `later` blocks.
    layers: ClassVar[Literal["none", "last", "later"]] = "none"

    @abstractmethod
    def losses(self, step: Step) -> Tensor:
        """Return the loss of each stitched network on each image: (S, N)."""

    def loss(self, step: Step) -> Tensor:
        """Return the sum over the stitched networks of their mean losses.

        Each network's map enters only one term, so its gradient is the same as if it were trained alone.
        """
        return self.losses(step).mean(1).sum()

    @abstractmethod
    def followed(self, step: Step) -> Mapping[str, Tensor]:
        """Return what h should reproduce, by name: (N, P) each; the means of these are the best constant prediction."""

    @abstractmethod
    def constant_loss(self, means: Mapping[str, Mean], head: Head, sizes: Mapping[str, Tensor]) -> float:
        """Return the mean loss of the best constant prediction, from the means of the rows of `followed`."""

    def why_not(self, source: Layer, target: Layer) -> str | None:
        """Return why the kind with these parameters does not apply to two layers, None if it does."""
        if getattr(self.params, "init", None) == "identity" and source.width != target.width:
            return f'init = "identity" needs layers of equal width, and {widths_of(source, target)}'
        if getattr(self.params, "adapter", None) == "conv3x3" and {source.kind, target.kind} != {"map"}:
            return (
                f'adapter = "conv3x3" needs feature maps, and {source.name} is a {source.kind}, '
                f"{target.name} a {target.kind}"
            )
        return self.about.why_not(source, target)
