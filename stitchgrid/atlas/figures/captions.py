"""Captions of figures: what a figure shows and how to read it, for use in a paper."""

from collections.abc import Iterable, Sequence

import numpy as np

from stitchgrid.atlas.figures.best import BestSource
from stitchgrid.atlas.figures.heatmap import LEAST_HATCHED, Pairs
from stitchgrid.atlas.figures.layout import HeatmapLayout
from stitchgrid.atlas.figures.profile import chosen_layers
from stitchgrid.atlas.figures.scatter import MisleadingPairs, is_drawn, thresholds
from stitchgrid.atlas.figures.scores import FAILURES, WAITING, Averaged, Score
from stitchgrid.atlas.figures.style import direction, short
from stitchgrid.atlas.grids import NetworkInfo, SweepGrids
from stitchgrid.catalog.misleading import misleading_rule
from stitchgrid.printable import in_one_line

MOST_NAMES = 12  # most networks that a caption lists


def caption_heatmap(grids: SweepGrids, score: Score, pairs: Pairs, layout: HeatmapLayout) -> str:
    """Return the caption of a heat map."""
    positions = sorted({n for pair in pairs for n in pair})
    networks = [grids.networks[n] for n in positions]
    if len(pairs) == 1:
        [(source, target)] = pairs
        names = [_say(grids.networks[n]) for n in (source, target)]
        shown = f"from layers of {names[0]} (rows) into layers of {names[1]} (columns)"
    else:
        shown = (
            f"for {len(pairs)} ordered pairs of {len(networks)} networks; rows are source layers, columns target layers"
        )
    found = list(pairs.values())
    says = [f"Heat map of {in_one_line(score.name)} {shown}; {direction(score.higher_is_similar)}.", _seeds(score)]
    if score.higher_is_similar is not None:
        says.append("A dot marks the best source of a target layer.")
    if any(np.isnan(one.values_ST).any() for one in found):
        look = "Hatched" if layout.square >= LEAST_HATCHED else "Grey"
        says.append(f"{look} squares have no value{'; a cross marks failures' if _counts(found, FAILURES) else ''}.")
    if len(pairs) > 1 and any(source == target for source, target in pairs):
        says.append("Frames mark comparisons of a network with itself.")
    scale = score.scale
    says.append("The colour scale is logarithmic." if scale.is_log else "")
    if scale.clips_low or scale.clips_high:
        says.append(
            "Values beyond its ends have the colour of the end."
            if scale.is_log
            else "Values beyond the ends of the colour scale have the colour of the end."
        )
    left_out = sum(side.num_left_out for one in layout.places for side in (one.rows, one.columns))
    says.append("Some names are left out for lack of room; layers are in order of execution." if left_out else "")
    return _paragraphs(says, _origin(grids, networks, found))


def caption_profile(
    grids: SweepGrids, score: Score, found: Averaged, twin: Averaged | None, source: NetworkInfo, target: NetworkInfo
) -> str:
    """Return the caption of a profile."""
    layers = chosen_layers(len(target.layers))
    names = ", ".join(in_one_line(target.layers[n].name) for n in layers)
    several = len(score.seeds) > 1
    says = [
        f"Profile of {in_one_line(score.name)}: layers of {_say(source)} with layers of {_say(target)}, over the "
        f"depth of the source layer; {direction(score.higher_is_similar)}.",
        f"Each panel is a target layer: {names}"
        + (f" ({len(layers)} of {len(target.layers)}, evenly by depth)." if len(layers) < len(target.layers) else "."),
        _seeds(score),
    ]
    if score.higher_is_similar is not None:
        says.append("A black dot marks the best source.")
    if not np.isnan(found.low_ST).all():
        says.append("The band is the range of the seeds." if several else "The band is the 95 % interval.")
    if twin is not None:
        says.append("The dashed line is the source's untrained twin.")
    if not np.isnan(found.null_low_ST).all():
        says.append("The grey band reaches from 5 % to 95 % of the draws of shuffled images.")
    return _paragraphs(says, _origin(grids, [source, target], [found] if twin is None else [found, twin]))


def caption_best(grids: SweepGrids, found: Sequence[BestSource], source: NetworkInfo, target: NetworkInfo) -> str:
    """Return the caption of a figure of best sources."""
    labels = list(dict.fromkeys(one.label for one in found))
    says = [
        f"Depth of the layer of {_say(source)} that matches each layer of {_say(target)} best, by {_list(labels)}. The "
        "diagonal is the same depth in both networks."
    ]
    if any(len(one.candidates) > 1 for one in found):
        says.append("Bars span the source layers that are as good as the best, given the intervals.")
    if len(labels) > 1:
        says.append("Matchers are drawn beside each other at each target layer.")
    if len({one.seed for one in found if one.seed is not None}) > 1:
        says.append("Each seed of a trained matcher has a line of its own.")
    verdicts = [one.verdict for one in found]
    told = _list([f"{verdicts.count(word)} {word}" for word in dict.fromkeys(sorted(verdicts, reverse=True))])
    says.append(f"Of {len(found)} answers, {told}.")
    num = len(target.layers) * len(dict.fromkeys((one.label, one.seed) for one in found))
    says.append(f"{num - len(found)} target layers have no answer." if num > len(found) else "")
    return _paragraphs(says, _origin(grids, [source, target], []))


def caption_scatter(
    grids: SweepGrids,
    scores: tuple[Score, Score],
    found: tuple[Averaged, Averaged],
    judged: MisleadingPairs,
    source: NetworkInfo,
    target: NetworkInfo,
) -> str:
    """Return the caption of a scatter."""
    x, y = scores
    num = int(is_drawn(found).sum())
    says = [
        f"Scatter of {in_one_line(y.name)} ({direction(y.higher_is_similar)}) against {in_one_line(x.name)} "
        f"({direction(x.higher_is_similar)}); each dot is one of {num} pairs of a layer of {_say(source)} and a "
        f"layer of {_say(target)}.",
        *(f"{in_one_line(score.name)}: {said[:1].lower()}{said[1:]}" for score in scores if (said := _seeds(score))),
    ]
    if judged.label is not None:
        marked = int(judged.misleading_ST.sum())
        says.append(
            f"Diamonds: layer pairs for which {in_one_line(judged.label)} misleads ({marked}). {misleading_rule()}"
        )
    lines = [(score, value) for score in scores for value in thresholds(score, target.accuracy)]
    if lines:
        told = _list([f"{score.name} {short(value)}" for score, value in lines])
        says.append(f"Dashed lines are thresholds of this rule: {told}.")
    return _paragraphs(says, _origin(grids, [source, target], found))


def _paragraphs(says: Iterable[str], origin: Iterable[str]) -> str:
    return "\n".join(" ".join(filter(None, part)) for part in (says, origin)) + "\n"


def _origin(grids: SweepGrids, networks: Sequence[NetworkInfo], found: Sequence[Averaged]) -> list[str]:
    """Return the sentences that every caption has: sweep, networks, images, cells without a value, version."""
    runs = grids.provenance.get("runs", [])
    versions, precisions = (_list(sorted({str(run[key]) for run in runs})) for key in ("version", "precision"))
    waiting, failed = _counts(found, WAITING), _counts(found, FAILURES)
    undefined, diverged = _counts(found, ("undefined",)), _counts(found, ("diverged",))
    cells = sum(sum(one.num_by_state.values()) for one in found)
    gaps = [
        (waiting, "missing"),
        (failed, "failed"),
        (undefined, "undefined"),
        (diverged, "diverged and left out of means and best sources"),
    ]
    told = [f"{num} {word}" for num, word in gaps if num]
    says = [f"Sweep {in_one_line(grids.sweep)}.", _networks(networks)]
    numbers = [(grids.num_eval, "evaluation"), (grids.num_fit, "fit")]
    images = [f"{' or '.join(f'{n:,}' for n in nums)} {word} images" for nums, word in numbers if nums]
    says.append(f"{_capital(_list(images))}." if images else "")
    if found:
        says.append(f"Of {cells:,} cells, {_list(told)}." if told else f"All {cells:,} cells have a value.")
    if any(network.remarks for network in networks):
        remarks = [f"{_say(one)}: {'; '.join(map(in_one_line, one.remarks))}" for one in networks if one.remarks]
        says.append(f"Note: {'. '.join(remarks[:MOST_NAMES])}.")
    if grids.fold:
        says.append(f"Of every {grids.fold.num_layers} consecutive layers, the last one is shown.")
    says.append(f"stitchgrid {versions}, {precisions}." if runs else "")
    return says


def _networks(networks: Sequence[NetworkInfo]) -> str:
    if len(networks) > MOST_NAMES:
        return f"{len(networks)} networks."
    known = [
        f"{_say(one)}" + ("" if one.accuracy is None else f" (accuracy {short(one.accuracy)})") for one in networks
    ]
    return f"Networks: {_list(list(dict.fromkeys(known)))}."


def _seeds(score: Score) -> str:
    if len(score.seeds) > 1:
        return f"Means over seeds {_list([str(seed) for seed in score.seeds])}."
    return f"Seed {score.seeds[0]}." if score.seeds else ""


def _counts(found: Sequence[Averaged], states: Sequence[str]) -> int:
    return sum(one.num_by_state.get(state, 0) for one in found for state in states)


def _say(network: NetworkInfo) -> str:
    return in_one_line(network.name)


def _capital(text: str) -> str:
    return in_one_line(text[:1].upper() + text[1:])


def _list(words: Sequence[str]) -> str:
    """Return words with commas, and `and` before the last.

    >>> _list(["a", "b", "c"])
    'a, b and c'
    """
    shown = [in_one_line(word) for word in words]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""
