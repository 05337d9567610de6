"""The style of all figures: fonts, sizes in print, colours, text that fits its room; files are reproducible."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator

from stitchgrid.atlas.scales import Scale
from stitchgrid.printable import in_one_line

POINTS = 72.0  # in one inch
NORMAL, SMALL, LEAST = 7.0, 6.0, 5.0  # points: sizes of letters
LINE = 1.25  # height of a line of text, as a multiple of the size of its letters
DPI = 300  # of PNG
PICTURE_DPI = 600  # of images within PDF and SVG
MARGIN = 0.04  # inches around everything
LARGEST = 1e30  # largest value that lines and dots show: larger ones would hide all others
INK, SOFT, RULE = "#1c1d20", "#66676d", "#d6d5d0"
ACCENT = "#a3195b"  # failures and misleading claims, as on the page
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00", "#7f7f7f")  # as on the page
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
RC: dict[str, Any] = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "stitchgrid",
    "font.family": "DejaVu Sans",
    "font.size": NORMAL,
    "axes.labelsize": NORMAL,
    "axes.titlesize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "hatch.linewidth": 0.4,
    "lines.linewidth": 1.0,
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
    "text.parse_math": False,
    "text.usetex": False,
}
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@contextmanager
def drawing() -> Iterator[None]:
    """Use this style within the block, whatever the user's settings of matplotlib are."""
    with mpl.style.context(["default", RC]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def save(figure: Figure, format: str) -> bytes:
    """Return the bytes of a figure in one of `FORMATS`, in its own size."""
    drawn = BytesIO()
    figure.savefig(drawn, format=format, dpi=DPI if format == "png" else PICTURE_DPI, metadata=METADATA[format])
    return drawn.getvalue()


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a position in inches and return them."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width of a text, in inches."""
    return _units(text, bold) * size / POINTS


@lru_cache(maxsize=20_000)
def _units(text: str, bold: bool) -> float:
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=100)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 100


def fit(name: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Return a name in one line of at most `inches`; a longer name loses its start, since names differ at the end."""
    text = in_one_line(name)
    if width_of(text, size, bold=bold) <= inches:
        return text
    longest = max(1, int(inches * POINTS / size * 4))  # no four letters are narrower than one size
    text = text[-longest:]
    while text and width_of(f"…{text}", size, bold=bold) > inches:
        text = text[1:]
    return f"…{text}"


def thin(places: list[float], apart: float) -> list[int]:
    """Return indices of some of the increasing `places`, such that no two chosen places are nearer than `apart`.

    >>> thin([0.5, 1.5, 2.5, 3.5, 4.5], 2.0)
    [0, 2, 4]
    """
    kept: list[int] = []
    for number, at in enumerate(places):
        if not kept or at - places[kept[-1]] >= apart - 1e-9:
            kept.append(number)
    return kept


def short(value: float) -> str:
    """Return a number as text for axes: four digits, with a proper minus sign."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def ticks(scale: Scale, most: int = 5) -> list[float]:
    """Return round values on a scale."""
    found: list[float] = []
    if scale.is_log:
        powers = range(int(np.floor(np.log10(scale.low))), int(np.ceil(np.log10(scale.high))) + 1)
        for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            found = [factor * 10.0**power for power in powers for factor in factors]
            found = [value for value in found if scale.low <= value <= scale.high]
            if len(found) <= most:
                break
        found = found[:: -(-len(found) // most) or 1]
    if len(found) < 2:
        locator = MaxNLocator(nbins=most - 1, steps=[1, 2, 2.5, 5, 10])
        found = [float(value) for value in locator.tick_values(scale.low, scale.high)]
    slack = 1e-9 * (scale.high - scale.low)
    return [value for value in found if scale.low - slack <= value <= scale.high + slack]


def direction(higher_is_similar: bool | None) -> str:
    """Return the direction of a metric in words for a caption."""
    return {True: "higher is more similar", False: "lower is more similar", None: "neither end is more similar"}[
        higher_is_similar
    ]
