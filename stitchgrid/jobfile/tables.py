"""The tables of a job file that name images, networks and recipes. A field is a key.

The default of a field holds if the key is left out. The manual shows the text under a field, and so does the error
for a missing key.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from stitchgrid.datasets.registry import DATASETS
from stitchgrid.errors import nearest
from stitchgrid.jobfile.values import (
    Architecture,
    Channels,
    Count,
    DatasetName,
    Globs,
    Grid,
    JobTable,
    Name,
    NumChannels,
    Output,
    PositiveChannels,
    Range,
    Seed,
    Seeds,
    Size,
    SweepName,
    UserPath,
    Wanted,
    Word,
    Words,
    by,
)
from stitchgrid.paths import check_path
from stitchgrid.records import (
    DEFAULT_LIMITS,
    Interface,
    Limits,
    Preprocess,
    Recipe,
    Tokens,
    canonical,
)

ADAPTIVE_LR = 1e-3  # default of adam and adamw, which diverge at sgd's


WEIGHTS = 'a checkpoint, a torchvision weights name, { train = "RECIPE" }, or "random" for an untrained network'


def _weights(value: Any) -> "str | TrainTable | CheckpointTable":
    if isinstance(value, str) and value:
        return check_path(value)
    if isinstance(value, dict) and value.keys() == {"train"} and isinstance(value["train"], str):
        return TrainTable(train=value["train"])
    if isinstance(value, dict) and "file" in value:
        if unknown := sorted(value.keys() - CheckpointTable.model_fields.keys()):
            raise ValueError(f"unknown key {unknown[0]!r}; {nearest(unknown[0], CheckpointTable.model_fields)}")
        if all(isinstance(one, str) for one in value.values()) and value["file"]:
            paths = {key: check_path(value[key]) for key in ("file", "adapter") if key in value}
            return CheckpointTable(**{**value, **paths})
        raise ValueError(
            f"{', '.join(f'`{key}`' for key in CheckpointTable.model_fields)} are texts, as in "
            f'{{ file = "x.ckpt", key = "ema" }}, got {value!r}'
        )
    raise ValueError(f"{WEIGHTS}, got {value!r}")


class TopLevelTable(JobTable):
    """The top-level table: the keys outside every section."""

    name: SweepName
    """what the sweep is called in the store"""
    seed: Seed = 0
    """decides the order in which images are drawn"""


class FitTable(JobTable):
    """`fit` under [data]: images on which maps are fitted."""

    split: str = "train"
    """the sub-folder, or split of the data set"""
    samples: Count | None = None
    """how many of its images; left out: all of them"""


class EvalTable(JobTable):
    """`eval` under [data]: images on which everything is reported."""

    split: str = "test"
    """the sub-folder, or split of the data set"""
    samples: Count | None = None
    """how many of its images; left out: all of them"""


class OutliersTable(JobTable):
    """[data.outliers]: images of another data set, for detectors by energy."""

    dataset: DatasetName
    """as under [data]"""
    root: UserPath | None = None
    """as under [data]"""
    split: str = "test"
    """the sub-folder, or split of the data set"""
    samples: Count | None = None
    """how many of its images; left out: all of them"""
    range: Range | None = None
    """as under [data]"""
    channels: Count | None = None
    """as under [data]"""
    axes: Literal["NCHW", "NHWC"] | None = None
    """as under [data]"""
    args: dict[str, JsonValue] | None = None
    """as under [data]"""


class KeysTable(JobTable):
    """[data.keys]: the names of arrays, columns or members; `{split}` in them stands for the split."""

    images: Word | None = None
    """of the images"""
    labels: Word | None = None
    """of the labels"""
    split: Word | None = None
    """of the column that says which split an image belongs to"""


class DataTable(JobTable):
    """[data]: which images the networks look at."""

    dataset: DatasetName = Field(
        description=f"{', '.join(f'`{name}`' for name in DATASETS)}, a data set of torchvision, or your own"
    )
    root: UserPath | None = None
    """where the images are, as seen from the job file; `${VAR}` and `~` are allowed"""
    fit: FitTable = FitTable()
    """images on which maps are fitted"""
    eval: EvalTable = EvalTable()
    """images on which everything is reported"""
    labels: Literal["classes", "agreement", "none"] = "classes"
    """`agreement`: networks may know other classes than the images, and what needs labels is left out; `none`: the
    images have no labels"""
    on_bad_image: Literal["error", "skip"] = "error"
    """what to do with an image that cannot be read"""
    download: bool = False
    """let torchvision fetch its data set"""
    range: Range | None = None
    """black and white of pixels that have more than eight bits, or a sign"""
    classes: Words | None = None
    """names of the classes in the order of the networks' outputs"""
    class_order: Literal["sorted", "natural"] | None = None
    """instead of `classes`: `natural` is 1, 2, 10 and `sorted` 1, 10, 2; left out: sorted"""
    args: dict[str, JsonValue] | None = None
    """arguments of `FILE.py:function`"""
    keys: KeysTable | None = None
    """the names of arrays, columns or members, see [data.keys]"""
    folder: UserPath | None = None
    """where the paths of a list start; left out: the list's own folder"""
    channels: Count | None = None
    """of images in arrays, if they are not grey or RGB: all are kept as they are; left out: 1, 3, or 4 with alpha"""
    axes: Literal["NCHW", "NHWC"] | None = None
    """of images in arrays, if their shape does not show which axis holds the channels"""
    outliers: OutliersTable | None = None
    """images of another data set, see [data.outliers]"""


class NumericsTable(JobTable):
    """[numerics]: where and how networks run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """of running networks; part of a cell's address"""
    batch_size: Count = 256
    """images at a time; changes speed and memory, never a value"""
    compile: bool = False
    """run networks through `torch.compile`"""


class LimitsTable(JobTable):
    """[limits]: how large images and checkpoints may be, since others may have made them."""

    pixels: Count = DEFAULT_LIMITS.pixels
    """of one image"""
    file_bytes: Count = DEFAULT_LIMITS.file_bytes
    """of one image file"""
    scans: Count = DEFAULT_LIMITS.scans
    """of one JPEG"""
    members: Count = DEFAULT_LIMITS.members
    """files and folders below a root, or members of an archive"""
    text: Count = DEFAULT_LIMITS.text
    """characters of the name of a class"""
    unpacking: Count = DEFAULT_LIMITS.unpacking
    """times its own size that a large archive may unpack to"""
    tensors: Count = DEFAULT_LIMITS.tensors
    """of one checkpoint"""
    checkpoint_bytes: Count = DEFAULT_LIMITS.checkpoint_bytes
    """of one checkpoint, packed or unpacked"""

    def to_record(self) -> Limits:
        """Return it as the record that travels."""
        return Limits(**self.model_dump())


class PreprocessTable(JobTable):
    """`preprocess` of a model: how its images are prepared."""

    channels: NumChannels = 3  # before mean and std, which have as many numbers
    """3: red, green, blue; 1: luminance; others: those of images with other `channels` in [data], as they are"""
    resize: Size = None
    """a number: the shorter side, in proportion; two: height and width"""
    crop: Size = None
    """the middle of it"""
    mean: Channels | None = None
    """is subtracted from pixels in [0, 1]"""
    std: PositiveChannels | None = None
    """divides what is left"""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """of `resize`"""

    def to_record(self) -> Preprocess:
        """Return it as the record that travels."""
        return Preprocess(**dict(self))


class RecipeTable(JobTable):
    """[recipes.NAME]: how networks with `weights = { train = "NAME" }` are trained, on the whole fit split."""

    epochs: Count
    """passes over the images"""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """the optimiser"""
    lr: Annotated[float, Field(gt=0)] | None = None  # default: the record's for sgd, ADAPTIVE_LR for the others
    """learning rate; left out: 0.1 for sgd, 0.001 for the others"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of sgd"""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """on all parameters"""
    batch_size: Count = 128
    """images a step"""
    schedule: Literal["constant", "cosine", "onecycle"] = "cosine"
    """of the learning rate"""
    augment: Literal["none", "crop4_flip"] = "none"
    """`crop4_flip`: moved by up to 4 pixels, and mirrored in half of the cases"""

    def to_record(self) -> Recipe:
        """Return it as the record that travels."""
        default = {} if self.optimizer == "sgd" else {"lr": ADAPTIVE_LR}
        return Recipe(**{**default, **self.model_dump(exclude_none=True)})


class TrainTable(JobTable):
    """`weights = { train = "RECIPE" }`."""

    train: str
    """the name of a recipe"""


class TokensTable(JobTable):
    """`tokens` of a model: how the tokens of its sequences lie on a grid, if the network does not tell."""

    prefix: Annotated[int, Field(ge=0)] = 0
    """class and register tokens in front"""
    grid: Grid
    """of the others"""

    def to_record(self) -> Tokens:
        """Return it as the record that travels."""
        return Tokens(prefix=self.prefix, grid=self.grid)


class CheckpointTable(JobTable):
    """`weights = { file = "x.ckpt", key = "ema", strip = "model." }`: one set of weights of several in a file."""

    file: str
    """the checkpoint; `{seed}` is allowed"""
    key: str | None = None
    """where in the file the set of weights lies"""
    strip: str | None = None
    """prefix that is removed from each tensor's name"""
    adapter: str | None = None
    """folder of a LoRA or DoRA adapter (PEFT's) that is merged into them; `file` may then be `pretrained`, too"""


class ModelTable(JobTable):
    """[[models]]: one network, or one per seed."""

    name: Name
    """what the network is called in results"""
    architecture: Architecture
    """what builds it, or `features`; `stitchgrid models` lists names"""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """keyword arguments of the architecture"""
    weights: Annotated[str | TrainTable | CheckpointTable, by(_weights), Wanted("path, name or table")] = Field(
        description=WEIGHTS
    )
    seed: Seed | None = None  # 0
    """of initialisation and training; left out: 0"""
    seeds: Seeds | None = None
    """instead of `seed`: makes NAME/0, NAME/1, ...; `{seed}` in `weights` stands for each"""
    steps: Seeds | None = None
    """of training: makes NAME@0, NAME@100, ...; `{step}` or `{step:06}` in `weights` stands for each"""
    preprocess: PreprocessTable | None = None
    """left out: that of the published weights, else none"""
    layers: Globs = ("blocks",)
    """where it is cut; `blocks`: after each block, `all`: wherever it can be"""
    head: Literal["logits", "probabilities", "binary", "multilabel", "regression", "embedding"] | None = None
    """what its outputs are; left out: detected"""
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    """constants for further arguments of its forward"""
    output: Output | None = None
    """which of the things that its forward returns are the scores"""
    tokens: TokensTable | None = None
    """how the tokens of its sequences lie on a grid, if the network does not tell"""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a table of a job file, without keys of later versions that have their default."""
        table = self.model_dump(mode="json", exclude_none=True)
        if not self.inputs:
            del table["inputs"]
        if self.preprocess and self.preprocess.channels == 3:
            del table["preprocess"]["channels"]
        return table

    @property
    def interface(self) -> Interface:
        """How the network is called, as a record."""
        tokens = self.tokens.to_record() if self.tokens else None
        averages = self.head == "embedding"
        return Interface(inputs=canonical(self.inputs), output=self.output, tokens=tokens, averages=averages)
