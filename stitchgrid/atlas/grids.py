"""What an atlas shows, free of SQL and of drawing: networks, and one heat map per network pair, matcher and metric."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stitchgrid.atlas.scales import Scale

EVIDENCE = ("low", "high", "null_low", "null_high")  # 95 % interval; 5 % and 95 % of the draws of shuffled images
TIE = 1e-6  # scores nearer than this share the best place, as in the query `diagonal_violations`

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
    """What is known of a square besides its value; many squares share one."""

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
    diverged_ST: npt.NDArray[np.bool_] | None = None  # squares that are nobody's best source; None: none
    evidence: Mapping[str, Floats] = field(default_factory=dict)  # by name of `EVIDENCE`: (S, T), NaN where unknown

    def best(self, higher_is_similar: bool | None) -> npt.NDArray[np.bool_]:
        """Return which squares hold the best source of their target layer; ties within `TIE` all do."""
        if higher_is_similar is None:
            return np.zeros(self.values_ST.shape, dtype=bool)
        similarity_ST = self.values_ST if higher_is_similar else -self.values_ST
        if self.diverged_ST is not None:
            similarity_ST = np.where(self.diverged_ST, np.nan, similarity_ST)
        best_T = np.fmax.reduce(similarity_ST, axis=0)
        # Compared, not subtracted: infinite values tie with themselves.
        return np.asarray(similarity_ST >= best_T - TIE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a reader can choose to see: one metric of one matcher with one seed, for all pairs of networks."""

    matcher: str
    label: str  # of the matcher: its kind, and what tells it from others of that kind
    params: str
    samples: int | None  # images it looks at, None where nothing stored says
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
        """What is shown, in words."""
        return f"{self.label}{'' if self.seed is None else f', seed {self.seed}'} · {self.metric}"

    @property
    def direction(self) -> str:
        """Which end of the metric means more similar, in words."""
        return {True: "higher = more similar", False: "lower = more similar", None: "neither end is more similar"}[
            self.higher_is_similar
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Does every layer of a network match itself best? An answer of the query `diagonal_violations`."""

    network: str
    label: str  # of the matcher
    choice: int  # where to see it
    num_judged: int  # target layers
    num_violations: int
    num_missing: int  # scores
    violations: tuple[str, ...]  # target layer <- best source


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """How many layer pairs of two networks a trained matcher calls alike, and how many of these claims are denied."""

    source: int  # position among the sweep's networks
    target: int
    label: str  # of the matcher
    choice: int  # where to see it
    num_claims: int
    num_misleading: int
    num_unchecked: int
    pairs: tuple[str, ...]  # source layer -> target layer of misleading claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Layers folded into stages: of so many in a row the last one stands for all."""

    num_layers: int  # of one stage
    num_cells: int  # of the sweep, all layers counted
    most_cells: int  # that are shown layer by layer


@dataclass(frozen=True, kw_only=True)
class SweepGrids:
    """All that the atlas shows of one sweep."""

    sweep: str
    networks: tuple[NetworkInfo, ...]
    choices: tuple[Choice, ...]
    notes: tuple[Note, ...]
    judgements: tuple[Judgement, ...]
    claims: tuple[Claims, ...]  # answers of the query `misleading`
    num_by_status: dict[str, int]  # cells
    num_eval: tuple[int, ...]  # images on which values are reported, as many numbers as there are
    num_fit: tuple[int, ...]  # images on which maps were fitted
    computed: tuple[str, str] | None  # first and last day
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
    """Return (sources, targets) of each connected part of the pairs, so that each part is one block of panels.

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
