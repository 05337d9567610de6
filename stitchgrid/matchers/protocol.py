"""What a kind of matcher says of itself, and what the engine asks of it. No torch here: kinds load it to compute.

A kind is one file: what is to be known `About` it, and its maths. An *index* compares two layers by statistics of their
activations; a *stitcher* finds a map from the one into the other, whose network is then run.
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

#: What may be done to the features of a layer: a constant added to each, all multiplied by one number, ...
Transform = Literal["shift", "scaling", "permutation", "rotation", "linear"]
UP_TO_ROTATION: frozenset[Transform] = frozenset({"shift", "scaling", "permutation", "rotation"})
UP_TO_LINEAR: frozenset[Transform] = UP_TO_ROTATION | {"linear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of a kind without running it: the data that tests, pages and help are made of."""

    kind: str
    family: Literal["index", "stitcher"]
    summary: str  # one line, for people
    source: str  # who defined it
    metrics: tuple[Metric, ...]
    score: str  # the metric by which layers are ranked
    params: type[Params] = NoParams
    revision: int = 1  # raised when the maths changes, so that stored values are not mistaken for new ones
    symmetric: bool = False  # whether source and target may be exchanged
    #: What may be done to the source, and to the target, without a change of the score.
    invariances: tuple[frozenset[Transform], frozenset[Transform]] = (frozenset(), frozenset())
    most_images: int | None = None  # looked at by default: n x n matrices grow with their square
    fewest_images: int = 2  # from which on it is defined
    is_trained: bool = False  # has seeds, epochs and a generator
    needs_labels: bool = False  # to find its map
    widths: Literal["any", "equal", "not narrower"] = "any"  # of the target, as against the source
    most_features: int | None = None  # of either layer

    def __post_init__(self) -> None:
        assert self.score in self.metric_names, f"{self.kind} has no metric {self.score}"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of its metrics, in order."""
        return tuple(metric.name for metric in self.metrics)

    def metric(self, name: str) -> Metric:
        """Return one of its metrics; `residual_at:LAYER` is that of one layer, evidence that of what it is for."""
        return next(metric for metric in self.metrics if metric.name == metric_of(name).partition(":")[0])

    def why_not(self, source: Layer, target: Layer) -> str | None:
        """Return why the kind says nothing of two layers, None where it does."""
        return self.why_not_widths((source.name, source.width), (target.name, target.width))

    def why_not_widths(self, source: tuple[str, int], target: tuple[str, int]) -> str | None:
        """Return why the kind says nothing of two things of so many features, each with its name."""
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
    """What the cost of a pair depends on: features of both layers, and rows or images."""

    source: int
    target: int
    num: int


def svd_flops(rows: int, columns: int) -> float:
    """Return the operations of a singular value decomposition with vectors, about (Golub & Van Loan)."""
    return 22.0 * max(rows, columns) * min(rows, columns) ** 2


def singular_values_flops(rows: int, columns: int) -> float:
    """Return the operations of singular values without vectors, about."""
    return 0.4 * svd_flops(rows, columns)


class Kind(ABC, Generic[P]):
    """One kind of matcher, with its parameters."""

    about: ClassVar[About]
    reads_target: ClassVar[bool] = False  # whether maps are trained on what the target makes of the same images
    axes_of: ClassVar[frozenset[Literal["source", "target"]]] = frozenset()  # whose principal axes it asks for

    def __init__(self, params: P):
        self.params = params

    def why_not(self, source: Layer, target: Layer) -> str | None:
        """Return why nothing can be said of two layers, None where it can."""
        return self.about.why_not(source, target)

    @property
    def fewest_images(self) -> int:
        """Number of images from which on it is defined with its parameters."""
        return self.about.fewest_images

    @classmethod
    def not_installed(cls, source: Layer, target: Layer) -> str | None:  # noqa: ARG003
        """Return which package two layers need that is not installed, and how to get it; None where none is missing."""
        return None

    def flops(self, sizes: Sizes) -> float:  # noqa: ARG002
        """Return the float64 operations for one pair of layers, beyond the statistics that it reads."""
        return 0.0


class MomentIndex(Kind[P]):
    """An index of second moments of rows: positions, tokens, or pooled images (`matchers.alignment`)."""

    @abstractmethod
    def compare(self, pairs: Sequence[PairMoments]) -> dict[str, Tensor]:
        """Return each metric of B pairs of layers: (B,), float64; NaN where it is undefined."""


class GramIndex(Kind[P], Generic[P, S]):
    """An index of n x n matrices of images, whose features are flattened layers."""

    #: Of `prepare`, about, as seen on one thread of an AMD EPYC beside a decomposition of 1,000 images.
    operations_per_pair_of_images: ClassVar[float] = 4.0
    reads_rows: ClassVar[bool] = False  # whether it asks for more of each image than its products with others
    reads_distances: ClassVar[bool] = False  # whether it asks for the distances, which a Gram matrix keeps from then on

    @abstractmethod
    def prepare(self, gram: Gram) -> S:
        """Return what is found once for each layer, whatever it is compared with."""

    @abstractmethod
    def compare(self, pairs: Sequence[tuple[S, S]]) -> dict[str, Tensor]:
        """Return each metric of B pairs of layers: (B,), float64; NaN where it is undefined."""

    def layer_flops(self, num_images: int) -> float:
        """Return the float64 operations that `prepare` takes, in those of a decomposition: sorting is slower."""
        return self.operations_per_pair_of_images * num_images**2

    def flops(self, sizes: Sizes) -> float:
        """Return the operations for one pair of layers: an inner product of n x n matrices, or less."""
        return 4.0 * sizes.num**2

    def prepared_bytes(self, num_images: int) -> int:  # noqa: ARG002
        """Return how much memory `prepare` takes for a layer beside the Gram matrix and its distances."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A map found in closed form."""

    map: AffineMap
    span: Span | None = None  # of the source's fit rows, where the map is arbitrary outside of it
    doubts: Mapping[str, Tensor] = field(default_factory=dict)  # flag -> whether it is to be set
    values: Mapping[str, Tensor] = field(default_factory=dict)  # of metrics of the kind's own


#: Moments of the fit images without one group of them, and of that group.
Folds = Sequence[tuple["PairMoments", "PairMoments"]]


class ClosedForm(Kind[P]):
    """A stitcher whose map follows from second moments of the fit rows."""

    @abstractmethod
    def fit(self, moments: PairMoments, folds: Folds = ()) -> Fit:
        """Return the map of one pair of layers; `folds` are what it asks for by `num_folds`."""

    def refit(self, fit: Fit, moments: PairMoments) -> AffineMap:  # noqa: ARG002
        """Return the map of other rows, with whatever `fit` chose by cross-validation."""
        return self.fit(moments).map

    @property
    def num_folds(self) -> int:
        """Into how many groups of fit images the moments are to be divided, for cross-validation; 0: none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a trained kind sees of S stitched networks into one layer of a target g, and of g, on the same N images."""

    head: Head  # of g
    labels_N: Tensor
    scores_SNK: Tensor | None = None  # of the stitched networks
    target_scores_NK: Tensor | None = None  # of g, where the kind reads it
    #: By node of g, what the stitched networks (S, N, P) and g (N, P) make there, flattened; in order of execution.
    stitched: Mapping[str, Tensor] = field(default_factory=dict)
    target: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Mapping[str, Tensor] = field(default_factory=dict)  # of these, mean squared norm of g's over the fit images


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """What some rows are on average."""

    row_P: Tensor
    square: Tensor  # of the norm


class Trained(Kind[P]):
    """A stitcher whose map is trained, step by step, through the frozen rest of the target."""

    #: Which layers of g are compared: `none`, the `last` cut before the scores, or the stitch and all `later` blocks.
    layers: ClassVar[Literal["none", "last", "later"]] = "none"

    @abstractmethod
    def losses(self, step: Step) -> Tensor:
        """Return the loss of each stitched network on each image: (S, N)."""

    def loss(self, step: Step) -> Tensor:
        """Return the sum over the stitched networks of their mean losses.

        Each network's map enters one term only, so its gradient is what training it alone would give.
        """
        return self.losses(step).mean(1).sum()

    @abstractmethod
    def followed(self, step: Step) -> Mapping[str, Tensor]:
        """Return what h is to follow, by name: (N, P) each; their means are the best constant prediction."""

    @abstractmethod
    def constant_loss(self, means: Mapping[str, Mean], head: Head, sizes: Mapping[str, Tensor]) -> float:
        """Return the mean loss of the best constant prediction, from the means of what is `followed`."""

    def why_not(self, source: Layer, target: Layer) -> str | None:
        """Return why nothing can be said of two layers, None where it can."""
        if getattr(self.params, "init", None) == "identity" and source.width != target.width:
            return f'init = "identity" needs layers of equal width, and {widths_of(source, target)}'
        if getattr(self.params, "adapter", None) == "conv3x3" and {source.kind, target.kind} != {"map"}:
            return (
                f'adapter = "conv3x3" needs feature maps, and {source.name} is a {source.kind}, '
                f"{target.name} a {target.kind}"
            )
        return self.about.why_not(source, target)
