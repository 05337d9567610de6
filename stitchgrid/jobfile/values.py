"""Types of a job file's values: checks whose errors say what is wanted, and each type in words for the manual."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WrapValidator

from stitchgrid.datasets.registry import known_datasets, own_parts
from stitchgrid.errors import nearest
from stitchgrid.live_networks import LIVE
from stitchgrid.paths import check_path
from stitchgrid.records import FEATURES

PAIR_WORDS = ("all", "within", "across")
LONGEST_NAME = 255  # characters
LONGEST_SWEEP = 150  # characters: names of figures are longer, and file systems take 255


@dataclass(frozen=True, slots=True)
class Wanted:
    """A type in words, for a value that Python's type does not describe well enough."""

    words: str


def by(function: Callable[[Any], Any]) -> WrapValidator:
    """Return a validator that calls only the function, so that a union gives one message instead of one per member.

    A PlainValidator would do the same, but pydantic warns when it writes out such a union.
    """
    return WrapValidator(lambda value, _: function(value))


def check_name(value: Any) -> str:
    """Return the value if it can name a sweep, model or recipe; names also become names of folders.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", value) or not value.strip("."):
        raise ValueError(
            f"a name is made of letters, digits and . _ - (and not of dots alone), got {str(value)[:60]!r}"
        )
    if len(value) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} letters, got {len(value):,}: {value[:60]!r}...")
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
    if value != FEATURES and not re.fullmatch(r"[^:]+:[^:]+|[A-Za-z]:[^:]+:[^:]+", value):
        raise ValueError(
            f"{value!r} is no architecture; it is torchvision:NAME, timm:NAME, stitchgrid:NAME, "
            "huggingface:NAME_OR_FOLDER, package.module:function, FILE.py:function, or features (activations from "
            "files)"
        )
    return check_path(value)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values if none is given twice.

    Raises:
        ValueError: If one is.
    """
    if repeated := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(repeated)} given more than once")
    return values


def _per_channel(values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
    num = info.data.get("channels", 3)
    if len(values) != num:
        words = {1: "one number is needed, for the one channel", 3: "three numbers are needed, one per channel"}
        raise ValueError(f"{words.get(num, f'{num} numbers are needed, one per channel')}, got {len(values)}")
    return values


def _channels(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"1 (luminance), 3 (red, green, blue), or as many as the images have, got {value!r}")
    return value


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
    distinct(tuple(ranks))
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


Name = Annotated[str, by(check_name), Wanted("letters, digits and `. _ -`")]
SweepName = Annotated[str, by(_sweep_name), Wanted("letters, digits and `. _ -`")]
UserPath = Annotated[str, AfterValidator(check_path), Wanted("path")]
DatasetName = Annotated[str, AfterValidator(_dataset), Wanted("name of a data set, or `FILE.py:function`")]
Architecture = Annotated[str, AfterValidator(_architecture), Wanted("`torchvision:NAME`, `FILE.py:function`, ...")]
Size = Annotated[int | tuple[int, int] | None, by(_size), Wanted("pixels, or [height, width]")]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct), Wanted("list of numbers from 0 on")]
Channels = Annotated[tuple[float, ...], AfterValidator(_per_channel), Wanted("list of a number for each channel")]
PositiveChannels = Annotated[Channels, AfterValidator(_positive)]
NumChannels = Annotated[int, by(_channels), Wanted("number from 1 on")]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], AfterValidator(_range), Wanted("[LOW, HIGH]")]
Word = Annotated[str, Field(min_length=1), Wanted("name")]
Words = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct), Wanted("list of names")]
Globs = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed), Wanted("name or glob, or a list")]
Grid = Annotated[tuple[Count, Count], BeforeValidator(_listed), Wanted("[height, width]")]
Pairs = Annotated[str | tuple[tuple[str, str], ...], by(_pairs), Wanted("`all`, `within`, `across`, or a list")]
Output = Annotated[str | int, by(_output), Wanted("key, attribute, position or path")]
#: Of kinds that may read all images of a split; None: as many as `fit` has.
Samples = Annotated[int | str | None, by(_samples), Wanted('number of images, `"all"` or `"fit"`')]
FitSamples = Annotated[int | str | None, by(_fit_samples), Wanted('number of images, `"all"` or `"fit"`')]
#: None: the layer as it is.
Ranks = Annotated[tuple[int | None, ...], by(_ranks), Wanted('number, `"full"`, or a list')]


class JobTable(BaseModel):
    """A table of a job file, which refuses keys other than its own."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
