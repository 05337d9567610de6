"""The layout of heat maps in inches: squares that fill the width, and names that fit beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from stitchgrid.atlas.figures.style import LEAST, LINE, MARGIN, NORMAL, POINTS, SMALL, fit, thin, width_of
from stitchgrid.atlas.grids import NetworkInfo

GAP = 0.4  # squares between two networks
PAD = 0.12  # inches between two blocks
MOST_SQUARE = 0.3  # inches: heat maps of few layers do not fill the width
MOST_HEIGHT = 9.0  # inches of a page
NAME_SHARE = 0.26  # largest share of a block's width for names of layers
MOST_NAME = 1.3  # inches of the longest name
FEWEST_LETTERS = 5  # fewest letters of a cut title; with fewer, networks are named instead of their layers

Networks = Sequence[NetworkInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapSide:
    """Names along one side of a block, in squares from its beginning."""

    starts: tuple[float, ...]  # where each network begins
    span: float  # length of the side
    places: tuple[float, ...]  # the middle of each name
    names: tuple[str, ...]
    titles: tuple[str, ...]  # names of the networks; "" if `names` are those of networks
    size: float  # size of letters, in points
    num_left_out: int  # names that are left out

    @property
    def room(self) -> float:
        """Length of the longest name, in inches."""
        return max((width_of(name, self.size) for name in self.names), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapPlace:
    """The position of one block, in inches from the left and the bottom of the figure."""

    left: float
    bottom: float
    rows: HeatmapSide
    columns: HeatmapSide


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapLayout:
    """The layout of a figure that consists of blocks, in inches."""

    width: float
    height: float
    square: float  # side of a square
    places: tuple[HeatmapPlace, ...]


def lay_out(blocks: Sequence[tuple[Networks, Networks]], *, width: float, top: float) -> HeatmapLayout:
    """Return the layout of blocks, with squares as large as the width allows.

    Args:
        blocks: For each block, the networks of its rows (sources) and of its columns (targets).
        width: Width of the figure, in inches.
        top: Inches that stay free at the top.
    """
    tried = []
    for across in range(1, len(blocks) + 1):
        first = _try(blocks, across, width, top, NORMAL)
        # Small squares need small letters, which in turn leave more room for the squares.
        tried.append(_try(blocks, across, width, top, min(NORMAL, max(LEAST, first.square * POINTS / LINE))))
    # The largest squares win; among equal sizes, the layout with most blocks side by side.
    return max(enumerate(tried), key=lambda item: (round(item[1].square, 3), item[0]))[1]


def _try(
    blocks: Sequence[tuple[Networks, Networks]], across: int, width: float, top: float, size: float
) -> HeatmapLayout:
    spans = [(_span(sources), _span(targets)) for sources, targets in blocks]
    lines = [list(range(start, min(start + across, len(blocks)))) for start in range(0, len(blocks), across)]
    share = (width - 2 * MARGIN - PAD * (across - 1)) / across
    most_name = min(MOST_NAME, NAME_SHARE * share)
    title = NORMAL * LINE / POINTS  # height of a network's title, and of the name of an axis
    # Names take up to `most_name`; room that short names do not need goes to the squares.
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
    """Return the length, in squares, of these networks side by side, with gaps."""
    return sum(len(network.layers) for network in networks) + GAP * (len(networks) - 1)


def _longest(names: Sequence[NetworkInfo | str], size: float) -> float:
    texts = [one if isinstance(one, str) else layer for one in names for layer in _layers(one)]
    return max((width_of(fit(text, MOST_NAME, size), size) for text in dict.fromkeys(texts)), default=0.0)


def _layers(one: NetworkInfo | str) -> list[str]:
    return [one] if isinstance(one, str) else [layer.name for layer in one.layers]


def _titles_as_layers(networks: Networks) -> list[str]:
    """Return names of networks that may be written in place of names of layers."""
    return [network.name for network in networks] if len(networks) > 1 else []


def _side(networks: Networks, square: float, room: float, size: float) -> HeatmapSide:
    """Return the names along one side, with letters of `size` points."""
    starts = [sum(len(one.layers) + GAP for one in networks[:n]) for n in range(len(networks))]
    apart = size * LINE / POINTS / square  # least distance, in squares, between the middles of two names
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
