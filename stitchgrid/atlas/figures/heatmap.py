"""Heat maps of one score: all pairs of networks in blocks, or one pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from stitchgrid.atlas.figures.layout import GAP, HeatmapLayout, HeatmapPlace, HeatmapSide, lay_out
from stitchgrid.atlas.figures.scores import Averaged, Score
from stitchgrid.atlas.figures.style import (
    ACCENT,
    INK,
    LINE,
    MARGIN,
    NORMAL,
    POINTS,
    SMALL,
    SOFT,
    fit,
    place,
    short,
    ticks,
    width_of,
)
from stitchgrid.atlas.grids import Floats, SweepGrids, connected

BAR_WIDTH, BAR_HEIGHT = 2.4, 0.07  # inches of the colour bar
BRIGHT = 0.45  # colours above this position are bright, and marks on them are black
LEAST_HATCHED = 0.05  # inches: smaller squares are grey where they have no value
LEAST_EDGED = 0.06  # inches: smaller squares have no white lines between them, and are drawn as one image
MARK = 0.45  # size of a dot, in squares
MOST_MARK = 4.0  # points

Flags = npt.NDArray[np.bool_]
Pairs = dict[tuple[int, int], Averaged]


def draw_heatmap(grids: SweepGrids, score: Score, pairs: Pairs, width: float) -> tuple[Figure, HeatmapLayout]:
    """Draw the heat maps of these pairs of networks; return the figure and its layout."""
    blocks = connected(pairs)
    networks = [tuple([grids.networks[n] for n in side] for side in block) for block in blocks]
    lines = _title_lines(score, width)
    top = MARGIN + len(lines) * NORMAL * LINE / POINTS + BAR_HEIGHT + 0.06 + SMALL * LINE / POINTS + 0.06
    layout = lay_out([(rows, columns) for rows, columns in networks], width=width, top=top)
    figure = Figure(figsize=(width, layout.height))
    for (sources, targets), where in zip(blocks, layout.places, strict=True):
        size = where.columns.span * layout.square, where.rows.span * layout.square
        axes = place(figure, where.left, where.bottom, *size)
        _name(axes, where, layout.square)
        _draw_block(axes, score, _join(score, pairs, (sources, targets), where), layout.square)
    _draw_colours(figure, score, lines)
    return figure, layout


def _title_lines(score: Score, width: float) -> list[tuple[str, str]]:
    """Return name and direction of a score as lines above the colour bar, each (text on the left, on the right)."""
    bar = min(BAR_WIDTH, width - 0.5)
    aim = "" if score.higher_is_similar is None else "more similar →"
    if width_of(score.name + aim, NORMAL) + 0.12 <= bar:
        return [(score.name, aim)]
    name = fit(score.name, width - 2 * MARGIN, NORMAL)
    return [(name, ""), ("", fit(aim, bar, NORMAL))] if aim else [(name, "")]


def _draw_colours(figure: Figure, score: Score, lines: Sequence[tuple[str, str]]) -> None:
    """Draw the colour bar; the end that means more similar is always on the right."""
    width, height = figure.get_size_inches()
    long = min(BAR_WIDTH, width - 0.5)
    step = NORMAL * LINE / POINTS
    bottom = height - MARGIN - len(lines) * step - 0.02 - BAR_HEIGHT
    axes = place(figure, (width - long) / 2, bottom, long, BAR_HEIGHT)
    scale = score.scale
    norm = (LogNorm if scale.is_log else Normalize)(scale.low, scale.high)
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = figure.colorbar(
        ScalarMappable(norm, _colours(score)),
        cax=axes,
        orientation="horizontal",
        extend=ends[scale.clips_low, scale.clips_high],
        extendfrac=0.04,
    )
    bar.outline.set_visible(False)
    axes.minorticks_off()
    shown = ticks(scale)
    bar.set_ticks(shown, labels=[short(value) for value in shown])
    if score.higher_is_similar is False:
        axes.invert_xaxis()
    for number, (name, aim) in enumerate(lines):
        y = (height - MARGIN - (number + 0.5) * step) / height
        room = (width - width_of(name, NORMAL)) / 2 if not aim else (width - long) / 2
        figure.text(min(room, (width - long) / 2) / width, y, name, ha="left", va="center", fontsize=NORMAL)
        figure.text((width + long) / 2 / width, y, aim, ha="right", va="center", fontsize=NORMAL, color=SOFT)


def _colours(score: Score) -> mpl.colors.Colormap:
    return mpl.colormaps["viridis_r" if score.higher_is_similar is False else "viridis"]


def _name(axes: Axes, where: HeatmapPlace, square: float) -> None:
    """Write the names of layers and networks along the sides of a block."""
    rows, columns = where.rows, where.columns
    axes.set(xlim=(0, columns.span), ylim=(rows.span, 0))
    axes.set_frame_on(False)
    axes.tick_params(length=0, pad=1.5)
    axes.set_xticks(columns.places, columns.names, rotation=90, fontsize=columns.size)
    axes.set_yticks(rows.places, rows.names, fontsize=rows.size)
    title: dict[str, Any] = {"fontsize": SMALL, "fontweight": "bold", "color": INK}
    away = 0.02 / square
    ends = (*columns.starts[1:], columns.span)
    for text, start, end in zip(columns.titles, columns.starts, ends, strict=True):
        axes.text(_middle(start, end, columns.span), -away, text, ha="center", va="bottom", **title)
    ends = (*rows.starts[1:], rows.span)
    for text, start, end in zip(rows.titles, rows.starts, ends, strict=True):
        at = columns.span + away, _middle(start, end, rows.span)
        axes.text(*at, text, rotation=-90, ha="left", va="center", **title)
    line = NORMAL * LINE / POINTS
    below = (columns.room + 0.03 + line / 2) / square
    axes.text(columns.span / 2, rows.span + below, "target", ha="center", va="center", fontsize=NORMAL)
    beside = (rows.room + 0.03 + line / 2) / square
    axes.text(-beside, rows.span / 2, "source", rotation=90, ha="center", va="center", fontsize=NORMAL)


def _middle(start: float, end: float, span: float) -> float:
    """Return the middle of a network's squares; `end` is where the next network, or the end of the side, is."""
    return (start + (end if end == span else end - GAP)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """All squares of a block: S rows and T columns, among them the gaps between networks."""

    tops_S: Floats  # (S + 1,): where each row begins, and where the last one ends
    lefts_T: Floats  # (T + 1,): the same for columns
    values_ST: Floats
    is_empty_ST: Flags  # compared, but without a value
    has_failed_ST: Flags
    is_best_ST: Flags
    frames: tuple[tuple[float, float, int, int], ...]  # top, left, rows, columns of comparisons with itself


def _join(score: Score, pairs: Pairs, networks: tuple[list[int], list[int]], where: HeatmapPlace) -> _Block:
    """Return the pairs of networks of a block as one grid."""
    sides = [_edges(side) for side in (where.rows, where.columns)]
    shape = sides[0][1][-1], sides[1][1][-1]
    values_ST = np.full(shape, np.nan)
    empty_ST, failed_ST, best_ST = (np.zeros(shape, dtype=bool) for _ in range(3))
    frames = []
    for source, top, row in zip(networks[0], where.rows.starts, sides[0][1], strict=False):
        for target, left, column in zip(networks[1], where.columns.starts, sides[1][1], strict=False):
            if (source, target) not in pairs:
                continue
            found = pairs[source, target]
            num_rows, num_columns = found.values_ST.shape
            here = slice(row, row + num_rows), slice(column, column + num_columns)
            values_ST[here] = found.values_ST
            empty_ST[here] = np.isnan(found.values_ST)
            failed_ST[here] = found.states_ST == "failed"
            best_ST[here] = found.panel.best(score.higher_is_similar)
            if source == target:
                frames.append((top, left, num_rows, num_columns))
    return _Block(
        tops_S=sides[0][0],
        lefts_T=sides[1][0],
        values_ST=values_ST,
        is_empty_ST=empty_ST,
        has_failed_ST=failed_ST,
        is_best_ST=best_ST,
        frames=tuple(frames),
    )


def _edges(side: HeatmapSide) -> tuple[Floats, list[int]]:
    """Return the edges of squares and gaps along a side, and the position of each network's first square among them.

    The list of positions ends with the total number of squares and gaps.
    """
    edges: list[float] = []
    firsts = []
    ends = [*(start - GAP for start in side.starts[1:]), side.span]
    for start, end in zip(side.starts, ends, strict=True):
        firsts.append(len(edges))
        edges += [start + n for n in range(round(end - start) + 1)]
    return np.array(edges), [*firsts, len(edges) - 1]


def _draw_block(axes: Axes, score: Score, block: _Block, square: float) -> None:
    places_ST = score.scale.position(block.values_ST)
    # Small squares are drawn as one image, because most PDF viewers show thin lines between adjacent shapes.
    look: dict[str, Any] = (
        {"edgecolors": "w", "lw": min(0.4, 0.04 * square * POINTS)} if square >= LEAST_EDGED else {"rasterized": True}
    )
    shown = np.ma.masked_invalid(places_ST)
    axes.pcolormesh(block.lefts_T, block.tops_S, shown, cmap=_colours(score), vmin=0, vmax=1, **look)
    tops_S, lefts_T = block.tops_S[:-1], block.lefts_T[:-1]
    i, j = np.nonzero(block.is_empty_ST)
    _draw_gaps(axes, tops_S[i], lefts_T[j], is_hatched=square >= LEAST_HATCHED)
    mark = min(MOST_MARK, MARK * square * POINTS)
    i, j = np.nonzero(block.is_empty_ST & block.has_failed_ST)
    axes.plot(lefts_T[j] + 0.5, tops_S[i] + 0.5, "x", color=ACCENT, markersize=mark, markeredgewidth=mark / 5)
    shown_ST = 1 - places_ST if score.higher_is_similar is False else places_ST
    with np.errstate(invalid="ignore"):
        for ink, is_there in (("k", shown_ST > BRIGHT), ("w", shown_ST <= BRIGHT)):
            i, j = np.nonzero(block.is_best_ST & is_there)
            axes.plot(lefts_T[j] + 0.5, tops_S[i] + 0.5, "o", color=ink, markersize=mark * 0.6, markeredgewidth=0)
    frame: dict[str, Any] = {"fill": False, "edgecolor": SOFT, "linewidth": 0.6, "clip_on": False}
    for top, left, num_rows, num_columns in block.frames:
        axes.add_patch(Rectangle((left, top), num_columns, num_rows, **frame))


def _draw_gaps(axes: Axes, tops: Floats, lefts: Floats, *, is_hatched: bool) -> None:
    """Draw squares that have no value."""
    if not len(tops):
        return
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    squares = np.stack([lefts, tops], axis=1)[:, None, :] + corners
    look: dict[str, Any] = {"facecolor": "0.8"}
    if is_hatched:
        look = {"facecolor": "0.95", "edgecolor": "0.6", "hatch": "/////////"}
    axes.add_patch(PathPatch(Path.make_compound_path_from_polys(squares), linewidth=0, **look))
