"""Sizes of a heat map in inches: squares that fill the width, names that fit beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from stitchgrid.atlas.figures.style import LEAST, LINE, MARGIN, NORMAL, POINTS, SMALL, fit, thin, width_of
from stitchgrid.atlas.grids import NetworkInfo

GAP = 0.4  # squares between two networks
PAD = 0.12  # inches between two blocks
MOST_SQUARE = 0.3  # inches: few layers need not fill the width
MOST_HEIGHT = 9.0  # inches of a page
NAME_SHARE = 0.26  # of the width of a block, that names of layers take at most
MOST_NAME = 1.3  # inches
FEWEST_LETTERS = 5  # of a network's title; with fewer, networks are named instead of their layers

Networks = Sequence[NetworkInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapSide:
    """Names along one side of a block, in squares from its beginning."""

    starts: tuple[float, ...]  # of each network
    span: float
    places: tuple[float, ...]
    names: tuple[str, ...]
    titles: tuple[str, ...]  # of the networks, empty where these stand among the names
    size: float  # of letters, points
    num_left_out: int  # names

    @property
    def room(self) -> float:
        """How long the longest name is, in inches."""
        return max((width_of(name, self.size) for name in self.names), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapPlace:
    """Where one block stands, in inches from the left and the bottom of the figure."""

    left: float
    bottom: float
    rows: HeatmapSide
    columns: HeatmapSide


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapLayout:
    """A figure of blocks."""

    width: float
    height: float
    square: float  # inches
    places: tuple[HeatmapPlace, ...]


def lay_out(blocks: Sequence[tuple[Networks, Networks]], *, width: float, top: float) -> HeatmapLayout:
    """Return where each block (sources, targets) stands, with squares as large as the width lets them be.

    Args:
        blocks: Networks of the rows and of the columns.
        width: Of the figure, in inches.
        top: Inches that are kept free at the top.
    """
    tried = []
    for across in range(1, len(blocks) + 1):
        first = _try(blocks, across, width, top, NORMAL)
        # Smaller squares have smaller names, which leave more room to the squares.
        tried.append(_try(blocks, across, width, top, min(NORMAL, max(LEAST, first.square * POINTS / LINE))))
    # Squares of one size in as many columns as do not shrink them.
    return max(enumerate(tried), key=lambda item: (round(item[1].square, 3), item[0]))[1]


def _try(
    blocks: Sequence[tuple[Networks, Networks]], across: int, width: float, top: float, size: float
) -> HeatmapLayout:
    spans = [(_span(sources), _span(targets)) for sources, targets in blocks]
    lines = [list(range(start, min(start + across, len(blocks)))) for start in range(0, len(blocks), across)]
    share = (width - 2 * MARGIN - PAD * (across - 1)) / across
    most_name = min(MOST_NAME, NAME_SHARE * share)
    title = NORMAL * LINE / POINTS  # height of a network's title, and of the name of an axis
    # Names take up to `most_name`; what short ones leave goes to the squares.
    names = [
        tuple(min(most_name, _longest([*side, *_titles_as_layers(side)], size)) + title + 0.04 for side in block)
        for block in blocks
    ]
    columns = [range(column, len(blocks), across) for column in range(across)]
    left = [max(names[n][0] for n in column) for column in columns]
    bottom = [max(names[n][1] for n in line) for line in lines]
    widest = [max(spans[n][1] for n in column) for column in columns]
    highest = [max(spans[n][0] for n in line) for line in lines]
    free_width = width - 2 * MARGIN - sum(left) - across * (title + 0.02) - PAD * (across - 1)
    free_height = MOST_HEIGHT - top - sum(bottom) - len(lines) * (title + PAD)
    square = max(min(free_width / sum(widest), free_height / sum(highest), MOST_SQUARE), 1e-3)
    rest = free_width - square * sum(widest)
    height = top + square * sum(highest) + sum(bottom) + len(lines) * title + PAD * (len(lines) - 1) + MARGIN
    places, y = [], height - top
    for number, line in enumerate(lines):
        y -= title
        x = MARGIN + rest / 2
        for column, n in enumerate(line):
            x += left[column]
            sources, targets = blocks[n]
            places.append(
                HeatmapPlace(
                    left=x,
                    bottom=y - spans[n][0] * square,
                    rows=_side(sources, square, left[column] - title, size),
                    columns=_side(targets, square, bottom[number] - title, size),
                )
            )
            x += square * widest[column] + title + 0.02 + PAD
        y -= square * highest[number] + bottom[number] + PAD
    return HeatmapLayout(width=width, height=height, square=square, places=tuple(places))


def _span(networks: Networks) -> float:
    """Return how many squares these networks take side by side, with the gaps between them."""
    return sum(len(network.layers) for network in networks) + GAP * (len(networks) - 1)


def _longest(names: Sequence[NetworkInfo | str], size: float) -> float:
    texts = [one if isinstance(one, str) else layer for one in names for layer in _layers(one)]
    return max((width_of(fit(text, MOST_NAME, size), size) for text in dict.fromkeys(texts)), default=0.0)


def _layers(one: NetworkInfo | str) -> list[str]:
    return [one] if isinstance(one, str) else [layer.name for layer in one.layers]


def _titles_as_layers(networks: Networks) -> list[str]:
    """Return names of networks that may have to stand where layers do."""
    return [network.name for network in networks] if len(networks) > 1 else []


def _side(networks: Networks, square: float, room: float, size: float) -> HeatmapSide:
    """Return the names along one side, with letters of a size."""
    starts = [sum(len(one.layers) + GAP for one in networks[:n]) for n in range(len(networks))]
    apart = size * LINE / POINTS / square  # squares between the middles of two names
    titles = [fit(one.name, (len(one.layers) + GAP / 2) * square, SMALL, bold=True) for one in networks]
    is_cut = any(
        title.startswith("…") and len(title) < FEWEST_LETTERS for title, one in zip(titles, networks, strict=True)
    )
    by_network = len(networks) > 1 and (is_cut or any(len(one.layers) + GAP < apart for one in networks))
    if by_network:
        places = [start + len(one.layers) / 2 for start, one in zip(starts, networks, strict=True)]
        names = [one.name for one in networks]
        titles = [""] * len(networks)
    else:
        places = [start + n + 0.5 for start, one in zip(starts, networks, strict=True) for n in range(len(one.layers))]
        names = [layer.name for one in networks for layer in one.layers]
    kept = thin(places, apart)
    return HeatmapSide(
        starts=tuple(starts),
        span=_span(networks),
        places=tuple(places[n] for n in kept),
        names=tuple(fit(names[n], room, size) for n in kept),
        titles=tuple(titles),
        size=size,
        num_left_out=len(places) - len(kept) + (sum(len(one.layers) for one in networks) if by_network else 0),
    )
