"""Networks whose weights are known, their layers and heads."""

from dataclasses import dataclass

from stitchgrid.records.addresses import canonical
from stitchgrid.records.specs import NetworkSpec, Preprocess

NO_HEAD = "none"  # of features, which have no scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The meaning of the scores (N, K) at the end of a network."""

    kind: str = "logits"  # one of HEADS, or NO_HEAD
    is_probability: bool = False  # scores lie in [0, 1]: after a softmax, or sigmoids

    @property
    def has_classes(self) -> bool:
        """Whether the scores name classes, so that accuracy and agreement are defined."""
        return self.kind not in ("regression", "embedding", NO_HEAD)

    @property
    def has_scores(self) -> bool:
        """Whether the network has scores; features have none, so no network is run behind a stitch into them."""
        return self.kind != NO_HEAD

    @property
    def address(self) -> tuple[str, ...]:
        """The head's part of the address of a stitch into the network; empty for logits."""
        return () if self == Head() else ("head", self.kind, str(self.is_probability))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSummary:
    """Three numbers about one tensor, which show whether two versions of it differ."""

    mean: float
    std: float
    projection: float  # sum of its numbers with fixed random signs, over the root of how many they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a network computes from a few given images: one summary for each selected cut and for the scores."""

    input_shape: tuple[int, ...]  # (C, H, W) of the images; noise depends on it
    noise: tuple[tuple[str, TensorSummary], ...]  # by node, on seeded noise
    images: tuple[tuple[str, TensorSummary], ...] = ()  # by node, on the first evaluation images
    images_digest: str = ""  # of these images


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A cut of a network: a tensor through which every path from input to output passes."""

    name: str
    node: str  # torchvision's node name
    depth: float  # position among all cuts of the network, in [0, 1]
    kind: str  # map | tokens | vector
    axes: str  # what the axes of a batch stand for: NCHW | NHWC | NTD | NDT | ND
    shape: tuple[int, ...]  # of one image's activation, without the batch
    flops: float  # multiply-adds times two, from the input to here, one image
    num_prefix: int = 0  # tokens before the grid: CLS and registers
    grid: tuple[int, int] | None = None  # (height, width) of the positions, None for vectors and 1-d sequences

    @property
    def feature_axis(self) -> int:
        """Position of the features among the axes of a batch.

        >>> Layer(name="x", node="x", depth=0, kind="map", axes="NHWC", shape=(7, 7, 96), flops=0).feature_axis
        3
        """
        return max(self.axes.find("C"), self.axes.find("D"))

    @property
    def width(self) -> int:
        """Number of features of one row: channels of a map, D of tokens and vectors."""
        return self.shape[self.feature_axis - 1]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a sequence, those before its grid included."""
        return self.shape[self.axes.index("T") - 1]

    @property
    def is_in_order_only(self) -> bool:
        """Whether it is a sequence whose tokens have an order but no known grid."""
        return self.kind == "tokens" and self.grid is None

    @property
    def layout(self) -> str:
        """How a batch is read, beyond what its shape tells; part of a cell's address."""
        return canonical([self.axes, self.num_prefix, self.grid])


def was_resized_on_a_guess(source: Layer, target: Layer) -> bool:
    """Return whether version 0.1.0 resized one layer to another although a sequence's grid is not known.

    It treated such a sequence as a line of positions. Its values of these cells must not be mistaken for new ones.
    """
    if not (source.is_in_order_only or target.is_in_order_only) or "vector" in {source.kind, target.kind}:
        return False
    source_positions, target_positions = (
        (layer.num_prefix, layer.grid or (1, layer.num_tokens - layer.num_prefix)) for layer in (source, target)
    )
    return source_positions != target_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A resolved network, with all that the addresses of its cells are made of."""

    spec: NetworkSpec
    network_id: str  # digest of weights, architecture, arguments, own code and preprocessing
    artefact: str | None = None  # key of the trained weights in the store; None if they come from elsewhere
    weights_digest: str  # of the tensors alone
    preprocess: Preprocess  # after defaults
    layers: tuple[Layer, ...]  # the selected ones, in order of execution
    num_cuts: int
    num_classes: int
    is_labelled: bool = True  # whether its classes are those of the images
    num_parameters: int
    input_shape: tuple[int, int, int]  # (C, H, W) after preprocessing
    flops: float  # one forward pass of one image
    num_kept_bytes: int  # of one image, from the input to the scores, that a backward pass needs
    way: str = "graph"  # graph | hooks | features: how its halves are made; features have none
    plain_id: str = ""  # the address without the fingerprint; "": the fingerprint adds nothing to it
    head: Head = Head()
    fingerprint: Fingerprint | None = None  # None: still to be trained
    types: str = ""  # a remark on the types of its weights, if they are not float32
    code: str = ""  # digest of the code behind it, compared before any of it runs; "": not known

    @property
    def name(self) -> str:
        """The name the job file gave it."""
        return self.spec.name

    @property
    def is_untrained(self) -> bool:
        """Whether its weights are those of its initialisation."""
        return self.spec.is_untrained

    @property
    def is_known(self) -> bool:
        """Whether its weights exist; those of a network still to be trained do not."""
        return bool(self.weights_digest)
