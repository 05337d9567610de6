"""Best sources: for each target layer, the depth of the source layer that matches it best; one line per matcher."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stitchgrid.atlas.figures.lines import lone_axes
from stitchgrid.atlas.figures.scores import Score
from stitchgrid.atlas.figures.style import COLOURS, DASHES, LINE, MARGIN, NORMAL, POINTS, SMALL, SOFT, fit, width_of
from stitchgrid.atlas.grids import SweepGrids

HEIGHT = 2.4  # inches of the plot, at most
DODGE = 1.7  # most points between the lines of two matchers at one target layer
BAR = 0.8  # width of a bar, in steps from one matcher to the next
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSource:
    """The best source layer of one target layer, by one matcher and seed."""

    label: str  # of the matcher
    seed: int | None
    target_layer: str
    target_depth: float
    source_layer: str
    source_depth: float
    candidates: tuple[tuple[str, float], ...]  # names and depths of source layers that are as good as the best
    margin: float | None
    verdict: str


def find_best_sources(grids: SweepGrids, scores: Sequence[Score], pair: tuple[int, int]) -> list[BestSource]:
    """Return the answers of the view `answers` for these matchers and this pair of networks."""
    if grids.answers is None:
        return []
    source, target = (grids.networks[n] for n in pair)
    depths = [{layer.name: layer.depth for layer in one.layers} for one in (source, target)]
    labels = {(one.matcher, one.params, one.samples): one.label for score in scores for one in score.choices}
    found = []
    for row in grids.answers.to_pylist():
        key = row["matcher"], row["params"], row["samples"]
        is_here = (row["source_model"], row["target_model"]) == (source.name, target.name) and key in labels
        # If layers are folded into stages, only the last layer of a stage is shown.
        if is_here and row["source_layer"] in depths[0] and row["target_layer"] in depths[1]:
            known = [(name, depths[0][name]) for name in row["candidates"] or () if name in depths[0]]
            found.append(
                BestSource(
                    label=labels[key],
                    seed=row["seed"],
                    target_layer=row["target_layer"],
                    target_depth=depths[1][row["target_layer"]],
                    source_layer=row["source_layer"],
                    source_depth=depths[0][row["source_layer"]],
                    candidates=tuple(known),
                    margin=row["margin"],
                    verdict=row["verdict"],
                )
            )
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.values()))}
    return sorted(found, key=lambda one: (order[one.label], -1 if one.seed is None else one.seed, one.target_depth))


def draw_best_sources(found: Sequence[BestSource], source: str, target: str, width: float) -> Figure:
    """Draw the depth of the best source over the depth of the target layer; seeds of a matcher share its colour."""
    labels = list(dict.fromkeys(one.label for one in found))
    looks = {label: _look(number) for number, label in enumerate(labels)}
    entries = [(Line2D([], [], **look), fit(label, width * 0.6, SMALL)) for label, look in looks.items()]
    entries.append((Line2D([], [], color=SOFT, linewidth=0.6), "same depth"))
    left = MARGIN + NORMAL * LINE / POINTS + width_of("0.75", SMALL) + 0.06
    high = min(HEIGHT, width - left)
    figure, axes = lone_axes(width, entries, high, left)
    step = _step(found, len(labels), (width - left) * POINTS)
    thick = min(DODGE, step * (width - left) * POINTS) * BAR
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.6, zorder=0)
    for label, seed in dict.fromkeys((one.label, one.seed) for one in found):
        line = [one for one in found if (one.label, one.seed) == (label, seed)]
        shift = (labels.index(label) - (len(labels) - 1) / 2) * step
        across = [one.target_depth + shift for one in line]
        lows = [min((depth for _, depth in one.candidates), default=one.source_depth) for one in line]
        highs = [max((depth for _, depth in one.candidates), default=one.source_depth) for one in line]
        colour = looks[label]["color"]
        axes.vlines(across, lows, highs, color=colour, linewidth=thick, alpha=0.4)
        axes.plot(across, [one.source_depth for one in line], **looks[label])
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    texts = [f"{depth:g}" for depth in DEPTHS]
    axes.set_xticks(DEPTHS, texts)
    axes.set_yticks(DEPTHS, texts)
    room = width - left - width_of("depth in  (target)", NORMAL)
    axes.set_xlabel(f"depth in {fit(target, room, NORMAL)} (target)", labelpad=2)
    words = f"best source, depth in {fit(source, max(high - 1.1, 0.3), NORMAL)}"
    height = figure.get_figheight()
    figure.text(
        (MARGIN + NORMAL * LINE / POINTS / 2) / width,
        axes.get_position().y0 + high / 2 / height,
        words,
        rotation=90,
        ha="center",
        va="center",
    )
    return figure


def _step(found: Sequence[BestSource], num: int, points: float) -> float:
    """Return the distance, in units of depth, between the lines of two matchers at one target layer."""
    depths = sorted({one.target_depth for one in found})
    nearest = min((after - before for before, after in pairwise(depths)), default=1.0)
    return min(DODGE / points, 0.6 * nearest / max(num, 1))


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        "marker": "o",
        "markersize": 2.6,
        "markeredgewidth": 0,
    }
