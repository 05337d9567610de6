"""Growth of a job as a figure: CPU time and memory over the size, one plot for each axis, on logarithmic scales."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from stitchgrid.atlas.figures.lines import legend_above, room_for, scale_axis, span_of
from stitchgrid.atlas.figures.style import COLOURS, LINE, MARGIN, NORMAL, POINTS, SMALL, drawing, place, save
from stitchgrid.atlas.scales import Scale
from stitchgrid.bench import Growth

SIDE = 1.7  # inches of one plot
GAP = 0.32
SERIES = (("CPU time, in seconds", COLOURS[0], "o", "-"), ("peak memory, in GB", COLOURS[1], "s", "--"))


def growth_figure(found: Sequence[Growth], format: str) -> bytes:
    """Return a figure of the growth of a job along several axes, as a pdf, svg or png file."""
    with drawing():
        return save(_draw(found), format)


def _draw(found: Sequence[Growth]) -> Figure:
    seconds = [[one.cpu_seconds for one in growth.points] for growth in found]
    memory = [[one.peak_bytes / 1e9 for one in growth.points] for growth in found]
    log = Scale(low=0.1, high=1.0, is_log=True)
    scale = span_of([np.asarray(one) for one in (*seconds, *memory)], log)
    left, bottom = MARGIN + room_for(scale) + 0.05, MARGIN + (SMALL + NORMAL) * LINE / POINTS + 0.12
    width = left + len(found) * (SIDE + GAP)
    figure = Figure(figsize=(width, bottom + SIDE + 0.3))
    handles: list[tuple[Artist, str]] = []
    for number, growth in enumerate(found):
        axes = place(figure, left + number * (SIDE + GAP), bottom, SIDE, SIDE)
        sizes = [one.size for one in growth.points]
        lines = [
            axes.plot(sizes, values, color=colour, marker=marker, markersize=3, linestyle=dash)[0]
            for values, (_, colour, marker, dash) in zip((seconds[number], memory[number]), SERIES, strict=True)
        ]
        handles = handles or [(line, label) for line, (label, *_) in zip(lines, SERIES, strict=True)]
        scale_axis(axes, "y", scale)
        scale_axis(axes, "x", span_of([np.asarray(sizes, dtype=float)], log), most=6)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xlabel(f"{growth.axis} (exponent {growth.exponent:.1f})")
    legend_above(figure, handles)
    return figure
