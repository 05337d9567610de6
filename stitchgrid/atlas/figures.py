"""The heat maps of the page as PDF figures, one per matcher and metric, by the same rules."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stitchgrid.atlas.grids import Choice, Panel, SweepGrids

PANEL_INCHES = 2.2
COLOURS = "viridis"


def draw_figures(grids: SweepGrids, folder: Path) -> list[Path]:
    """Write one PDF for every matcher and metric of a sweep into a folder; return their paths."""
    return [_draw(grids, number, choice, folder) for number, choice in enumerate(grids.choices)]


def _draw(grids: SweepGrids, number: int, choice: Choice, folder: Path) -> Path:
    sources = sorted({panel.source for panel in choice.panels})
    targets = sorted({panel.target for panel in choice.panels})
    figure = Figure(figsize=(PANEL_INCHES * len(targets) + 1, PANEL_INCHES * len(sources) + 0.8), layout="constrained")
    axes = figure.subplots(len(sources), len(targets), squeeze=False)
    for one in axes.flat:
        one.set_visible(False)
    for panel in choice.panels:
        here = axes[sources.index(panel.source), targets.index(panel.target)]
        here.set_visible(True)
        _draw_panel(here, grids, choice, panel)
    figure.suptitle(
        f"{grids.sweep}: {choice.label} {choice.metric} ({choice.direction}; hatched: no value)", fontsize=8
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{grids.sweep}-{number:02d}-{choice.matcher}-{choice.metric}")
    path = folder / f"{name}.pdf"
    figure.savefig(path, metadata={"CreationDate": None})
    return path


def _draw_panel(axes: Axes, grids: SweepGrids, choice: Choice, panel: Panel) -> None:
    """Draw one pair of networks: missing squares are hatched, the best source of each target layer has a dot."""
    source, target = grids.networks[panel.source], grids.networks[panel.target]
    colours = mpl.colormaps[COLOURS if choice.higher_is_similar is not False else f"{COLOURS}_r"]
    axes.patch.set(hatch="////", edgecolor="0.7", facecolor="0.95")
    axes.imshow(np.ma.masked_invalid(choice.scale.position(panel.values_ST)), cmap=colours, vmin=0, vmax=1)
    rows, columns = np.nonzero(panel.best(choice.higher_is_similar))
    axes.plot(columns, rows, linestyle="", marker="o", markersize=3, color="white", markeredgecolor="black")
    axes.set_xticks(range(len(target.layers)), [layer.name for layer in target.layers], rotation=90, fontsize=4)
    axes.set_yticks(range(len(source.layers)), [layer.name for layer in source.layers], fontsize=4)
    axes.set_title(f"{source.name} -> {target.name}", fontsize=6)
