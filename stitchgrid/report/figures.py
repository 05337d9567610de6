"""Figures of a report: scatter plots side by side, as SVG; the same values give the same SVG."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stitchgrid.printable import printable

SIDE_INCHES = 2.4  # of one plot
PER_ROW = 5
MANY = 500  # points of a plot: more are drawn as an image inside the SVG
COLOURS = ("#2a788e", "#a3195b", "#7ad151", "#414487", "#d98c21", "#66676d")
MARKERS = "o^sDvP"
LONGEST_TITLE = 34  # letters
INK, RULE = "#1c1d20", "#8a8b90"  # of text and of axes; dark pages get the bright ones of `ON_DARK`, see `_as_svg`
ON_DARK = {INK: "#e9e8e4", RULE: "#77787e"}
LARGEST = 1e30  # absolute value of a point that is drawn: larger ones would hide all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """The scatter plot of one matcher."""

    title: str
    x: Sequence[float]
    y: Sequence[float]
    groups: Sequence[str]  # of each point: decides colour and mark


def draw_clouds(
    clouds: Sequence[Cloud],
    *,
    x_label: str,
    y_label: str,
    diagonal: bool = False,  # both axes count layers
    x_lines: Sequence[float] = (),
    y_lines: Sequence[float] = (),
    x_limits: tuple[float, float] | None = None,
) -> bytes:
    """Return scatter plots side by side as SVG; points that coincide are one larger mark.

    Points with a coordinate that is undefined, infinite or too large are left out.
    """
    across = min(len(clouds), PER_ROW)
    down = -(-len(clouds) // PER_ROW)
    figure = Figure(figsize=(across * SIDE_INCHES + 1.5, down * SIDE_INCHES + 0.3), layout="constrained")
    groups = list(dict.fromkeys(group for cloud in clouds for group in cloud.groups))
    squares = figure.subplots(down, across, squeeze=False, sharex=diagonal, sharey=diagonal).ravel()
    for axes, cloud in zip(squares, clouds, strict=False):
        _draw(axes, cloud, groups)
        axes.set_title(_short(cloud.title), fontsize=8, parse_math=False, color=INK)
        if diagonal:
            axes.axline((0, 0), slope=1, color=RULE, linewidth=0.8, zorder=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        for value in x_lines:
            axes.axvline(value, color=RULE, linewidth=0.8, linestyle=":", zorder=0)
        for value in y_lines:
            axes.axhline(value, color=RULE, linewidth=0.8, linestyle=":", zorder=0)
        if x_limits:
            axes.set_xlim(*x_limits)
    for axes in squares[len(clouds) :]:
        axes.set_axis_off()
    figure.supxlabel(x_label, fontsize=8, color=INK)
    figure.supylabel(y_label, fontsize=8, color=INK)
    if len(groups) > 1:
        _draw_legend(figure, groups)
    return _as_svg(figure)


def _draw(axes: Axes, cloud: Cloud, groups: Sequence[str]) -> None:
    points = zip(cloud.x, cloud.y, cloud.groups, strict=True)
    counts = Counter((x, y, group) for x, y, group in points if _is_drawn(x) and _is_drawn(y))
    for number, group in enumerate(groups):
        marks = [(x, y, count) for (x, y, of), count in counts.items() if of == group]
        if not marks:
            continue
        x, y, count = (np.array(side, dtype=float) for side in zip(*marks, strict=True))
        axes.scatter(
            x,
            y,
            s=12 * np.sqrt(count),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            alpha=0.75,
            linewidths=0,
            rasterized=len(counts) > MANY,
        )
    axes.tick_params(labelsize=6, length=2, color=RULE, labelcolor=INK)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)


def _is_drawn(value: float | None) -> bool:
    return value is not None and abs(value) <= LARGEST  # False for NaN


def _draw_legend(figure: Figure, groups: Sequence[str]) -> None:
    marks = [
        Line2D([], [], linestyle="", marker=MARKERS[k % len(MARKERS)], markersize=4, color=COLOURS[k % len(COLOURS)])
        for k in range(len(groups))
    ]
    numbers = list(map(str, range(len(groups))))
    legend = figure.legend(marks, numbers, loc="outside right upper", fontsize=7, frameon=False)
    for text, group in zip(
        legend.get_texts(), groups, strict=True
    ):  # set afterwards, so that no name is read as markup
        text.set_parse_math(False)
        text.set_text(_short(group))
        text.set_color(INK)


def _short(title: str) -> str:
    title = printable(title)
    return title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"


def _as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG with a transparent background, and with bright text and axes on a dark page."""
    sink = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "stitchgrid", "savefig.dpi": 200}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    rules = "".join(
        f'[style*="{what}: {ink}"] {{ {what}: {bright} !important }}'
        for ink, bright in ON_DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {rules} }}</style>".encode()
    return sink.getvalue().replace(b"<defs>", style + b"<defs>", 1)
