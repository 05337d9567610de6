"""Profiles of one score: its values over the depth of the source layer, in one panel per target layer."""

import math
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stitchgrid.atlas.figures.lines import drawable, grow, legend_above, room_for, scale_axis, span_of
from stitchgrid.atlas.figures.scores import Averaged, Score
from stitchgrid.atlas.figures.style import (
    COLOURS,
    INK,
    LINE,
    MARGIN,
    NORMAL,
    POINTS,
    SMALL,
    SOFT,
    fit,
    place,
    width_of,
)
from stitchgrid.atlas.grids import Floats, NetworkInfo
from stitchgrid.printable import in_one_line

MOST_PANELS = 9
PER_ROW = 3
WIDE = 5.0  # inches: a figure of this width has room for one more panel in a row
SHAPE = 0.72  # height of a panel divided by its width
MOST_HEIGHT = 1.5  # inches of a panel
OWN, NULL = COLOURS[0], "0.75"
DEPTHS = (0.0, 0.5, 1.0)


def chosen_layers(num: int) -> list[int]:
    """Return positions of at most nine of `num` layers, evenly spread, with the first and the last.

    >>> chosen_layers(3), chosen_layers(17)
    ([0, 1, 2], [0, 2, 4, 6, 8, 10, 12, 14, 16])
    """
    if num <= MOST_PANELS:
        return list(range(num))
    return [round(n * (num - 1) / (MOST_PANELS - 1)) for n in range(MOST_PANELS)]


def draw_profile(
    score: Score, found: Averaged, twin: Averaged | None, source: NetworkInfo, target: NetworkInfo, width: float
) -> Figure:
    """Draw one panel for each of the chosen target layers; all panels have the same axes."""
    layers = chosen_layers(len(target.layers))
    depths = np.array([layer.depth for layer in source.layers])
    shown = [found.values_ST, found.low_ST, found.high_ST, found.null_low_ST, found.null_high_ST]
    shown += [] if twin is None else [twin.values_ST]
    scale = span_of([one[:, layers] for one in shown], score.scale)
    across = _num_across(len(layers), width)
    down = max(1, math.ceil(len(layers) / across))
    line = NORMAL * LINE / POINTS
    below, between = 2 * line + 0.02, 0.1
    head = SMALL * LINE / POINTS + 0.07
    for words in ([_label(score, ", ")], _label(score, "\n").split("\n")):
        left = MARGIN + len(words) * line + room_for(scale, 4)
        panel = (width - left - 2 * MARGIN - (across - 1) * between) / across
        high = min(MOST_HEIGHT, panel * SHAPE)
        if width_of(words[0], NORMAL) <= down * (high + head):
            break
    figure = Figure(figsize=(width, 1.0))
    top = legend_above(figure, _entries(score, found, twin))
    height = top + down * (high + head) + below + MARGIN
    figure.legends[0].remove()
    grow(figure, height)
    legend_above(figure, _entries(score, found, twin))
    for number, layer in enumerate(layers):
        row, column = divmod(number, across)
        bottom = height - top - (row + 1) * (high + head)
        axes = place(figure, left + column * (panel + between), bottom, panel, high)
        scale_axis(axes, "y", scale, 4)
        axes.set(xlim=(-0.03, 1.03))
        is_last = number + across >= len(layers)
        axes.set_xticks(DEPTHS, [f"{depth:g}" for depth in DEPTHS] if is_last else [])
        if is_last:
            _turn_in(axes)
        if column:
            axes.set_yticklabels([])
        axes.set_title(fit(target.layers[layer].name, panel, SMALL), fontsize=SMALL, pad=1.5, loc="left", x=0.0)
        _draw_panel(axes, score, found, twin, depths, layer)
    middle = (height - top + height - top - down * (high + head)) / 2 / height
    for number, text in enumerate(words):
        at = (MARGIN + (number + 0.5) * line) / width, middle
        beside = fit(text, down * (high + head), NORMAL)
        figure.text(*at, beside, rotation=90, ha="center", va="center", fontsize=NORMAL)
    under = f"depth in {fit(source.name, width - left - 0.7, NORMAL)}"
    figure.text((left + width) / 2 / width, (MARGIN + line / 2) / height, under, ha="center", va="center")
    return figure


def _num_across(num: int, width: float) -> int:
    """Return the number of panels in a row."""
    if num == PER_ROW + 1:
        return num if width >= WIDE else 2
    return max(1, min(PER_ROW, num))


def _label(score: Score, between: str) -> str:
    aim = {True: "↑ more similar", False: "↓ more similar", None: ""}[score.higher_is_similar]
    return in_one_line(score.name) + (between + aim if aim else "")


def _turn_in(axes: Axes) -> None:
    """Align the first and last tick label with the ends of a horizontal axis, so that neighbours do not overlap."""
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")


def _draw_panel(axes: Axes, score: Score, found: Averaged, twin: Averaged | None, depths: Floats, layer: int) -> None:
    null_low, null_high = drawable(found.null_low_ST[:, layer]), drawable(found.null_high_ST[:, layer])
    low, high = drawable(found.low_ST[:, layer]), drawable(found.high_ST[:, layer])
    axes.fill_between(depths, null_low, null_high, color=NULL, alpha=0.7, linewidth=0.6)
    axes.fill_between(depths, low, high, color=OWN, alpha=0.25, linewidth=0)
    if twin is not None:
        axes.plot(depths, drawable(twin.values_ST[:, layer]), color=SOFT, linestyle=(0, (4, 2)), linewidth=0.8)
    own = drawable(found.values_ST[:, layer])
    axes.plot(depths, own, color=OWN, marker="o", markersize=2.0, markeredgewidth=0)
    best = found.panel.best(score.higher_is_similar)[:, layer]
    axes.plot(depths[best], own[best], "o", color=INK, markersize=3.6, markeredgewidth=0)


def _entries(score: Score, found: Averaged, twin: Averaged | None) -> list[tuple[Artist, str]]:
    """Return the entries of the legend, only for marks that the figure has."""
    several = len(score.seeds) > 1
    line: dict[str, Any] = {"marker": "o", "markersize": 2.0, "markeredgewidth": 0}
    entries: list[tuple[Artist, str]] = [(Line2D([], [], color=OWN, **line), "mean of seeds" if several else "value")]
    if not np.isnan(found.low_ST).all():
        entries.append((Patch(color=OWN, alpha=0.25, linewidth=0), "range of seeds" if several else "95 % interval"))
    if score.higher_is_similar is not None:
        entries.append((Line2D([], [], color=INK, linestyle="", marker="o", markersize=3.6), "best source"))
    if twin is not None:
        entries.append((Line2D([], [], color=SOFT, linestyle=(0, (4, 2)), linewidth=0.8), "untrained twin"))
    if not np.isnan(found.null_low_ST).all():
        entries.append((Patch(color=NULL, alpha=0.7, linewidth=0), "shuffled images, 5–95 %"))
    return entries
