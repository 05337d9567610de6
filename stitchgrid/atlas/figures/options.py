"""Options of figures: scores, a pair of networks, width, formats; they are checked before anything is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stitchgrid.atlas.figures.scores import Score, find_scores
from stitchgrid.atlas.grids import SweepGrids
from stitchgrid.errors import InputError, nearest

FORMATS = ("pdf", "svg", "png")
WIDTH = 6.75  # inches: two columns of most conferences; one is 3.25
NARROWEST, WIDEST = 1.0, 20.0  # inches


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOptions:
    """Which figures to draw of every sweep, and how.

    Attributes:
        only: Scores: a matcher, `matcher.metric`, or a metric. Empty: the metric by which each matcher ranks layers.
        pair: Source and target network, as `SOURCE,TARGET`. None: all pairs of networks, only in heat maps.
        width: Width of each figure, in inches.
        formats: Formats of each figure, one or more of `FORMATS`.

    Raises:
        InputError: If the width or a format is not valid.
    """

    only: Sequence[str] = ()
    pair: str | None = None
    width: float = WIDTH
    formats: Sequence[str] = ("pdf",)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.width) and NARROWEST <= self.width <= WIDEST):
            raise InputError(
                f"a figure is {NARROWEST:g} to {WIDEST:g} inches wide, got {self.width:g}; one column of a paper is "
                f"3.25, two are 6.75."
            )
        if not self.formats:
            raise InputError(f"a figure needs a format: {', '.join(FORMATS)}.")
        for word in self.formats:
            if word not in FORMATS:
                raise InputError(f"there is no format {word!r} for figures; {nearest(word, FORMATS)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The scores of one sweep to draw, and the pair of networks."""

    grids: SweepGrids
    scores: tuple[Score, ...]
    pair: tuple[int, int] | None  # positions of source and target; None: all networks


def select(sweeps: Sequence[SweepGrids], options: FigureOptions) -> list[Selection]:
    """Return what to draw of each sweep; a sweep without the pair of networks is left out.

    Raises:
        InputError: If no sweep has one of the scores, or the pair of networks.
    """
    kept = list(sweeps)
    pairs: dict[str, tuple[int, int]] = {}
    if options.pair is not None:
        pairs = _find_pair(sweeps, options.pair)
        kept = [grids for grids in sweeps if grids.sweep in pairs]
    scores = {grids.sweep: _choose(grids, options.only) for grids in kept}
    for word in options.only:
        if not any(found.get(word) for found in scores.values()) and kept:
            raise InputError(f"there is no score {word!r}; {nearest(word, _known(kept))}.")
    selections = []
    for grids in kept:
        chosen = list(dict.fromkeys(score for found in scores[grids.sweep].values() for score in found))
        pair = pairs.get(grids.sweep)
        if pair is not None:
            chosen = [score for score in chosen if pair in score.pairs]
        selections.append(Selection(grids=grids, scores=tuple(chosen), pair=pair))
    return selections


def _choose(grids: SweepGrids, only: Sequence[str]) -> dict[str, list[Score]]:
    """Return word -> the scores that it names; without words, "" -> the scores that rank layers."""
    scores = find_scores(grids.choices)
    if not only:
        return {"": [score for score in scores if score.is_ranking]}
    return {word: _named(word, scores) for word in dict.fromkeys(only)}


def _named(word: str, scores: Sequence[Score]) -> list[Score]:
    matchers = [score for score in scores if score.is_ranking and score.matcher == word]
    exact = [score for score in scores if f"{score.matcher}.{score.metric}" == word]
    return matchers or exact or [score for score in scores if score.metric == word]


def _known(sweeps: Sequence[SweepGrids]) -> list[str]:
    choices = [choice for grids in sweeps for choice in grids.choices]
    words = [word for one in choices for word in (one.matcher, f"{one.matcher}.{one.metric}", one.metric)]
    return list(dict.fromkeys(words))


def _find_pair(sweeps: Sequence[SweepGrids], text: str) -> dict[str, tuple[int, int]]:
    """Return sweep -> positions of source and target; names of networks may contain commas.

    Raises:
        InputError: If no sweep compares two networks of these names in this order.
    """
    splits = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == ","]
    if not splits:
        raise InputError(f"a pair is SOURCE,TARGET, got {text!r}; name two networks with a comma between them.")
    compared: dict[str, tuple[int, int]] = {}
    words: set[str] = set()
    for grids in sweeps:
        names = [network.name for network in grids.networks]
        pairs = {(names[source], names[target]): (source, target) for source, target in compared_pairs(grids)}
        words |= {f"{source},{target}" for source, target in pairs}
        if found := [pairs[split] for split in splits if split in pairs]:
            compared[grids.sweep] = found[0]
    if compared:
        return compared
    known = {network.name for grids in sweeps for network in grids.networks}
    if any(source in known and target in known for source, target in splits):
        raise InputError(f"{text!r}: no sweep compares these two networks in this order; {nearest(text, words)}.")
    source, target = next((split for split in splits if known & set(split)), splits[0])
    unknown = source if source not in known else target
    raise InputError(f"there is no network {unknown!r}; {nearest(unknown, known)}.")


def compared_pairs(grids: SweepGrids) -> list[tuple[int, int]]:
    """Return the ordered pairs of networks that any choice shows."""
    return list(dict.fromkeys((panel.source, panel.target) for choice in grids.choices for panel in choice.panels))
