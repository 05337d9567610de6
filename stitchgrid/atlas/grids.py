"""The data of an atlas, without SQL and drawing: networks, and one heat map per network pair, matcher and metric."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stitchgrid.atlas.scales import Scale

EVIDENCE = ("low", "high", "null_low", "null_high")  # 95 % interval; 5 % and 95 % of the draws of shuffled images
TIE = 1e-6  # scores that differ by at most this are equally good, as in the query `diagonal_violations`

# Shape suffixes: S layers of the source, T layers of the target.
Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One selected layer of a network."""

    name: str
    depth: float
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInfo:
    """One network of a sweep."""

    name: str
    architecture: str
    num_parameters: int
    accuracy: float | None  # unstitched, on the evaluation images
    layers: tuple[LayerInfo, ...]  # in order of execution
    remarks: tuple[str, ...] = ()  # untrained, at chance, refused, ...
    is_untrained: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)  # entry, args, weights, preprocessing, ... as stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Facts about a square of a heat map besides its value; many squares share one note."""

    state: str = "absent"  # value | undefined | failed | quarantined | running | pending | absent
    error: str | None = None
    num_fit: int | None = None
    num_eval: int | None = None
    num_rows: int | None = None
    alignment: str | None = None
    flags: str = ""
    device: str | None = None
    precision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The heat map of one ordered pair of networks."""

    source: int  # position among the sweep's networks
    target: int
    values_ST: Floats  # NaN where there is no value
    notes_ST: Positions  # position among the sweep's notes
    diverged_ST: npt.NDArray[np.bool_] | None = None  # squares that cannot be a best source; None: all can be
    evidence: Mapping[str, Floats] = field(default_factory=dict)  # name in `EVIDENCE` -> (S, T), NaN where unknown

    def best(self, higher_is_similar: bool | None) -> npt.NDArray[np.bool_]:
        """Return which squares, (S, T), are the best source of their target layer; of a tie within `TIE`, all are."""
        if higher_is_similar is None:
            return np.zeros(self.values_ST.shape, dtype=bool)
        similarity_ST = self.values_ST if higher_is_similar else -self.values_ST
        if self.diverged_ST is not None:
            similarity_ST = np.where(self.diverged_ST, np.nan, similarity_ST)
        best_T = np.fmax.reduce(similarity_ST, axis=0)
        # The difference of two equal infinite values is NaN, so values are compared and not subtracted.
        return np.asarray(similarity_ST >= best_T - TIE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Heat maps that a reader can choose: one metric of one matcher with one seed, for all pairs of networks."""

    matcher: str
    label: str  # the kind, and the parameters in which matchers of that kind differ
    params: str
    samples: int | None  # images that the matcher uses; None if no stored row gives the number
    seed: int | None
    metric: str
    is_score: bool  # the metric by which the matcher ranks layers
    higher_is_similar: bool | None
    scale: Scale
    panels: tuple[Panel, ...]
    is_trained: bool = False
    is_symmetric: bool = False  # the score of (a, b) is that of (b, a)

    @property
    def title(self) -> str:
        """Matcher, seed and metric, in words."""
        return f"{self.label}{'' if self.seed is None else f', seed {self.seed}'} · {self.metric}"

    @property
    def direction(self) -> str:
        """Which end of the metric means more similar, in words."""
        return {True: "higher = more similar", False: "lower = more similar", None: "neither end is more similar"}[
            self.higher_is_similar
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether every layer of a network matches itself best: a row of the query `diagonal_violations`."""

    network: str
    label: str  # of the matcher
    choice: int  # position of the choice that shows the scores
    num_judged: int  # target layers
    num_violations: int
    num_missing: int  # missing scores
    violations: tuple[str, ...]  # target layer <- best source


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """For how many layer pairs of two networks a trained matcher claims similarity, and how many claims are denied."""

    source: int  # position among the sweep's networks
    target: int
    label: str  # of the matcher
    choice: int  # position of the choice that shows the stitches
    num_claims: int
    num_misleading: int
    num_unchecked: int
    pairs: tuple[str, ...]  # "source layer -> target layer" of the misleading claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """How layers are folded into stages: the page shows only the last layer of each stage."""

    num_layers: int  # consecutive layers of one stage
    num_cells: int  # cells of the sweep, with all layers
    most_cells: int  # most cells for which every layer is shown


@dataclass(frozen=True, kw_only=True)
class SweepGrids:
    """All data that the atlas shows of one sweep."""

    sweep: str
    networks: tuple[NetworkInfo, ...]
    choices: tuple[Choice, ...]
    notes: tuple[Note, ...]
    judgements: tuple[Judgement, ...]
    claims: tuple[Claims, ...]  # answers of the query `misleading`
    num_by_status: dict[str, int]  # cells
    num_eval: tuple[int, ...]  # the different numbers of evaluation images
    num_fit: tuple[int, ...]  # the different numbers of images on which maps were fitted
    computed: tuple[str, str] | None  # first and last day of computation
    answers: pa.Table | None = None  # of the view `answers`
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fold: Fold | None = None  # None: every layer is shown

    @property
    def num_panels(self) -> int:
        """Number of heat maps."""
        return sum(len(choice.panels) for choice in self.choices)

    @cached_property
    def blocks(self) -> list[tuple[list[int], list[int]]]:
        """Sources and targets of each set of networks that were compared with one another, in order."""
        return connected(dict.fromkeys((p.source, p.target) for choice in self.choices for p in choice.panels))


def connected(pairs: Iterable[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
    """Return (sources, targets) of each connected component of the pairs; a component is drawn as one block of panels.

    >>> connected([(0, 0), (1, 1), (2, 1)])
    [([0], [0]), ([1, 2], [1])]
    """
    parts: list[tuple[set[int], set[int]]] = []
    for source, target in pairs:
        sources, targets = {source}, {target}
        for part in [part for part in parts if source in part[0] or target in part[1]]:
            parts.remove(part)
            sources |= part[0]
            targets |= part[1]
        parts.append((sources, targets))
    return sorted((sorted(sources), sorted(targets)) for sources, targets in parts)
