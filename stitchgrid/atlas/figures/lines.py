"""Code that figures of lines and dots share: axes that leave room for labels, a legend at the top, ranges, ticks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stitchgrid.atlas.figures.style import LARGEST, MARGIN, SMALL, place, short, ticks, width_of
from stitchgrid.atlas.grids import Floats
from stitchgrid.atlas.scales import Scale

PAD = 0.08  # share of the range by which an axis extends beyond the last value


def drawable(values: Floats) -> Floats:
    """Return values, with NaN in place of infinite and too large ones."""
    return np.where(np.abs(np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=np.inf)) < LARGEST, values, np.nan)


def span_of(values: Sequence[Floats], scale: Scale, include: Sequence[float] = ()) -> Scale:
    """Return the range of an axis for all these values; logarithmic if `scale` is and every value is above 0."""
    found = np.concatenate([drawable(np.asarray(one, dtype=float)).ravel() for one in (*values, np.array(include))])
    found = found[~np.isnan(found)]
    if not found.size:
        return Scale(low=0.0, high=1.0)
    low, high = float(found.min()), float(found.max())
    if scale.is_log and low > 0 and high > low:
        room = (high / low) ** PAD
        return Scale(low=low / room, high=high * room, is_log=True)
    room = (high - low or abs(high) or 1.0) * PAD
    return Scale(low=low - room, high=high + room)


def scale_axis(axes: Axes, side: str, scale: Scale, most: int = 5) -> list[str]:
    """Set range and round tick labels of the axis `side`, "x" or "y"; return the labels."""
    shown = ticks(scale, most)
    texts = [short(value) for value in shown]
    axis = getattr(axes, f"{side}axis")
    getattr(axes, f"set_{side}scale")("log" if scale.is_log else "linear")
    getattr(axes, f"set_{side}lim")(scale.low, scale.high)
    axis.set_ticks(shown, texts)
    axis.set_ticks([], minor=True)
    return texts


def room_for(scale: Scale, most: int = 5) -> float:
    """Return the width, in inches, of the tick labels of a vertical axis."""
    return max((width_of(short(value), SMALL) for value in ticks(scale, most)), default=0.0) + 0.06


def legend_above(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> float:
    """Put a legend at the top of a figure, in as few lines as its width allows; return its height in inches."""
    if not entries:
        return 0.0
    handles, labels = [entry[0] for entry in entries], [entry[1] for entry in entries]
    width, height = figure.get_size_inches()
    look: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (MARGIN / width, 1.0 - MARGIN / height),
        "frameon": False,
        "borderpad": 0.1,
        "borderaxespad": 0.0,
        "columnspacing": 1.2,
        "handletextpad": 0.5,
        "handlelength": 1.8,
        "labelspacing": 0.25,
    }
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(len(entries), 0, -1):
        legend = figure.legend(handles, labels, ncols=columns, **look)
        box = legend.get_window_extent(renderer)
        if box.width / figure.dpi <= width - 2 * MARGIN or columns == 1:
            break
        legend.remove()
    return float(box.height / figure.dpi) + MARGIN


def grow(figure: Figure, height: float) -> None:
    """Set the height of a figure, in inches."""
    figure.set_size_inches(figure.get_figwidth(), height)


def lone_axes(
    width: float, entries: Sequence[tuple[Artist, str]], plot_height: float, left: float
) -> tuple[Figure, Axes]:
    """Return a figure with a legend above one plot, and room for labels around it."""
    below = 0.27
    figure = Figure(figsize=(width, plot_height))
    top = legend_above(figure, entries)
    height = top + 0.05 + plot_height + below + MARGIN
    for legend in figure.legends:
        legend.remove()
    grow(figure, height)
    legend_above(figure, entries)
    return figure, place(figure, left, below + MARGIN, width - left - 2.5 * MARGIN, plot_height)
