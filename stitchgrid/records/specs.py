"""What a job file asks for: networks, images, matchers and recipes, before anything is built or drawn."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from stitchgrid.records.addresses import canonical


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
