"""Scatter plot of two scores of the same layer pairs, with misleading claims and thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stitchgrid.atlas.content import find_claimants
from stitchgrid.atlas.figures.lines import drawable, lone_axes, room_for, scale_axis, span_of
from stitchgrid.atlas.figures.scores import Averaged, Score, find_scores
from stitchgrid.atlas.figures.style import ACCENT, COLOURS, LINE, MARGIN, NORMAL, POINTS, SOFT, fit
from stitchgrid.atlas.grids import SweepGrids
from stitchgrid.atlas.scales import Scale
from stitchgrid.catalog.misleading import misleading_limits

HEIGHT = 2.4  # inches of the plot, at most
SIZE = 2.4  # points of a dot
MANY = 2_000  # with more dots, dots are smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class MisleadingPairs:
    """Layer pairs with a misleading claim of one trained matcher."""

    label: str | None  # None: no trained matcher claims anything here
    misleading_ST: npt.NDArray[np.bool_]
    num_claims: int


def axes_of(grids: SweepGrids, chosen: Sequence[Score], only: Sequence[str]) -> tuple[Score, Score] | None:
    """Return the scores of the x axis and the y axis; None if there are not two scores.

    With `only` they are the first two chosen scores. Without, they are the residual of direct matching (x) and the
    score of a trained stitch's claim (y), if the sweep has both, else the first two chosen scores.
    """
    if not only:
        for claimant in find_claimants(grids.choices):
            scores = {id(choice): score for score in find_scores(grids.choices) for choice in score.choices}
            y = claimant["relativeAccuracy"] if claimant["relativeAccuracy"] is not None else claimant["accuracy"]
            if claimant["direct"]:
                return scores[id(grids.choices[claimant["direct"][0]])], scores[id(grids.choices[y])]
    return (chosen[0], chosen[1]) if len(chosen) > 1 else None


def judge(grids: SweepGrids, x: Score, y: Score, pair: tuple[int, int], shape: tuple[int, ...]) -> MisleadingPairs:
    """Return the layer pairs with a misleading claim (query `misleading`) by any seed of the axes' trained matcher.

    If no axis shows a trained matcher, the first matcher with a claim about the pair of networks is taken.
    """
    trained = [score.label for score in (y, x) if score.choices[0].is_trained]
    others = [one.label for one in grids.claims]
    claims = [one for one in grids.claims if (one.source, one.target) == pair]
    label = next((word for word in (*trained, *others) if any(one.label == word for one in claims)), None)
    source, target = (grids.networks[n] for n in pair)
    said = {word for one in claims if one.label == label for word in one.pairs}
    misleading = [[f"{i.name} -> {j.name}" in said for j in target.layers] for i in source.layers]
    return MisleadingPairs(
        label=label,
        misleading_ST=np.array(misleading, dtype=bool).reshape(shape),
        num_claims=sum(one.num_claims for one in claims if one.label == label),
    )


def thresholds(score: Score, clean: float | None) -> list[float]:
    """Return the thresholds of the rule of misleading claims on the axis of a score.

    Args:
        score: The score of the axis.
        clean: Accuracy of the target network, unstitched.
    """
    limits = {name: float(value) for name, value in misleading_limits().items() if isinstance(value, float)}
    if (score.matcher, score.metric) == ("direct", "residual"):
        return [limits["residual"]]
    if not score.choices[0].is_trained:
        return []
    if score.metric == "relative_accuracy":
        return [limits["claim"]]
    if score.metric == "accuracy" and clean:
        return [limits["claim"] * clean]
    if score.metric in ("ood_mahalanobis_auroc", "ood_energy_auroc"):
        return [0.5 - limits["ood"], 0.5 + limits["ood"]]
    return []


def is_drawn(found: tuple[Averaged, Averaged]) -> npt.NDArray[np.bool_]:
    """Return which layer pairs, (S, T), have both scores as finite numbers that axes can show."""
    return ~np.isnan(drawable(found[0].values_ST)) & ~np.isnan(drawable(found[1].values_ST))


def draw_scatter(
    scores: tuple[Score, Score],
    found: tuple[Averaged, Averaged],
    judged: MisleadingPairs,
    clean: float | None,
    width: float,
) -> Figure:
    """Draw a dot for each layer pair that has both scores."""
    limits = [thresholds(score, clean) for score in scores]
    known = is_drawn(found)
    x_ST, y_ST = (one.values_ST for one in found)
    scales: list[Scale] = [
        span_of([one.values_ST[known]], score.scale, more)
        for one, score, more in zip(found, scores, limits, strict=True)
    ]
    size = SIZE if known.sum() <= MANY else SIZE / 2
    marks = [(known & ~judged.misleading_ST, COLOURS[0], "layer pair"), (known & judged.misleading_ST, ACCENT, "")]
    entries = [
        (Line2D([], [], linestyle="", marker="o", markersize=SIZE, markeredgewidth=0, color=COLOURS[0]), "layer pair")
    ]
    if judged.label is not None:
        dot = Line2D([], [], linestyle="", marker="D", markersize=SIZE, markeredgewidth=0, color=ACCENT)
        entries.append((dot, fit(f"misleading claim of {judged.label}", width * 0.8, NORMAL)))
    if any(limits):
        entries.append((Line2D([], [], color=SOFT, linestyle=(0, (4, 2)), linewidth=0.8), "threshold"))
    most = 6 if width > 4 else 5
    left = MARGIN + NORMAL * LINE / POINTS + room_for(scales[1], most)
    high = min(HEIGHT, width - left)
    figure, axes = lone_axes(width, entries, high, left)
    for side, scale in zip("xy", scales, strict=True):
        scale_axis(axes, side, scale, most)
    for value in limits[0]:
        axes.axvline(value, color=SOFT, linestyle=(0, (4, 2)), linewidth=0.8, zorder=0)
    for value in limits[1]:
        axes.axhline(value, color=SOFT, linestyle=(0, (4, 2)), linewidth=0.8, zorder=0)
    for (is_here, colour, _), shape in zip(marks, "oD", strict=True):
        axes.plot(x_ST[is_here], y_ST[is_here], shape, color=colour, markersize=size, markeredgewidth=0, alpha=0.75)
    arrows = [("←", "→"), ("↓", "↑")]
    words = [
        fit(_label(score, *ends), room, NORMAL)
        for score, ends, room in zip(scores, arrows, (width - left, high + 0.3), strict=True)
    ]
    axes.set_xlabel(words[0], labelpad=2)
    middle = axes.get_position().y0 + high / 2 / figure.get_figheight()
    at = (MARGIN + NORMAL * LINE / POINTS / 2) / width, middle
    figure.text(*at, words[1], rotation=90, ha="center", va="center")
    return figure


def _label(score: Score, less: str, more: str) -> str:
    if score.higher_is_similar is None:
        return score.name
    return f"{score.name}, {more if score.higher_is_similar else less} more similar"
