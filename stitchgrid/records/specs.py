"""Networks, images, matchers and recipes as a job file asks for them, before anything is built or drawn."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from stitchgrid.records.addresses import canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How one network's images are prepared; the steps are applied in this order to pixels scaled to [0, 1]."""

    resize: int | tuple[int, int] | None = None  # shorter side, or (height, width)
    crop: int | tuple[int, int] | None = None  # centre crop
    mean: tuple[float, ...] | None = None  # per channel
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"  # bilinear | bicubic | nearest, antialiased
    channels: int = 3  # 1: luminance; other numbers: those that images have, as they are

    @property
    def image_channels(self) -> int:
        """Channels of the bytes that it prepares.

        >>> Preprocess(channels=1).image_channels, Preprocess(channels=12).image_channels
        (3, 12)
        """
        return 3 if self.channels == 1 else self.channels

    @property
    def address(self) -> str:
        """Its form in addresses: all fields, except those that were added later and have their default.

        >>> Preprocess().address
        '{"crop":null,"interpolation":"bilinear","mean":null,"resize":null,"std":null}'
        """
        fields = asdict(self)
        return canonical({name: value for name, value in fields.items() if name != "channels" or value != 3})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How the tokens of a network's sequences lie on a grid, as a job file gives it."""

    prefix: int  # class and register tokens, before the grid
    grid: tuple[int, int]  # height and width


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """How a network is called if it takes more than images or returns more than scores, and how its tokens lie."""

    inputs: str = "{}"  # canonical JSON of the constants for further arguments of its forward, by name
    output: str | int | None = None  # which of the things that it returns are the scores: key, attribute or position
    tokens: Tokens | None = None
    averages: bool = False  # whether scores at several positions of an image are averaged, as for embeddings

    @property
    def address(self) -> tuple[str, ...]:
        """Its part of a network's address; empty if the network is called in the ordinary way.

        `tokens` is left out, since a layer's own address has its layout.

        >>> Interface().address, Interface(output="logits").address
        ((), ('{"inputs":{},"output":"logits"}',))
        """
        if self.inputs == "{}" and self.output is None:
            return ()
        return (canonical({"inputs": json.loads(self.inputs), "output": self.output}),)


ORDINARY = Interface()  # from images to class scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained, if a job asks for that."""

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
    """Limits on files that others may have made. They are part of no address: what is read does not depend on them."""

    pixels: int = 100_000_000  # of an image
    file_bytes: int = 256_000_000  # of an image file
    scans: int = 100  # of a JPEG; each scan decodes the whole image
    members: int = 5_000_000  # files and folders below a root, or in an archive
    text: int = 1_000  # characters of the name of a class
    unpacking: int = 20  # times its own size that a large archive may unpack to
    tensors: int = 100_000  # of a checkpoint
    checkpoint_bytes: int = 100_000_000_000


DEFAULT_LIMITS = Limits()
FEATURES = "features"  # in place of an architecture: activations from files
HUGGINGFACE = "huggingface"  # networks of transformers, by a name of its hub or a folder
TWIN = "@untrained"  # a network's name with this suffix is the name of its untrained twin
STEP = "@"  # separates the name of a network from the step of its training


class ArchitectureWord(NamedTuple):
    """The two parts of how a job file names an architecture; both are empty where there are not two."""

    origin: str  # a library, `live`, a module that can be imported, or a file
    name: str  # of the network or function in it


def architecture_word(text: str) -> ArchitectureWord:
    """Return the parts of `ORIGIN:NAME`.

    >>> architecture_word("torchvision:resnet18")
    ArchitectureWord(origin='torchvision', name='resnet18')
    >>> architecture_word("nets/small.py:make").origin, architecture_word("huggingface:D:/nets").name
    ('nets/small.py', 'D:/nets')
    >>> architecture_word("features")
    ArchitectureWord(origin='', name='')
    """
    # A folder of Hugging Face may have a colon in its name, and so may the path of a file.
    origin, _, name = text.partition(":") if text.startswith(f"{HUGGINGFACE}:") else text.rpartition(":")
    return ArchitectureWord(origin, name) if origin and name else ArchitectureWord("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A network as a job file names it, before anything is built."""

    name: str  # "resnet20", "resnet20/0" for an entry with seeds, "resnet20@100" for one with steps
    entry: str  # name of the [[models]] entry
    architecture: str  # LIBRARY:NAME | huggingface:NAME_OR_FOLDER | package.module:function | FILE.py:function
    args: str = "{}"  # canonical JSON of the architecture's keyword arguments
    weights: str = "random"  # path of a checkpoint, a torchvision weights name, or "random"; "" when trained
    weights_key: str | None = None  # which set of tensors of the checkpoint; None: the only one that fits
    weights_strip: str | None = None  # prefix of its tensors' names; None: detected
    weights_adapter: str | None = None  # folder of a LoRA or DoRA adapter that is merged into them
    recipe: Recipe | None = None  # set when the network is trained by the sweep
    seed: int = 0  # of initialisation and training
    preprocess: Preprocess | None = None  # None: what the weights publish, else nothing
    layers: tuple[str, ...] = ("blocks",)
    base: str = "."  # folder of the job file: relative paths start here
    head: str | None = None  # one of HEADS; None: detected from its scores
    interface: Interface = ORDINARY
    limits: Limits = DEFAULT_LIMITS

    is_twin: bool = False  # the untrained twin of a network: its weights are those that the architecture draws

    @property
    def is_untrained(self) -> bool:
        """Whether its weights are those of its initialisation."""
        return self.is_twin or (self.weights == "random" and self.recipe is None)

    @property
    def is_features(self) -> bool:
        """Whether it stands for activations from files, not for a network; `weights` says where they are."""
        return self.architecture == FEATURES

    @property
    def is_made(self) -> bool:
        """Whether the sweep makes its weights and stores them."""
        return self.is_twin or self.recipe is not None

    @property
    def twin(self) -> "NetworkSpec":
        """The same architecture, arguments, seed and preprocessing, as it is before any training."""
        return replace(self, name=f"{self.name}{TWIN}", entry=f"{self.entry}{TWIN}", is_twin=True, recipe=None)


HEADS = ("logits", "probabilities", "binary", "multilabel", "regression", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatcherSpec:
    """One matcher of a job with all its parameters; an entry with seeds makes one per seed.

    `samples` names the images as version 0.1.0 did, so that cells keep their addresses. It is a number if a job gives
    one. It is None for that version's default (closed-form stitchers: as many fit images as `fit` has; trained ones:
    the whole split; indices: all evaluation images, at most 1,000 for n x n matrices). It is "all" for whole splits
    that version could name only by a number. Hence a trained kind that takes as many images as `fit` has holds that
    number, unless it is the whole split. Addresses have None for "all": there the digest of the images is different.
    """

    kind: str
    revision: int  # of the kind's maths
    params: str  # canonical JSON, after defaults, without seed, samples and metrics
    seed: int | None = None  # trained kinds only
    samples: int | str | None = None
    metrics: tuple[str, ...] = ()  # what the job asks for, in the kind's order

    @property
    def address_samples(self) -> int | str | None:
        """`samples` as addresses have it: None for "all"."""
        return None if self.samples == "all" else self.samples

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as a dictionary."""
        return dict(json.loads(self.params))

    @property
    def rank(self) -> int | None:
        """How many principal axes of the source are kept; None: the source is not reduced."""
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
    """Which images a sweep draws, as a job file names them."""

    dataset: str  # a known name, or FILE.py:function with an absolute path
    root: str | None = None  # absolute, or None if the data set needs none
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
    code: str = ""  # digest of FILE.py and function at planning; other code is not run ("": any code is run)
    limits: Limits = DEFAULT_LIMITS
    labels: str = "classes"  # classes | none: no label is read, all are 0 and there are no classes
    keys: str = "{}"  # canonical JSON: names of arrays or columns of files, for `images`, `labels`, `split`
    folder: str | None = None  # where the paths of a list start; None: in the list's own folder
    channels: int | None = None  # of arrays; 1 and None as RGB, 3, as None, without alpha, others as they are
    axes: str | None = None  # NCHW | NHWC, where the axis of channels is not clear from the shapes of arrays

    @property
    def has_labels(self) -> bool:
        """Whether labels are read."""
        return self.labels != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRecipe:
    """How detectors by energy are made; defaults are those of Balogh & Jelasity (2025), except for the outliers."""

    epochs: int = 100  # as a classifier of the layer's activations
    finetune_epochs: int = 20  # with outliers beside them
    width: int = 64  # of the first stage for maps; tokens get 3 times, vectors 8 times as many features
    depth: int = 12  # blocks, for tokens
    samples: int | None = None  # fit images used; None: all
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-5
    seed: int = 0
    outliers: str = "patch_shuffle"  # noise | patch_shuffle | data: those of another data set


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySpec:
    """The recipe and the images of every detector of a sweep."""

    recipe: EnergyRecipe
    num_fit: int  # fit images used
    fit_data: str  # digest of these
    outliers: DataSpec | None = None  # the data set whose evaluation images are the outliers, if it is another one
    outlier_data: str = ""  # digest of these
