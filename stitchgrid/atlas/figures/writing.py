"""Write figures to files: each in its formats, with its caption (.txt) and its numbers (.csv) beside it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from matplotlib.figure import Figure

from stitchgrid.atlas.figures.best import draw_best_sources, find_best_sources
from stitchgrid.atlas.figures.captions import caption_best, caption_heatmap, caption_profile, caption_scatter
from stitchgrid.atlas.figures.heatmap import draw_heatmap
from stitchgrid.atlas.figures.numbers import (
    numbers_of_best,
    numbers_of_heatmap,
    numbers_of_profile,
    numbers_of_scatter,
)
from stitchgrid.atlas.figures.options import FigureOptions, Selection
from stitchgrid.atlas.figures.profile import chosen_layers, draw_profile
from stitchgrid.atlas.figures.scatter import axes_of, draw_scatter, judge
from stitchgrid.atlas.figures.scores import Score
from stitchgrid.atlas.figures.style import drawing, save
from stitchgrid.catalog.formats import render
from stitchgrid.paths import LONGEST_NAME, write_whole
from stitchgrid.records import TWIN

LONGEST = LONGEST_NAME - len("-00000000.pdf") - len("..partial") - 32  # most characters of a name; a longer one is cut


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnFigure:
    """A figure, its caption and its numbers."""

    words: tuple[str, ...]  # parts of the file name
    figure: Figure
    caption: str
    numbers: pa.Table


def write_figures(selections: Sequence[Selection], options: FigureOptions, folder: Path) -> Iterator[Path]:
    """Write the figures of all selections into a folder; yield the path of each figure in its first format.

    Raises:
        OSError: If a file cannot be written.
    """
    taken: set[str] = set()
    for selection in selections:
        for make in _figures(selection, options):
            with drawing():
                drawn = make()
                if drawn is None:
                    continue
                files = {one: save(drawn.figure, one) for one in dict.fromkeys(options.formats)}
            name = unique_name(drawn.words, taken)
            for suffix, data in files.items():
                write_whole(folder / f"{name}.{suffix}", data)
            write_whole(folder / f"{name}.txt", drawn.caption.encode(errors="replace"))
            text = render(drawn.numbers, "csv")
            write_whole(folder / f"{name}.csv", text if isinstance(text, bytes) else text.encode(errors="replace"))
            yield folder / f"{name}.{options.formats[0]}"


def unique_name(words: Sequence[str], taken: set[str]) -> str:
    """Return a file name made of words that is valid on every file system and not in `taken`; add it to `taken`.

    >>> unique_name(("a b", "x/y"), set()), unique_name(("A", "b"), {"a-b"})
    ('a_b-x_y', 'A-b-2')
    """
    name = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "_", word).strip("_") or "_" for word in words).lstrip(".")
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    found, number = name, 1
    while found.casefold() in taken:  # some file systems ignore case
        number += 1
        found = f"{name}-{number}"
    taken.add(found.casefold())
    return found


def _figures(selection: Selection, options: FigureOptions) -> Iterator[Callable[[], DrawnFigure | None]]:
    """Yield a function for each figure, in order; the function draws it, or returns None if it has no data."""
    for score in selection.scores:
        yield lambda score=score: _heatmap(selection, score, options.width)  # type: ignore[misc]
    if selection.pair is None:
        return
    for score in selection.scores:
        yield lambda score=score: _profile(selection, score, options.width)  # type: ignore[misc]
    yield lambda: _best_sources(selection, options.width)
    yield lambda: _scatter(selection, options)


def _heatmap(selection: Selection, score: Score, width: float) -> DrawnFigure:
    grids = selection.grids
    wanted = score.pairs if selection.pair is None else [selection.pair]
    pairs = {pair: found for pair in wanted if (found := score.averaged(pair, grids.notes)) is not None}
    figure, layout = draw_heatmap(grids, score, pairs, width)
    return DrawnFigure(
        words=(grids.sweep, "heatmap", *_pair_words(selection), score.label, score.metric),
        figure=figure,
        caption=caption_heatmap(grids, score, pairs, layout),
        numbers=numbers_of_heatmap(grids, score, pairs),
    )


def _profile(selection: Selection, score: Score, width: float) -> DrawnFigure | None:
    grids, pair = selection.grids, selection.pair
    found = score.averaged(pair, grids.notes) if pair else None
    if pair is None or found is None:
        return None
    source, target = (grids.networks[n] for n in pair)
    names = {network.name: n for n, network in enumerate(grids.networks)}
    twin = score.averaged((names.get(f"{source.name}{TWIN}", -1), pair[1]), grids.notes)
    return DrawnFigure(
        words=(grids.sweep, "profile", *_pair_words(selection), score.label, score.metric),
        figure=draw_profile(score, found, twin, source, target, width),
        caption=caption_profile(grids, score, found, twin, source, target),
        numbers=numbers_of_profile(score, found, twin, source, target, chosen_layers(len(target.layers))),
    )


def _best_sources(selection: Selection, width: float) -> DrawnFigure | None:
    grids, pair = selection.grids, selection.pair
    found = find_best_sources(grids, selection.scores, pair) if pair else []
    if pair is None or not found:
        return None
    source, target = (grids.networks[n] for n in pair)
    return DrawnFigure(
        words=(grids.sweep, "best-sources", *_pair_words(selection)),
        figure=draw_best_sources(found, source.name, target.name, width),
        caption=caption_best(grids, found, source, target),
        numbers=numbers_of_best(found),
    )


def _scatter(selection: Selection, options: FigureOptions) -> DrawnFigure | None:
    grids, pair = selection.grids, selection.pair
    scores = axes_of(grids, selection.scores, options.only)
    if pair is None or scores is None:
        return None
    x, y = (score.averaged(pair, grids.notes) for score in scores)
    if x is None or y is None:
        return None
    source, target = (grids.networks[n] for n in pair)
    judged = judge(grids, *scores, pair, x.values_ST.shape)
    told = [word for score in scores for word in (score.label, score.metric)]
    return DrawnFigure(
        words=(grids.sweep, "scatter", *_pair_words(selection), *told),
        figure=draw_scatter(scores, (x, y), judged, target.accuracy, options.width),
        caption=caption_scatter(grids, scores, (x, y), judged, source, target),
        numbers=numbers_of_scatter(scores, (x, y), judged, source, target),
    )


def _pair_words(selection: Selection) -> tuple[str, ...]:
    return tuple(selection.grids.networks[n].name for n in selection.pair or ())
