"""The tables of a job file, one pydantic model each: a field is a key, its default what leaving it out means."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    WrapValidator,
)

from stitchgrid.datasets.catalogue import known_datasets, own_parts
from stitchgrid.errors import nearest
from stitchgrid.live import LIVE
from stitchgrid.matchers.evidence import MOST_GROUPS
from stitchgrid.paths import check_path
from stitchgrid.records import (
    DEFAULT_LIMITS,
    EnergyRecipe,
    Interface,
    Limits,
    Preprocess,
    ProbeSpec,
    Recipe,
    Tokens,
    canonical,
)

PAIR_WORDS = ("all", "within", "across")
MOST_SHUFFLES = 10_000
LONGEST_SWEEP = 150  # characters: names of figures are longer, and file systems take 255
_ENERGY = EnergyRecipe()
ADAPTIVE_LR = 1e-3  # default of adam and adamw: sgd's would make them diverge


def _by(function: Callable[[Any], Any]) -> WrapValidator:
    """Validate by the function alone, so that a union gives one message instead of one per member.

    A PlainValidator would do, but for pydantic's warnings when such a union is written out.
    """
    return WrapValidator(lambda value, _: function(value))


def check_name(value: Any) -> str:
    """Return the value if it can name a sweep, model or recipe: it becomes the name of a folder, too."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", value) or not value.strip("."):
        raise ValueError(f"a name is made of letters, digits and . _ - (and not of dots alone), got {value!r}")
    return value


def _sweep_name(value: Any) -> str:
    name = check_name(value)
    if name.startswith(".") or len(name) > LONGEST_SWEEP:
        raise ValueError(
            f"a sweep is a folder in the store: no dot in front, at most {LONGEST_SWEEP} letters, got {name[:60]!r}"
        )
    return name


def _size(value: Any) -> int | tuple[int, int] | None:
    sides = value if isinstance(value, list) else [value, value]
    if value is None:
        return None
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ValueError(f"a number of pixels or [height, width], got {value!r}")
    return value if isinstance(value, int) else (sides[0], sides[1])


def _dataset(value: str) -> str:
    if own_parts(value) is not None:
        return check_path(value)
    if value != LIVE and value not in known_datasets():
        raise ValueError(f"{value!r} is unknown; {nearest(value, known_datasets())}, or FILE.py:function")
    return value


def _range(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"[LOW, HIGH] are the values of black and white, LOW below HIGH, got {list(bounds)}")
    return bounds


def _pairs(value: Any) -> str | tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        if value not in PAIR_WORDS:
            raise ValueError(f"{value!r} is unknown; {nearest(value, PAIR_WORDS)}, or a list of [source, target]")
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"one of {', '.join(PAIR_WORDS)}, or a list of [source, target], got {value!r}")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise ValueError(f"a pair is [source, target], two names of models, got {pair!r}")
    return tuple((source, target) for source, target in value)


def _architecture(value: str) -> str:
    if not re.fullmatch(r"[^:]+:[^:]+|[A-Za-z]:[^:]+:[^:]+", value):
        raise ValueError(
            f"{value!r} is no architecture; it is torchvision:NAME, timm:NAME, stitchgrid:NAME, "
            "package.module:function or FILE.py:function"
        )
    return check_path(value)


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
            return CheckpointTable(**{**value, "file": check_path(value["file"])})
        raise ValueError(
            f'`file`, `key` and `strip` are texts, as in {{ file = "x.ckpt", key = "ema" }}, got {value!r}'
        )
    raise ValueError(f"{WEIGHTS}, got {value!r}")


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(repeated)} given more than once")
    return values


def _per_channel(values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
    num = info.data.get("channels", 3)
    if len(values) != num:
        words = {1: "one number is needed, for the one channel", 3: "three numbers are needed, one per channel"}
        raise ValueError(f"{words[num]}, got {len(values)}")
    return values


def _channels(value: Any) -> int:
    if value not in {1, 3} or isinstance(value, bool):
        raise ValueError(f"1 (luminance) or 3 (red, green, blue), got {value!r}")
    return int(value)


def _output(value: Any) -> str | int:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ValueError(f'a key or attribute such as "logits", or a position such as 0, got {value!r}')
    return value


def _positive(values: tuple[float, ...]) -> tuple[float, ...]:
    if min(values) <= 0:
        raise ValueError(f"must be greater than 0, got {list(values)}")
    return values


def _ranks(value: Any) -> tuple[int | None, ...]:
    ranks = value if isinstance(value, list) else [value]
    for rank in ranks:
        if rank != "full" and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise ValueError(f'a whole number from 1 on, "full" (the layer as it is), or a list of these, got {rank!r}')
    if not ranks:
        raise ValueError('a list of at least one whole number or "full" is needed, got []')
    _distinct(tuple(ranks))
    return tuple(None if rank == "full" else rank for rank in ranks)


def _samples(value: Any) -> int | str | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or value in ("all", "fit") or is_number:
        return value  # type: ignore[no-any-return]
    raise ValueError(
        f'a number of images from 1 on, "all" (the whole split), or "fit" (as many as `fit` has under [data]; of what '
        f"is fitted), got {value!r}"
    )


def _fit_samples(value: Any) -> int | str | None:
    return None if value == "fit" else _samples(value)


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Name = Annotated[str, _by(check_name)]
SweepName = Annotated[str, _by(_sweep_name)]
UserPath = Annotated[str, AfterValidator(check_path)]
Size = Annotated[int | tuple[int, int] | None, _by(_size)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)]
Channels = Annotated[tuple[float, ...], AfterValidator(_per_channel)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], AfterValidator(_range)]
ClassNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
Samples = Annotated[int | str | None, _by(_samples)]  # of what may look at all images of a split
Ranks = Annotated[tuple[int | None, ...], _by(_ranks)]  # None: the layer as it is


class Table(BaseModel):
    """A table: no key but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class HeadTable(Table):
    """The keys outside every section."""

    name: SweepName
    seed: Seed = 0


class FitTable(Table):
    """`fit` under [data]."""

    split: str = "train"
    samples: Count | None = None


class EvalTable(Table):
    """`eval` under [data]."""

    split: str = "test"
    samples: Count | None = None


class OutliersTable(Table):
    """[data.outliers]: images of another data set."""

    dataset: Annotated[str, AfterValidator(_dataset)]
    root: UserPath | None = None
    split: str = "test"
    samples: Count | None = None
    range: Range | None = None
    args: dict[str, JsonValue] | None = None


class DataTable(Table):
    """[data]."""

    dataset: Annotated[str, AfterValidator(_dataset)]
    root: UserPath | None = None
    fit: FitTable = FitTable()
    eval: EvalTable = EvalTable()
    labels: Literal["classes", "agreement"] = "classes"  # agreement: networks may know other classes than the images
    on_bad_image: Literal["error", "skip"] = "error"
    download: bool = False
    range: Range | None = None  # black and white of pixels that have more than eight bits or a sign
    classes: ClassNames | None = None  # in the order of the networks' classes
    class_order: Literal["sorted", "natural"] | None = None
    args: dict[str, JsonValue] | None = None  # of FILE.py:function
    outliers: OutliersTable | None = None


class NumericsTable(Table):
    """[numerics]."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    batch_size: Count = 256
    compile: bool = False


class LimitsTable(Table):
    """[limits]: how much is read of images and checkpoints that others may have made."""

    pixels: Count = DEFAULT_LIMITS.pixels
    file_bytes: Count = DEFAULT_LIMITS.file_bytes
    members: Count = DEFAULT_LIMITS.members
    text: Count = DEFAULT_LIMITS.text
    unpacking: Count = DEFAULT_LIMITS.unpacking
    tensors: Count = DEFAULT_LIMITS.tensors
    checkpoint_bytes: Count = DEFAULT_LIMITS.checkpoint_bytes

    def to_record(self) -> Limits:
        """Return it as the record that travels."""
        return Limits(**self.model_dump())


class PreprocessTable(Table):
    """`preprocess` of a model."""

    channels: Annotated[int, _by(_channels)] = 3  # 1: luminance; before mean and std, which have as many numbers
    resize: Size = None
    crop: Size = None
    mean: Channels | None = None
    std: Annotated[Channels, AfterValidator(_positive)] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

    def to_record(self) -> Preprocess:
        """Return it as the record that travels."""
        return Preprocess(**dict(self))


class RecipeTable(Table):
    """[recipes.NAME]."""

    epochs: Count
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] | None = None  # default: the record's for sgd, ADAPTIVE_LR for the others
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    batch_size: Count = 128
    schedule: Literal["constant", "cosine", "onecycle"] = "cosine"
    augment: Literal["none", "crop4_flip"] = "none"

    def to_record(self) -> Recipe:
        """Return it as the record that travels."""
        default = {} if self.optimizer == "sgd" else {"lr": ADAPTIVE_LR}
        return Recipe(**{**default, **self.model_dump(exclude_none=True)})


class TrainTable(Table):
    """`weights = { train = "RECIPE" }`."""

    train: str


class TokensTable(Table):
    """`tokens` of a model: tokens before a grid, and the grid's height and width."""

    prefix: Annotated[int, Field(ge=0)] = 0
    grid: Annotated[tuple[Count, Count], BeforeValidator(_listed)]

    def to_record(self) -> Tokens:
        """Return it as the record that travels."""
        return Tokens(prefix=self.prefix, grid=self.grid)


class CheckpointTable(Table):
    """`weights = { file = "x.ckpt", key = "ema", strip = "model." }`: one set of weights of several in a file."""

    file: str
    key: str | None = None
    strip: str | None = None


class ModelTable(Table):
    """[[models]]: one network, or one per seed."""

    name: Name
    architecture: Annotated[str, AfterValidator(_architecture)]
    args: dict[str, JsonValue] = {}
    weights: Annotated[str | TrainTable | CheckpointTable, _by(_weights), Field(description=WEIGHTS)]
    seed: Seed | None = None  # 0
    seeds: Seeds | None = None  # instead of seed
    preprocess: PreprocessTable | None = None
    layers: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)] = ("blocks",)
    head: Literal["logits", "probabilities", "binary", "multilabel", "regression", "embedding"] | None = None
    inputs: dict[str, JsonValue] = {}  # constants for further arguments of its forward
    output: Annotated[str | int, _by(_output)] | None = None  # which of the things that it returns are the scores
    tokens: TokensTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as it could stand in a job file; keys of later versions are left out where they say nothing."""
        table = self.model_dump(mode="json", exclude_none=True)
        if not self.inputs:
            del table["inputs"]
        if self.preprocess and self.preprocess.channels == 3:
            del table["preprocess"]["channels"]
        return table

    @property
    def interface(self) -> Interface:
        """How the network is called, as the record that travels."""
        tokens = self.tokens.to_record() if self.tokens else None
        return Interface(inputs=canonical(self.inputs), output=self.output, tokens=tokens)


class GridTable(Table):
    """[grid]."""

    pairs: Annotated[str | tuple[tuple[str, str], ...], _by(_pairs)] = "all"


class ProbesTable(Table):
    """[probes]: logistic regression from the pooled rows of every selected layer."""

    rank: Ranks = (None,)
    C: Annotated[float, Field(gt=0)] = 1.0
    max_iter: Count = 1000
    samples: Count | None = None

    def to_record(self) -> ProbeSpec:
        """Return it as the record that travels."""
        return ProbeSpec(ranks=self.rank, C=self.C, max_iter=self.max_iter, samples=self.samples)


class ControlsTable(Table):
    """[controls]: what a value is to be compared with before it is called high."""

    untrained: bool = False  # every network gets an untrained twin, a source of all its targets
    shuffled: Annotated[int, Field(ge=0, le=MOST_SHUFFLES)] = 0  # draws in which the source's images are shuffled


class IntervalsTable(Table):
    """[intervals]: how far a value would move with other images."""

    groups: Annotated[int, Field(ge=2, le=MOST_GROUPS)] | None = None  # of evaluation images, each left out in turn


class EnergyTable(Table):
    """[diagnostics.energy]: how detectors are made."""

    epochs: Count = _ENERGY.epochs
    finetune_epochs: Count = _ENERGY.finetune_epochs
    width: Count = _ENERGY.width
    depth: Count = _ENERGY.depth
    samples: Annotated[int | str | None, _by(_fit_samples)] = None  # None, "fit": as many as `fit` has
    batch_size: Annotated[int, Field(ge=2)] = _ENERGY.batch_size
    lr: Annotated[float, Field(gt=0)] = _ENERGY.lr
    weight_decay: Annotated[float, Field(ge=0)] = _ENERGY.weight_decay
    seed: Seed = _ENERGY.seed
    outliers: Literal["noise", "patch_shuffle"] | None = None  # the images of [data.outliers], else patch_shuffle


class DiagnosticsTable(Table):
    """[diagnostics]: what is asked of every stitcher besides."""

    ood: Annotated[tuple[Literal["mahalanobis", "energy"], ...], AfterValidator(_distinct)] = ()
    energy: EnergyTable = EnergyTable()


class MatcherTable(Table):
    """The keys every kind of [[matchers]] has; the parameters of the kind come on top."""

    kind: str
    samples: Samples = None  # fit images of a stitcher: as many as `fit` has; evaluation images of an index
    rank: Ranks = (None,)
    metrics: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None


class TrainedMatcherTable(MatcherTable):
    """The same for trained kinds."""

    seeds: Seeds = (0,)
