"""The tables of a job file, one pydantic model each: a field is a key, its default what leaving it out means."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WrapValidator

from stitchgrid.datasets.catalogue import known_datasets
from stitchgrid.errors import nearest
from stitchgrid.paths import check_path
from stitchgrid.records import EnergyRecipe, Preprocess, ProbeSpec, Recipe

PAIR_WORDS = ("all", "within", "across")
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
    if value not in known_datasets():
        raise ValueError(f"{value!r} is unknown; {nearest(value, known_datasets())}")
    return value


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


def _weights(value: Any) -> "str | TrainTable":
    if isinstance(value, str) and value:
        return check_path(value)
    if isinstance(value, dict) and value.keys() == {"train"} and isinstance(value["train"], str):
        return TrainTable(train=value["train"])
    raise ValueError(f'a checkpoint, a torchvision weights name, "random" or {{ train = "RECIPE" }}, got {value!r}')


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(repeated)} given more than once")
    return values


def _three(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 3:
        raise ValueError(f"three numbers are needed, one per channel, got {len(values)}")
    return values


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
Channels = Annotated[tuple[float, ...], AfterValidator(_three)]
Count = Annotated[int, Field(ge=1)]
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


class DataTable(Table):
    """[data]."""

    dataset: Annotated[str, AfterValidator(_dataset)]
    root: UserPath | None = None
    fit: FitTable = FitTable()
    eval: EvalTable = EvalTable()
    labels: Literal["classes", "agreement"] = "classes"  # agreement: networks may know other classes than the images
    on_bad_image: Literal["error", "skip"] = "error"
    download: bool = False
    outliers: OutliersTable | None = None


class NumericsTable(Table):
    """[numerics]."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    batch_size: Count = 256
    compile: bool = False


class PreprocessTable(Table):
    """`preprocess` of a model."""

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


class ModelTable(Table):
    """[[models]]: one network, or one per seed."""

    name: Name
    architecture: Annotated[str, AfterValidator(_architecture)]
    args: dict[str, JsonValue] = {}
    weights: Annotated[str | TrainTable, _by(_weights)] = "random"
    seed: Seed | None = None  # 0
    seeds: Seeds | None = None  # instead of seed
    preprocess: PreprocessTable | None = None
    layers: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)] = ("blocks",)


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
