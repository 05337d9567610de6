"""The heat maps of the page as PDF figures, one per matcher, seed and metric, by the same rules."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stitchgrid.atlas.grids import Choice, NetworkInfo, Panel, SweepGrids
from stitchgrid.paths import write_whole

SQUARE_INCHES = 0.2
GAP = 0.4  # squares between two panels
LABEL_INCHES = 1.5  # room for names of layers, left of and below a block
TOP_INCHES = 0.8  # room for the title and the colour bar
LONGEST_NAME = 26  # of a layer, in letters
LETTERS_PER_SQUARE = 3
LEGEND = "rows: source layers, columns: target layers\ndot: best source of a target layer; hatched: no value; ×: failed"
BRIGHT = 0.45  # from this position on the colours are bright: marks on them are black


def draw_figures(grids: SweepGrids, folder: Path) -> Iterator[Path]:
    """Write one PDF for every choice of a sweep into a folder; yield their paths."""
    for number, choice in enumerate(grids.choices):
        seed = "" if choice.seed is None else f"-seed{choice.seed}"
        name = f"{grids.sweep}-{number:02d}-{choice.matcher}{seed}-{choice.metric}"
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.pdf"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
            drawn = BytesIO()
            draw_choice(grids, choice).savefig(
                drawn, format="pdf", bbox_inches="tight", metadata={"CreationDate": None}
            )
        write_whole(path, drawn.getvalue())
        yield path


def draw_choice(grids: SweepGrids, choice: Choice) -> Figure:
    """Return the heat maps of one choice: a block for each set of networks that were compared with one another."""
    sizes = [(_span(grids, sources), _span(grids, targets)) for sources, targets in grids.blocks]
    height, width = (max(side) * SQUARE_INCHES + LABEL_INCHES for side in zip(*sizes, strict=True))
    num_columns = math.ceil(math.sqrt(len(sizes)))
    num_rows = math.ceil(len(sizes) / num_columns)
    figure = Figure(figsize=(num_columns * width, num_rows * height + TOP_INCHES))
    for number, ((sources, targets), (rows, columns)) in enumerate(zip(grids.blocks, sizes, strict=True)):
        down, across = divmod(number, num_columns)
        left = across * width + LABEL_INCHES
        bottom = (num_rows - down) * height - rows * SQUARE_INCHES
        axes = _axes(figure, left, bottom, columns * SQUARE_INCHES, rows * SQUARE_INCHES)
        _draw_block(axes, grids, choice, sources, targets)
    top = num_rows * height + TOP_INCHES
    title = f"{grids.sweep} · {choice.title}\n{choice.direction}; {LEGEND}"
    figure.text(LABEL_INCHES / figure.get_figwidth(), 1, title, fontsize=8, va="bottom", parse_math=False)
    _draw_colours(_axes(figure, LABEL_INCHES, top - 0.25, 1.8, 0.1), choice)
    return figure


def _span(grids: SweepGrids, networks: Sequence[int]) -> float:
    """Return how many squares these networks take side by side, with the gaps between them."""
    return sum(len(grids.networks[network].layers) for network in networks) + GAP * (len(networks) - 1)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes at a place given in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))


def _draw_colours(axes: Axes, choice: Choice) -> None:
    """Draw the colour bar; the end that means more similar is always on the right."""
    scale = choice.scale
    norm = (LogNorm if scale.is_log else Normalize)(scale.low, scale.high)
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = ends[scale.clips_low, scale.clips_high]
    axes.figure.colorbar(ScalarMappable(norm, _colours(choice)), cax=axes, orientation="horizontal", extend=extend)
    axes.tick_params(labelsize=6, length=2)
    axes.minorticks_off()
    if choice.higher_is_similar is False:
        axes.invert_xaxis()


def _colours(choice: Choice) -> mpl.colors.Colormap:
    return mpl.colormaps["viridis_r" if choice.higher_is_similar is False else "viridis"]


def _draw_block(axes: Axes, grids: SweepGrids, choice: Choice, sources: Sequence[int], targets: Sequence[int]) -> None:
    panels = {(panel.source, panel.target): panel for panel in choice.panels}
    tops, lefts = _starts(grids, sources), _starts(grids, targets)
    axes.set(xlim=(0, _span(grids, targets)), ylim=(_span(grids, sources), 0))
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelsize=6)
    places, names = _names([grids.networks[target] for target in targets], lefts)
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    places, names = _names([grids.networks[source] for source in sources], tops)
    axes.set_yticks(places, names, parse_math=False)
    bold: dict[str, Any] = {"fontsize": 6.5, "fontweight": "bold", "parse_math": False}
    for target, left in zip(targets, lefts, strict=True):
        network = grids.networks[target]
        axes.text(left + len(network.layers) / 2, -0.3, _title(network), ha="center", va="bottom", **bold)
    for source, top in zip(sources, tops, strict=True):
        network = grids.networks[source]
        place = axes.get_xlim()[1] + 0.3, top + len(network.layers) / 2
        axes.text(*place, _title(network), rotation=-90, ha="left", va="center", **bold)
        for target, left in zip(targets, lefts, strict=True):
            if (source, target) in panels:
                _draw_panel(axes, grids, choice, panels[source, target], (top, left))


def _starts(grids: SweepGrids, networks: Sequence[int]) -> list[float]:
    sides = [len(grids.networks[network].layers) + GAP for network in networks]
    return [sum(sides[:position]) for position in range(len(sides))]


def _names(networks: Sequence[NetworkInfo], starts: Sequence[float]) -> tuple[list[float], list[str]]:
    places, names = [], []
    for network, start in zip(networks, starts, strict=True):
        for position, layer in enumerate(network.layers):
            places.append(start + position + 0.5)
            names.append(_short(layer.name, LONGEST_NAME))
    return places, names


def _title(network: NetworkInfo) -> str:
    return _short(network.name, max(4, LETTERS_PER_SQUARE * len(network.layers)))


def _short(name: str, length: int) -> str:
    """Return a name cut from the left: names of layers and seeds differ at their ends.

    >>> _short("layer4.1", 5)
    '…r4.1'
    """
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _draw_panel(axes: Axes, grids: SweepGrids, choice: Choice, panel: Panel, corner: tuple[float, float]) -> None:
    (num_rows, num_columns), (top, left) = panel.values_ST.shape, corner
    places_ST = choice.scale.position(panel.values_ST)
    edges = left + np.arange(num_columns + 1), top + np.arange(num_rows + 1)
    colours = _colours(choice)
    axes.pcolormesh(*edges, np.ma.masked_invalid(places_ST), cmap=colours, vmin=0, vmax=1, edgecolors="w", lw=0.4)
    for i, j in np.argwhere(np.isnan(panel.values_ST)):
        look: dict[str, Any] = {"hatch": "///////", "facecolor": "0.95", "edgecolor": "0.7", "linewidth": 0}
        axes.add_patch(Rectangle((left + j, top + i), 1, 1, **look))
        if grids.notes[panel.notes_ST[i, j]].state in ("failed", "quarantined"):
            axes.plot(left + j + 0.5, top + i + 0.5, "x", color="#a3195b", markersize=4)
    for i, j in np.argwhere(panel.best(choice.higher_is_similar)):
        shown = 1 - places_ST[i, j] if choice.higher_is_similar is False else places_ST[i, j]
        axes.plot(left + j + 0.5, top + i + 0.5, ".", color="k" if shown > BRIGHT else "w", markersize=4)
    if panel.source == panel.target:
        frame: dict[str, Any] = {"fill": False, "edgecolor": "0.4", "linewidth": 0.6, "clip_on": False}
        axes.add_patch(Rectangle((left - 0.1, top - 0.1), num_columns + 0.2, num_rows + 0.2, **frame))
