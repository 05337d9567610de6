"""Scores for figures: the choices of one matcher and metric, averaged over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stitchgrid.atlas.grids import EVIDENCE, Choice, Floats, Note, Panel
from stitchgrid.atlas.scales import Scale

FAILURES = ("failed", "quarantined")
WAITING = ("pending", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """One score of one ordered pair of networks. Shape suffixes: S layers of the source, T layers of the target."""

    panel: Panel  # means over the seeds that have a value and did not diverge; if all diverged, over these
    num_seeds_ST: npt.NDArray[np.int64]  # number of seeds in the mean
    states_ST: npt.NDArray[np.str_]  # value | undefined | failed | quarantined | running | pending | absent
    num_by_state: dict[str, int]  # state -> number of cells, each seed counted; `diverged` is a state here
    low_ST: Floats  # smallest value of the seeds if there are several, else low end of the 95 % interval; NaN: unknown
    high_ST: Floats  # the same for the largest value, or the high end
    null_low_ST: Floats  # 5 % quantile of the draws of shuffled images, mean over the seeds
    null_high_ST: Floats  # 95 % quantile

    @property
    def values_ST(self) -> Floats:
        """The numbers that figures draw."""
        return self.panel.values_ST


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """One metric of one matcher: a choice for each of its seeds."""

    choices: tuple[Choice, ...]

    @property
    def matcher(self) -> str:
        """The kind of the matcher."""
        return self.choices[0].matcher

    @property
    def label(self) -> str:
        """The label of the matcher: its kind, and the parameters in which matchers of that kind differ."""
        return self.choices[0].label

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.choices[0].metric

    @property
    def name(self) -> str:
        """Label of the matcher and metric, in words."""
        return self.label if self.metric == self.label else f"{self.label} {self.metric}"

    @property
    def is_ranking(self) -> bool:
        """Whether the matcher ranks layers by this score."""
        return self.choices[0].is_score

    @property
    def higher_is_similar(self) -> bool | None:
        """Whether a higher value means more similar; None if the metric has no direction."""
        return self.choices[0].higher_is_similar

    @property
    def scale(self) -> Scale:
        """The colour scale, which all seeds share."""
        return self.choices[0].scale

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the matcher; empty if it has none."""
        return tuple(choice.seed for choice in self.choices if choice.seed is not None)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The ordered pairs of networks that have the score."""
        return list(dict.fromkeys((panel.source, panel.target) for one in self.choices for panel in one.panels))

    def averaged(self, pair: tuple[int, int], notes: Sequence[Note]) -> Averaged | None:
        """Return the means over the seeds for one pair of networks; None if the pair was not compared."""
        panels = [panel for one in self.choices for panel in one.panels if (panel.source, panel.target) == pair]
        return _average(panels, notes) if panels else None


def find_scores(choices: Sequence[Choice]) -> list[Score]:
    """Return the scores of a sweep, in the order of its choices: a score joins choices that differ only in the seed."""
    found: dict[tuple[str, str, int | None, str], list[Choice]] = {}
    for one in choices:
        found.setdefault((one.matcher, one.params, one.samples, one.metric), []).append(one)
    return [Score(choices=tuple(group)) for group in found.values()]


def _average(panels: Sequence[Panel], notes: Sequence[Note]) -> Averaged:
    values = np.stack([panel.values_ST for panel in panels])
    shape = values.shape[1:]
    diverged = np.stack(
        [np.zeros(shape, dtype=bool) if panel.diverged_ST is None else panel.diverged_ST for panel in panels]
    )
    words = np.array([note.state for note in notes], dtype=np.str_)
    states = np.stack([words[panel.notes_ST] for panel in panels])
    sound = ~np.isnan(values) & ~diverged
    has_sound = sound.any(axis=0)
    # Where every seed diverged, their values are shown, too; they cannot be a best source.
    used = np.where(has_sound, sound, ~np.isnan(values))
    num = used.sum(axis=0)
    evidence = {
        name: np.stack([panel.evidence.get(name, np.full(shape, np.nan)) for panel in panels]) for name in EVIDENCE
    }
    if len(panels) > 1:
        low, high = _extreme(np.fmin, values, used), _extreme(np.fmax, values, used)
    else:
        low, high = evidence["low"][0], evidence["high"][0]
    kinds, counts = np.unique(np.where(diverged, "diverged", states), return_counts=True)
    return Averaged(
        panel=Panel(
            source=panels[0].source,
            target=panels[0].target,
            values_ST=_mean(values, used),
            notes_ST=np.zeros(shape, dtype=np.int64),
            diverged_ST=~has_sound & diverged.any(axis=0),
        ),
        num_seeds_ST=num,
        states_ST=_worst(states, num > 0),
        num_by_state=dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        low_ST=low,
        high_ST=high,
        null_low_ST=_mean(evidence["null_low"], ~np.isnan(evidence["null_low"])),
        null_high_ST=_mean(evidence["null_high"], ~np.isnan(evidence["null_high"])),
    )


def _mean(values: Floats, used: npt.NDArray[np.bool_]) -> Floats:
    num = used.sum(axis=0)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite values of both signs have no mean
        means = np.where(used, values, 0.0).sum(axis=0) / np.maximum(num, 1)
    return np.where(num > 0, means, np.nan)


def _extreme(reduce: np.ufunc, values: Floats, used: npt.NDArray[np.bool_]) -> Floats:
    return np.asarray(reduce.reduce(np.where(used, values, np.nan), axis=0))


def _worst(states: npt.NDArray[np.str_], has_value: npt.NDArray[np.bool_]) -> npt.NDArray[np.str_]:
    """Return one state for all seeds of each square: `value` if any has one, else `failed` if any failed."""
    failed = np.isin(states, FAILURES).any(axis=0)
    return np.where(has_value, "value", np.where(failed, "failed", states[0]))
