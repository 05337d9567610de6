"""What travels between the stages: frozen, keyword-only dataclasses, free of torch, ray and paths of code.

A *network* is one frozen set of weights behind one architecture and one preprocessing. Layers, networks and matchers
are referred to by their position in the sweep they belong to, so that a shard stays a handful of integers.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, the form in which things are hashed and stored.

    >>> canonical({"b": 1, "a": [1, 2]})
    '{"a":[1,2],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*parts: str | bytes) -> str:
    """Return 32 hex digits of the SHA-256 over the parts, each preceded by its length.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    return hashlib.sha256(framed(*parts)).hexdigest()[:32]


def framed(*parts: str | bytes) -> bytes:
    """Return the parts one after the other, each preceded by its length.

    >>> framed("ab", "c") == framed("ab") + framed("c")
    True
    """
    raw = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How one network wants its images, applied in this order to pixels scaled to [0, 1]."""

    resize: int | tuple[int, int] | None = None  # shorter side, or (height, width)
    crop: int | tuple[int, int] | None = None  # centre crop
    mean: tuple[float, ...] | None = None  # per channel
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"  # bilinear | bicubic | nearest, antialiased
    channels: int = 3  # 1: luminance

    @property
    def address(self) -> str:
        """How it stands in addresses: all of it, but for what came later and has its default.

        >>> Preprocess().address
        '{"crop":null,"interpolation":"bilinear","mean":null,"resize":null,"std":null}'
        """
        fields = asdict(self)
        return canonical({name: value for name, value in fields.items() if name != "channels" or value != 3})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How the tokens of a network's sequences lie, as a job file says it."""

    prefix: int  # class and register tokens, before the grid
    grid: tuple[int, int]  # height and width


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """How a network is called, where it does not map images alone to scores alone, and what its sequences are."""

    inputs: str = "{}"  # canonical JSON of the constants for further arguments of its forward, by name
    output: str | int | None = None  # which of the things that it returns are the scores: key, attribute or position
    tokens: Tokens | None = None
    averages: bool = False  # scores of several positions of an image are averaged over them: embeddings are

    @property
    def address(self) -> tuple[str, ...]:
        """How it stands in the address of a network: not at all where it is called in the ordinary way.

        `tokens` is left out: how a layer is read is part of the layer's own address.

        >>> Interface().address, Interface(output="logits").address
        ((), ('{"inputs":{},"output":"logits"}',))
        """
        if self.inputs == "{}" and self.output is None:
            return ()
        return (canonical({"inputs": json.loads(self.inputs), "output": self.output}),)


ORDINARY = Interface()  # from images to class scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained when a job asks for one."""

    epochs: int
    optimizer: str = "sgd"  # sgd | adam | adamw
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    schedule: str = "cosine"  # constant | cosine | onecycle
    augment: str = "none"  # none | crop4_flip


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is read of files that others may have made; part of no identity: what is read is the same."""

    pixels: int = 100_000_000  # of an image
    file_bytes: int = 256_000_000  # of an image file
    scans: int = 100  # of a JPEG, each of which decodes it whole
    members: int = 5_000_000  # files and folders below a root, or in an archive
    text: int = 1_000  # characters of the name of a class
    unpacking: int = 20  # times its size that an archive may unpack to, where that is much
    tensors: int = 100_000  # of a checkpoint
    checkpoint_bytes: int = 100_000_000_000


DEFAULT_LIMITS = Limits()


FEATURES = "features"  # in place of an architecture: activations from files
TWIN = "@untrained"  # behind the name of a network, the name of its untrained twin
STEP = "@"  # between the name of a network and the step of its training


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A network as a job file names it, before anything is built."""

    name: str  # "resnet20", "resnet20/0" for an entry with seeds, "resnet20@100" for one with steps
    entry: str  # name of the [[models]] entry
    architecture: str  # LIBRARY:NAME | huggingface:NAME_OR_FOLDER | package.module:function | FILE.py:function
    args: str = "{}"  # canonical JSON of the architecture's keyword arguments
    weights: str = "random"  # path of a checkpoint, a torchvision weights name, or "random"; "" when trained
    weights_key: str | None = None  # which set of tensors of the checkpoint; None: the only one that fits
    weights_strip: str | None = None  # what is in front of its names; None: found out
    weights_adapter: str | None = None  # folder of a LoRA adapter that is merged into them
    recipe: Recipe | None = None  # set when the network is trained by the sweep
    seed: int = 0  # of initialisation and training
    preprocess: Preprocess | None = None  # None: what the weights publish, else nothing
    layers: tuple[str, ...] = ("blocks",)
    base: str = "."  # folder of the job file: relative paths start here
    head: str | None = None  # one of HEADS; None: what its scores look like
    interface: Interface = ORDINARY
    limits: Limits = DEFAULT_LIMITS

    is_twin: bool = False  # the untrained twin of a network: its weights are those that the architecture draws

    @property
    def is_untrained(self) -> bool:
        """Whether its weights are those of its initialisation."""
        return self.is_twin or (self.weights == "random" and self.recipe is None)

    @property
    def is_features(self) -> bool:
        """Whether it is no network but activations from files; `weights` says where they are."""
        return self.architecture == FEATURES

    @property
    def is_made(self) -> bool:
        """Whether the sweep makes its weights, and keeps them."""
        return self.is_twin or self.recipe is not None

    @property
    def twin(self) -> "NetworkSpec":
        """The same architecture, arguments, seed and preprocessing, as it is before any training."""
        return replace(self, name=f"{self.name}{TWIN}", entry=f"{self.entry}{TWIN}", is_twin=True, recipe=None)


HEADS = ("logits", "probabilities", "binary", "multilabel", "regression", "embedding")
NO_HEAD = "none"  # of features, which have no scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the scores (N, K) at the end of a network say."""

    kind: str = "logits"  # one of HEADS, or NO_HEAD
    is_probability: bool = False  # scores lie in [0, 1]: after a softmax, or sigmoids

    @property
    def has_classes(self) -> bool:
        """Whether the scores answer a question of classes, so that accuracy and agreement mean something."""
        return self.kind not in ("regression", "embedding", NO_HEAD)

    @property
    def has_scores(self) -> bool:
        """Whether there is anything behind the layers: what is stitched into features has no network to run."""
        return self.kind != NO_HEAD

    @property
    def address(self) -> tuple[str, ...]:
        """Share of the address of a stitch into the network; nothing for logits."""
        return () if self == Head() else ("head", self.kind, str(self.is_probability))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSummary:
    """Three numbers about one tensor, by which two versions of it can be told apart."""

    mean: float
    std: float
    projection: float  # sum of its numbers with fixed random signs, over the root of their number


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a network computes from a few given images: one summary for each selected cut and for the scores."""

    input_shape: tuple[int, ...]  # (C, H, W) of the images: noise of another size is another
    noise: tuple[tuple[str, TensorSummary], ...]  # by node, of seeded noise
    images: tuple[tuple[str, TensorSummary], ...] = ()  # the same of the first evaluation images
    images_digest: str = ""  # of those


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
        """Whether it is a sequence of which nothing tells how its tokens lie on a grid."""
        return self.kind == "tokens" and self.grid is None

    @property
    def layout(self) -> str:
        """How a batch is read, as far as its shape does not say: part of a cell's address."""
        return canonical([self.axes, self.num_prefix, self.grid])


def was_resized_on_a_guess(source: Layer, target: Layer) -> bool:
    """Return whether version 0.1.0 resized one layer to another though a sequence's grid is not known.

    It took such a sequence for a line of positions. Its values of these cells must not be mistaken for new ones.
    """
    if not (source.is_in_order_only or target.is_in_order_only) or "vector" in {source.kind, target.kind}:
        return False
    ours, theirs = (
        (layer.num_prefix, layer.grid or (1, layer.num_tokens - layer.num_prefix)) for layer in (source, target)
    )
    return ours != theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network whose weights are known: what a cell's address is made of."""

    spec: NetworkSpec
    network_id: str  # digest of weights, architecture, arguments, own code and preprocessing
    artefact: str | None = None  # key of the trained weights in the store, None where they come from elsewhere
    weights_digest: str  # of the tensors alone
    preprocess: Preprocess  # after defaults
    layers: tuple[Layer, ...]  # the selected ones, in order of execution
    num_cuts: int
    num_classes: int
    is_labelled: bool = True  # whether its classes are those of the images
    num_parameters: int
    input_shape: tuple[int, int, int]  # (C, H, W) after preprocessing
    flops: float  # one forward pass of one image
    num_kept_bytes: int  # of one image, from the input to the scores, for a gradient to find its way back
    way: str = "graph"  # graph | hooks | features: how its halves are made; features have none
    plain_id: str = ""  # the address by what is known of it without running it; "": its fingerprint adds nothing
    head: Head = Head()
    fingerprint: Fingerprint | None = None  # None: still to be trained
    types: str = ""  # what to know of its weights' types, where they are not float32
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MatcherSpec:
    """One matcher of a job with all its parameters; an entry with seeds makes one per seed.

    `samples` says on which images, the way it did in version 0.1.0, so that cells keep their addresses: a number where
    a job gives one, None for what left out meant then (closed-form stitchers: as many fit images as `fit` has; trained
    ones: the whole split; indices: all evaluation images, at most 1,000 for n x n matrices), and "all" for whole splits
    that version could not name but by a number. Hence a trained kind that takes as many images as `fit` has holds that
    number, if it is not the whole split. In addresses "all" is None: the digest of the images tells them apart.
    """

    kind: str
    revision: int  # of the kind's maths
    params: str  # canonical JSON, after defaults, without seed, samples and metrics
    seed: int | None = None  # trained kinds only
    samples: int | str | None = None
    metrics: tuple[str, ...] = ()  # what the job asks for, in the kind's order

    @property
    def address_samples(self) -> int | str | None:
        """The number of images as addresses have it: none where all are looked at."""
        return None if self.samples == "all" else self.samples

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as a dictionary."""
        return dict(json.loads(self.params))

    @property
    def rank(self) -> int | None:
        """How many principal axes of the source are kept; None: the source is what it is."""
        return self.values.get("rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """The linear probes of a job: L2-regularised logistic regression from pooled layers."""

    ranks: tuple[int | None, ...] = (None,)  # None: the layer as it is
    C: float = 1.0  # inverse of the penalty, as scikit-learn has it
    max_iter: int = 1000
    samples: int | None = None  # fit images; None: as many as closed-form maps


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Which images a sweep looks at, as a job file names them."""

    dataset: str  # a known name, or FILE.py:function with an absolute path
    root: str | None = None  # absolute, or None where the data set needs none
    seed: int = 0
    fit_split: str = "train"
    fit_samples: int | None = None  # None: all
    eval_split: str = "test"
    eval_samples: int | None = None
    on_bad_image: str = "error"  # error | skip
    download: bool = False  # torchvision data sets only
    range: tuple[float, float] | None = None  # black and white of pixels that have more than eight bits or a sign
    classes: tuple[str, ...] | None = None  # in the order of the networks' classes; None: as the data set has them
    class_order: str = "sorted"  # sorted | natural
    args: str = "{}"  # canonical JSON of the keyword arguments of FILE.py:function
    code: str = ""  # digest of FILE.py and function as a sweep was planned with; other code is not run ("": any is)
    limits: Limits = DEFAULT_LIMITS
    labels: str = "classes"  # classes | none: no label is read, all are 0 and there are no classes
    keys: str = "{}"  # canonical JSON: what arrays or columns of files are called, by `images`, `labels`, `split`
    folder: str | None = None  # where the paths of a list start; None: at the list

    @property
    def has_labels(self) -> bool:
        """Whether labels are read."""
        return self.labels != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRecipe:
    """How detectors by energy are made; defaults are those of Balogh & Jelasity (2025), but for the outliers."""

    epochs: int = 100  # as a classifier of the layer's activations
    finetune_epochs: int = 20  # with outliers beside them
    width: int = 64  # of the first stage for maps; tokens get 3 times, vectors 8 times as many features
    depth: int = 12  # blocks, for tokens
    samples: int | None = None  # fit images looked at; None: all
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-5
    seed: int = 0
    outliers: str = "patch_shuffle"  # noise | patch_shuffle | data: those of another data set


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySpec:
    """What every detector of a sweep is made by and from."""

    recipe: EnergyRecipe
    num_fit: int  # fit images looked at
    fit_data: str  # digest of them
    outliers: DataSpec | None = None  # where they come from another data set: its evaluation images
    outlier_data: str = ""  # digest of those


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One ordered layer pair times one matcher (times one seed, for trained kinds), by position in its sweep."""

    cell_id: str  # digest of everything that decides its values
    source: int  # position of the network in the sweep
    source_layer: int  # position among the network's selected layers
    target: int
    target_layer: int
    matcher: int

    @property
    def source_key(self) -> tuple[int, int]:
        """Where the stitch starts: (network, layer)."""
        return self.source, self.source_layer

    @property
    def target_key(self) -> tuple[int, int]:
        """Where the stitch ends: (network, layer)."""
        return self.target, self.target_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some layers of one source network against some layers of one target network."""

    source: int
    target: int
    source_layers: tuple[int, ...]
    target_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of work of one worker: some blocks times some matchers."""

    unit_id: str
    blocks: tuple[Block, ...]
    matchers: tuple[int, ...]
    flops: float  # by the cost model
    num_cells: int  # cells to compute, after finished ones are taken out
    wanted: frozenset[str] | None = None  # cell ids to compute; None: all
    generations: tuple[tuple[str, int], ...] = ()  # of cells that are, or were, computed again; of all others 0

    @property
    def networks(self) -> frozenset[int]:
        """Positions of the networks the shard needs."""
        return frozenset(i for block in self.blocks for i in (block.source, block.target))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNetwork:
    """The unit of work that makes one trained network of a recipe."""

    unit_id: str  # also the key of the artefact it writes
    spec: NetworkSpec
    data: DataSpec
    flops: float = 0.0
    num_cells: int = 1  # networks made, for progress
    generation: int = 0  # of the cells for which it is made anew

    @property
    def networks(self) -> frozenset[int]:
        """None of the sweep's networks exist yet."""
        return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class OfNetwork:
    """A unit of work about one network of a sweep; it writes one artefact."""

    unit_id: str  # also the key of the artefact
    network: int
    flops: float = 0.0
    num_cells: int = 1  # artefacts made, for progress
    generation: int = 0  # of the cells for which it is made anew

    @property
    def networks(self) -> frozenset[int]:
        """The network it is about."""
        return frozenset({self.network})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateNetwork(OfNetwork):
    """The unit of work that measures one network, unstitched, on the evaluation images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNetwork(OfNetwork):
    """The unit of work that probes all selected layers of one network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDetector(OfNetwork):
    """The unit of work that makes the detector by energy of one target layer."""

    layer: int


Unit = Shard | TrainNetwork | EvaluateNetwork | ProbeNetwork | TrainDetector


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """What a worker says when a unit is finished: everything else it wrote to the store itself."""

    unit_id: str
    num_cells: int = 0  # with values
    num_failed: int = 0  # with an error
    seconds: float = 0.0
    part: str | None = None  # name of the part written


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one cell, or (metric None) the error of a cell that has none."""

    cell_id: str
    status: str  # done | failed | quarantined
    metric: str | None
    value: float | None  # None: undefined, see flags; never 0 for missing
    higher_is_similar: bool | None
    error: str | None
    source_network: str  # digests: names belong to a sweep
    source_layer: str
    target_network: str
    target_layer: str
    matcher: str
    params: str
    seed: int | None
    num_fit: int | None  # images
    num_eval: int | None
    num_rows: int | None  # rows of features the value was computed from
    seconds: float | None  # of work for this cell, shared steps divided among their cells
    device: str
    precision: str
    alignment: str | None
    flags: tuple[str, ...]
    source_weights: str
    target_weights: str
    data: str
    shard: str
    version: str
    created_at: str  # ISO 8601, UTC
    low: float | None = None  # of rows of evidence for a metric (`matchers.evidence`): its 95 % interval,
    high: float | None = None
    replicates: tuple[float, ...] | None = None  # its values without each group of images,
    null: tuple[float, ...] | None = None  # and with images shuffled
    generation: int | None = None  # of the cell, where it was computed again: rows of the highest count alone
    libraries: str | None = None  # canonical JSON: versions of those that decide what its networks compute


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A resolved job: all a worker needs to compute any of its shards."""

    name: str
    seed: int
    data: DataSpec
    networks: tuple[Network, ...]
    pairs: tuple[tuple[int, int], ...]  # (source, target), by position in networks
    matchers: tuple[MatcherSpec, ...]
    precision: str  # fp32 | tf32 | bf16
    batch_size: int
    eval_data: str  # digest of the evaluation images and labels
    fit_data: str  # digest of all fit images and labels
    need_fit: int | None  # how many fit images any matcher looks at, None: the whole split
    num_fit: int  # fit images drawn
    num_eval: int
    num_fit_closed: int  # images on which closed-form maps are fitted, by default
    matcher_data: tuple[str, ...]  # per matcher: digest of the images and labels its values depend on
    probes: ProbeSpec | None = None
    probe_data: str = ""  # digest of the images and labels that probes depend on
    energy: EnergySpec | None = None  # where a matcher asks for it
    compiles: bool = False  # networks run by torch.compile: part of no identity
    groups: int | None = None  # of evaluation images, without each of which values are found anew
    shuffles: int = 0  # draws in which the source's images are shuffled
    wish_fit: int = 0  # so many fit images are taken where there are as many

    @property
    def num_probe_fit(self) -> int:
        """How many fit images probes are fitted on."""
        samples = None if self.probes is None else self.probes.samples
        return min(samples or self.num_fit_closed, self.num_fit)

    @cached_property
    def matcher_address(self) -> tuple[str, ...]:
        """Per matcher, the share of a cell's address that does not depend on the layer pair."""
        return tuple(
            self._matcher_address(spec, data) for spec, data in zip(self.matchers, self.matcher_data, strict=True)
        )

    def _matcher_address(self, spec: MatcherSpec, data: str) -> str:
        return canonical(
            {
                "kind": spec.kind,
                "revision": spec.revision,
                "params": spec.params,
                "seed": spec.seed,
                "samples": spec.address_samples,
                "data": data,
                "precision": self.precision,
            }
        )

    @cached_property
    def _layer_bytes(self) -> tuple[tuple[bytes, ...], ...]:
        """Per network and layer, the share of a cell's address that is the layer's."""
        return tuple(
            tuple(framed(network.network_id, layer.node, layer.layout) for layer in network.layers)
            for network in self.networks
        )

    @cached_property
    def _matcher_bytes(self) -> tuple[bytes, ...]:
        return tuple(framed(address) for address in self.matcher_address)

    @cached_property
    def _is_stitcher(self) -> tuple[bool, ...]:
        """Per matcher, whether it lays the source's rows on the target's and runs the rest of it; indices do not."""
        return tuple("resize" in spec.values for spec in self.matchers)

    @cached_property
    def _head_bytes(self) -> tuple[bytes, ...]:
        """Per network, the share of the address of a stitch into it that is its head's."""
        return tuple(framed(*network.head.address) for network in self.networks)

    @cached_property
    def _has_order_only(self) -> bool:
        """Whether of the tokens of some layer only the order is known."""
        return any(layer.is_in_order_only for network in self.networks for layer in network.layers)

    def _layer(self, key: tuple[int, int]) -> Layer:
        return self.networks[key[0]].layers[key[1]]

    def cell(self, source: int, source_layer: int, target: int, target_layer: int, matcher: int) -> Cell:
        """Return the cell at these positions; its id depends on content alone, never on names or speed settings.

        The id is the digest of both layers' network, node and layout and of the matcher's address, framed in this
        order, then, of a stitch into a network whose scores are no logits, of what they are; shares that many cells
        have in common are framed once.
        """
        return Cell(
            cell_id=self._cell_id(
                (source, source_layer), (target, target_layer), matcher, self._matcher_bytes[matcher]
            ),
            source=source,
            source_layer=source_layer,
            target=target,
            target_layer=target_layer,
            matcher=matcher,
        )

    def _cell_id(self, source: tuple[int, int], target: tuple[int, int], matcher: int, address: bytes) -> str:
        layers = self._layer_bytes
        address = layers[source[0]][source[1]] + layers[target[0]][target[1]] + address
        if self._is_stitcher[matcher]:
            address += self._head_bytes[target[0]]
            if self._has_order_only and was_resized_on_a_guess(self._layer(source), self._layer(target)):
                address += framed("in order")
        return hashlib.sha256(address).hexdigest()[:32]

    def full_rank_id(self, cell: Cell) -> str:
        """Return the id of a cell but for the rank of its source: maps of all ranks start from the same place."""
        spec = self.matchers[cell.matcher]
        if spec.rank is None:
            return cell.cell_id
        values = {name: value for name, value in spec.values.items() if name != "rank"}
        address = self._matcher_address(replace(spec, params=canonical(values)), self.matcher_data[cell.matcher])
        return self._cell_id(cell.source_key, cell.target_key, cell.matcher, framed(address))

    def block(self, source: int, target: int) -> Block:
        """Return every selected layer of one network against every one of another."""
        source_layers, target_layers = (tuple(range(len(self.networks[k].layers))) for k in (source, target))
        return Block(source=source, target=target, source_layers=source_layers, target_layers=target_layers)

    def source_layers(self, block: Block) -> list[Layer]:
        """Return the layers that a block stitches from."""
        return [self.networks[block.source].layers[layer] for layer in block.source_layers]

    def target_layers(self, block: Block) -> list[Layer]:
        """Return the layers that a block stitches into."""
        return [self.networks[block.target].layers[layer] for layer in block.target_layers]

    def cells(self, shard: Shard) -> Iterator[Cell]:
        """Yield the cells of a shard that are wanted, target layers outermost."""
        for block in shard.blocks:
            for target_layer in block.target_layers:
                for source_layer in block.source_layers:
                    for matcher in shard.matchers:
                        cell = self.cell(block.source, source_layer, block.target, target_layer, matcher)
                        if shard.wanted is None or cell.cell_id in shard.wanted:
                            yield cell
