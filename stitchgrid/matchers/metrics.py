"""What is known of a metric: its name, which values mean similar, its bounds, and what has to be run for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Ends = tuple[float | None, float | None]  # None: open
RESIDUAL_AT = "residual_at"  # asks for one metric for each later layer
UNIT: Ends = (0.0, 1.0)
FROM_ZERO: Ends = (0.0, None)
OPEN: Ends = (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a cell."""

    name: str
    better: Literal["higher", "lower", "neither"]  # which values mean more similar
    bounds: Ends = OPEN  # every value lies between them
    ends: Ends | None = None  # of colour scales, if they are not the bounds
    #: What it is computed from: `statistics` of the two layers, the stitched network's `tail`, or a detector's scores.
    made_of: Literal["statistics", "tail", "mahalanobis", "energy"] = "statistics"
    #: The targets that have it: those with `classes`, those without (`outputs`, in place of the former), or any.
    asks: Literal["classes", "outputs", "any"] = "any"
    on_request: bool = False  # never asked for by default
    has_replicates: bool = True  # whether it is also computed without each group of images
    has_null: bool = True  # whether it is also computed with images shuffled, unless its kind is trained

    @property
    def higher_is_similar(self) -> bool | None:
        """Whether a higher value means more similar; None if neither direction does."""
        return {"higher": True, "lower": False, "neither": None}[self.better]

    @property
    def scale(self) -> Ends:
        """Ends of colour scales that do not depend on the data."""
        return self.ends or self.bounds


def _detection(detector: Literal["mahalanobis", "energy"]) -> tuple[Metric, ...]:
    """Return the metrics of a detector: an AUROC of 0.5 is best; far below 0.5, T(A) has collapsed."""
    return tuple(
        Metric(
            name=f"ood_{detector}_{word}",
            better="neither",
            bounds=UNIT,
            made_of=detector,
            on_request=True,
            has_replicates=False,
            has_null=False,
        )
        for word in ("auroc", "fpr95", "aupr")
    )


OF_STITCHERS: tuple[Metric, ...] = (
    Metric(name="accuracy", better="higher", bounds=UNIT, made_of="tail", asks="classes"),
    Metric(name="loss", better="lower", bounds=FROM_ZERO, made_of="tail", asks="classes"),
    Metric(name="relative_accuracy", better="higher", bounds=FROM_ZERO, ends=UNIT, made_of="tail", asks="classes"),
    Metric(name="penalty", better="lower", bounds=(-1.0, 1.0), ends=UNIT, made_of="tail", asks="classes"),
    Metric(name="agreement", better="higher", bounds=UNIT, made_of="tail", asks="classes"),
    Metric(name="output_cosine", better="higher", bounds=(-1.0, 1.0), made_of="tail", asks="outputs", on_request=True),
    Metric(name="output_r2", better="higher", bounds=(None, 1.0), made_of="tail", asks="outputs", on_request=True),
    Metric(name="residual", better="lower", bounds=FROM_ZERO),
    Metric(name="r2", better="higher", bounds=(None, 1.0), ends=UNIT),
    Metric(name="variance_ratio", better="neither", bounds=FROM_ZERO, made_of="tail"),
    Metric(name="negative_mass", better="neither", bounds=UNIT, ends=FROM_ZERO, made_of="tail"),
    Metric(name="residual_at", better="lower", bounds=FROM_ZERO, made_of="tail", on_request=True),
    *_detection("mahalanobis"),
    *_detection("energy"),
)


def residual_at(layer: str) -> str:
    """Return the name of the residual at a later layer of the target: a metric of its own for each.

    >>> residual_at("layer3.0")
    'residual_at:layer3.0'
    """
    return f"{RESIDUAL_AT}:{layer}"


def _names(metrics: Iterable[Metric]) -> tuple[str, ...]:
    return tuple(metric.name for metric in metrics)


#: AUROC, FPR95 and AUPR of a stitcher, by the detector that distinguishes T(A) from B.
OOD_METRICS: dict[str, tuple[str, ...]] = {
    detector: _names(metric for metric in OF_STITCHERS if metric.made_of == detector)
    for detector in ("mahalanobis", "energy")
}
CLASS_METRICS = _names(metric for metric in OF_STITCHERS if metric.asks == "classes")
OUTPUT_METRICS = _names(metric for metric in OF_STITCHERS if metric.asks == "outputs")
#: Of a stitcher's metrics, those that compare with labels.
LABEL_METRICS = tuple(name for name in CLASS_METRICS if name != "agreement")
#: Of a stitcher's metrics, those that need no run of the stitched network.
WITHOUT_TAIL = frozenset(_names(m for m in OF_STITCHERS if m.made_of in ("statistics", "mahalanobis")))
