"""Sweeps as figures take them, made without a store: any number of networks and layers, every value given."""

from dataclasses import replace
from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from stitchgrid.atlas.grids import Choice, LayerInfo, NetworkInfo, Note, Panel, SweepGrids
from stitchgrid.atlas.scales import Scale

NOTES = tuple(Note(state=state) for state in ("absent", "value", "failed", "pending", "value"))
VALUE, LOST, WAITS, DIVERGED = 1, 2, 3, 4  # positions among the notes
LEAST = 5.0  # points


def make_network(name, num_layers, layer="layer{}.conv"):
    depths = np.linspace(0, 1, num_layers) if num_layers > 1 else [0.5]
    layers = [
        LayerInfo(name=layer.format(n), depth=float(depth), kind="conv", shape=(8, 4, 4))
        for n, depth in enumerate(depths)
    ]
    return NetworkInfo(name=name, architecture="x", num_parameters=1, accuracy=0.9, layers=tuple(layers))


def make_choice(networks, pairs, *, seed=None, matcher="direct", metric="residual", higher=False, **changes):
    """Return a choice with values from a generator; `values` and `notes` by pair of networks take their place."""
    random = np.random.default_rng(7 + (seed or 0))
    values, notes, evidence = (changes.pop(name, {}) for name in ("values", "notes", "evidence"))
    panels = []
    for source, target in pairs:
        shape = len(networks[source].layers), len(networks[target].layers)
        notes_ST = notes.get((source, target), np.full(shape, VALUE))
        values_ST = np.asarray(values.get((source, target), random.uniform(0.05, 0.95, shape)), dtype=float)
        panels.append(
            Panel(
                source=source,
                target=target,
                values_ST=np.where(np.isin(notes_ST, (VALUE, DIVERGED)), values_ST, np.nan),
                notes_ST=notes_ST,
                diverged_ST=notes_ST == DIVERGED,
                evidence=evidence.get((source, target), {}),
            )
        )
    told = {"matcher": matcher, "label": matcher, "params": "{}", "samples": 100, "metric": metric, "is_score": True}
    scale = Scale(low=0.0, high=1.0)
    choice = Choice(**told, seed=seed, higher_is_similar=higher, scale=scale, panels=tuple(panels))
    return replace(choice, **changes)


def make_grids(networks, choices, *, sweep="made", **changes):
    grids = SweepGrids(
        sweep=sweep,
        networks=tuple(networks),
        choices=tuple(choices),
        notes=NOTES,
        judgements=(),
        claims=(),
        num_by_status={},
        num_eval=(1000,),
        num_fit=(200,),
        computed=None,
    )
    return replace(grids, **changes)


def texts_of(figure):
    """Return every text that is seen, with its box in pixels."""
    figure.canvas = FigureCanvasAgg(figure)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    shown = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    boxes = [(one, one.get_window_extent(renderer)) for one in shown]
    return [(one, box) for one, box in boxes if box.width > 0]


def assert_legible(figure):
    """Assert that no text overlaps another, leaves the figure or has letters that are too small."""
    texts = texts_of(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for one, box in texts:
        assert one.get_fontsize() >= LEAST, one.get_text()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, (one.get_text(), box, (width, height))
    for (one, box), (other, second) in combinations(texts, 2):
        across = min(box.x1, second.x1) - max(box.x0, second.x0)
        down = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert across <= 1 or down <= 1, (one.get_text(), other.get_text(), across, down)


def all_pairs(networks):
    return [(f, g) for f in range(len(networks)) for g in range(len(networks))]
