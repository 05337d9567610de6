"""The matchers a job file can name: their parameters, metrics and needs. No torch here.

A new kind is one file of maths in `indices/` or `stitchers/` and one entry in `MATCHERS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stitchgrid.records import Cell, Head, MatcherSpec, Sweep

HIGHER, LOWER, NEITHER = True, False, None  # is a higher value more similar?


class Params(BaseModel):
    """Parameters of a kind; a job file may set each of them, and no other."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoParams(Params):
    """A kind without parameters."""


class Rules(Params):
    """Which rule lays a source on a target of another shape, where there is a choice; README has the table."""

    resize: Literal["bilinear", "area", "nearest"] = "bilinear"  # where grids differ
    cls: Literal["copy", "pool", "drop"] = "copy"  # what the target's prefix tokens are made of
    pool: Literal["mean", "cls"] = "mean"  # what a vector is made of

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Rules":
        """Return the rules among a stitcher's parameters."""
        return cls(**{name: params[name] for name in Rules.model_fields})


class DirectParams(Rules):
    """Least squares."""

    rcond: Annotated[float, Field(gt=0, lt=1)] = 1e-12  # eigenvalues of cov(A) below rcond * largest are dropped


class TaskLossParams(Rules):
    """Cross-entropy on the labels; defaults are those of Balogh & Jelasity (2025), but for the augmentation."""

    epochs: Annotated[int, Field(ge=1)] = 30
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 256
    augment: Literal["none", "crop4_flip"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """What is known of a kind without running it."""

    family: str  # index | stitcher
    summary: str  # one line, for people
    params: type[Params] = NoParams
    metrics: dict[str, bool | None]  # name -> is higher more similar
    trained: bool = False  # has seeds, epochs and a generator
    gram: bool = False  # needs n x n matrices: at most MAX_GRAM_IMAGES images
    revision: int = 1  # raised when the maths changes, so that stored values are not mistaken for new ones


MAX_GRAM_IMAGES = 1_000

OOD_METRICS: dict[str, tuple[str, ...]] = {  # of a stitcher, by what tells T(A) from B
    "mahalanobis": ("ood_mahalanobis_auroc", "ood_mahalanobis_fpr95", "ood_mahalanobis_aupr"),
    "energy": ("ood_energy_auroc", "ood_energy_fpr95", "ood_energy_aupr"),
}
CLASS_METRICS = ("accuracy", "loss", "relative_accuracy", "penalty", "agreement")  # of targets that know classes
OUTPUT_METRICS = ("output_cosine", "output_r2")  # in their place, of targets that know none
# Never asked for by default: what a job has to name, and what takes the place of metrics of classes.
ON_REQUEST = frozenset({*(name for names in OOD_METRICS.values() for name in names), *OUTPUT_METRICS})

STITCHER_METRICS: dict[str, bool | None] = {
    "accuracy": HIGHER,
    "loss": LOWER,
    "relative_accuracy": HIGHER,
    "penalty": LOWER,
    "agreement": HIGHER,
    "output_cosine": HIGHER,
    "output_r2": HIGHER,
    "residual": LOWER,
    "r2": HIGHER,
    "variance_ratio": NEITHER,
    "negative_mass": NEITHER,
    **{
        name: NEITHER for names in OOD_METRICS.values() for name in names
    },  # an AUROC of 0.5 is best: far below it T(A) has collapsed
}

# Of a stitcher's metrics, those for which no stitched network is run.
WITHOUT_TAIL = frozenset({"residual", "r2", *OOD_METRICS["mahalanobis"]})

MATCHERS: dict[str, Matcher] = {
    "direct": Matcher(
        family="stitcher",
        summary="affine map by least squares between the two representations (DM)",
        params=DirectParams,
        metrics=STITCHER_METRICS,
    ),
    "task_loss": Matcher(
        family="stitcher",
        summary="affine map trained on the labels through the rest of the target (TLM)",
        params=TaskLossParams,
        metrics=STITCHER_METRICS,
        trained=True,
    ),
    "cka": Matcher(
        family="index",
        summary="linear centred kernel alignment, biased, of flattened layers",
        metrics={"cka": HIGHER},
        gram=True,
    ),
    "pwcca": Matcher(
        family="index",
        summary="projection-weighted CCA distance, weighted by the source",
        metrics={"pwcca": LOWER, "pwcca_reverse": LOWER},
    ),
    "procrustes": Matcher(
        family="index",
        summary="orthogonal Procrustes distance of centred, normalised layers",
        metrics={"procrustes": LOWER},
    ),
}


def images_used(spec: MatcherSpec, *, num_fit: int, num_fit_closed: int, num_eval: int) -> tuple[int, int]:
    """Return how many fit and evaluation images a matcher looks at; always the first ones of their split.

    Stitchers fit on `num_fit_closed` images (trained ones name that number, see `MatcherSpec`), indices on none; all
    are evaluated on every evaluation image, but for kinds that need n x n matrices. `samples` overrides: fit images
    of a stitcher, evaluation images of an index. Fit images also decide what a source of low rank keeps: those of an
    index are the `num_fit_closed` then.
    """
    matcher = MATCHERS[spec.kind]
    whole = num_fit if matcher.family == "stitcher" else num_eval
    if isinstance(spec.samples, int):
        num = min(spec.samples, whole)
    elif spec.samples == "all":
        num = whole
    elif matcher.family == "stitcher":
        num = num_fit if matcher.trained else num_fit_closed
    else:
        num = min(MAX_GRAM_IMAGES, num_eval) if matcher.gram else num_eval
    if matcher.family == "stitcher":
        return num, num_eval
    return num_fit_closed if spec.rank else 0, num


def default_metrics(kind: str) -> tuple[str, ...]:
    """Return the metrics of a matcher for which a job names none.

    >>> default_metrics("cka")
    ('cka',)
    """
    return tuple(metric for metric in MATCHERS[kind].metrics if metric not in ON_REQUEST)


def metrics_into(spec: MatcherSpec, head: Head) -> tuple[str, ...]:
    """Return the metrics of a matcher's cells into a target of such a head, in the kind's order.

    Of a target that knows no classes, those that compare outputs take the place of those that need classes.
    """
    if MATCHERS[spec.kind].family != "stitcher":
        return spec.metrics
    asked = set(spec.metrics)
    if head.has_classes:
        asked -= set(OUTPUT_METRICS)
    elif asked.intersection((*CLASS_METRICS, *OUTPUT_METRICS)):
        asked = asked.difference(CLASS_METRICS).union(OUTPUT_METRICS)
    return tuple(metric for metric in MATCHERS[spec.kind].metrics if metric in asked)


def metrics_of(sweep: Sweep, cell: Cell) -> tuple[str, ...]:
    """Return the metrics that a cell asks for."""
    return metrics_into(sweep.matchers[cell.matcher], sweep.networks[cell.target].head)


def asks_ood(spec: MatcherSpec, detector: str) -> bool:
    """Return whether a matcher asks how well a detector tells T(A) from B."""
    return not set(OOD_METRICS[detector]).isdisjoint(spec.metrics)


def higher_is_similar(kind: str, metric: str) -> bool | None:
    """Return whether a higher value of the metric means more similar, None where neither does.

    >>> higher_is_similar("direct", "residual")
    False
    """
    return MATCHERS[kind].metrics[metric]
