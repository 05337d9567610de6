"""The algebra of axes: what each axis of a tensor stands for, and how operations change it.

Shapes alone do not say what an axis is: a map may be (N,C,H,W) or, in Swin, (N,H,W,C); windows of tokens have four
axes too; and one token more than a grid holds may or may not be a class token. So axes are followed from the images
on (`axis_inference.py`), and an axis that cannot be followed is unknown, never guessed.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One factor of an axis, all of one letter: N images, C features, H rows, W columns, ? unknown.

    An axis of 56 rows in windows of 7 splits into (H, 8, stride 7) and (H, 7, stride 1).
    """

    letter: str
    size: int
    stride: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a tensor: its factors from the slowest to the fastest, none where its size is 1."""

    factors: tuple[Factor, ...] = ()
    num_prefix: int = 0  # entries before them that are made of parameters alone: class and register tokens

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.num_prefix + prod(factor.size for factor in self.factors)

    @property
    def letters(self) -> str:
        """The letters of the factors, each once."""
        return "".join(dict.fromkeys(factor.letter for factor in self.factors))

    @property
    def is_in_order(self) -> bool:
        """Whether the factors of each letter follow one another as they do in an undivided axis."""
        pairs = zip(self.factors, self.factors[1:], strict=False)
        return all(a.letter != b.letter or a.stride == b.stride * b.size for a, b in pairs)

    def is_only(self, letter: str) -> bool:
        """Return whether it holds nothing but one letter, or nothing at all."""
        return self.letters in {letter, ""} and not self.num_prefix


Axes = tuple[Axis, ...]


Windows = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # see `put_back`


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisReading:
    """How one image's activation is read."""

    axes: str  # NCHW | NHWC | NTD | NDT | ND, images first
    images: int = 0  # which axis of the tensor itself is that of the images
    num_prefix: int = 0  # tokens before the grid
    grid: tuple[int, int] | None = None  # height and width
    windows: Windows | None = None  # how its rows are put back in their places, where they are in windows


def fresh(shape: Sequence[int], letters: Iterable[str]) -> Axes:
    """Return undivided axes of these sizes and letters."""
    return tuple(
        Axis(factors=(Factor(letter=letter, size=size),) if size > 1 else ())
        for letter, size in zip(letters, shape, strict=True)
    )


def read(axes: Axes | None) -> AxisReading | None:
    """Return how a tensor with these axes is read, None where it has no rows of features.

    >>> read(fresh((2, 14, 14, 96), "NHWC"))
    AxisReading(axes='NHWC', images=0, num_prefix=0, grid=(14, 14), windows=None)
    >>> read(fresh((17, 2, 96), "HNC")).images
    1
    """
    images = images_axis(axes)
    if not axes or images is None:
        return None
    reading = _images_first((axes[images], *axes[:images], *axes[images + 1 :]))
    return None if reading is None else replace(reading, images=images)


def images_axis(axes: Axes | None) -> int | None:
    """Return which axis is that of the images, None where no axis is theirs alone."""
    having = [k for k, axis in enumerate(axes or ()) if "N" in axis.letters]
    return having[0] if axes and len(having) == 1 and axes[having[0]].is_only("N") else None


def _images_first(axes: Axes) -> AxisReading | None:
    if len(axes) == 2:
        return AxisReading(axes="ND")
    if len(axes) == 4:
        for word in ("NCHW", "NHWC"):
            in_place = all(axis.is_only(letter) for axis, letter in zip(axes, word, strict=True))
            if in_place and all(axes[word.index(letter)].is_in_order for letter in "HW"):
                return AxisReading(axes=word, grid=(axes[word.index("H")].size, axes[word.index("W")].size))
    if len(axes) == 3:
        for word in ("NTD", "NDT"):
            tokens, features = axes[word.index("T")], axes[word.index("D")]
            if features.is_only("C") and "C" not in tokens.letters:
                return AxisReading(axes=word, num_prefix=tokens.num_prefix, grid=_grid(tokens))
    return None


def put_back(axes: Axes | None) -> AxisReading | None:
    """Return how a tensor in windows, or groups of channels, is read as a map (N,H,W,C); None where it cannot be.

    Every factor of its axes must be known. `windows` are the sizes of all factors in their order (-1: images), the
    order in which they make up N, H, W and C, the sizes of these, and those of the tensor's own axes.

    >>> windows = reshaped(fresh((2, 8, 8, 3), "NHWC"), (2, 4, 2, 4, 2, 3))
    >>> put_back(permuted(windows, (0, 1, 3, 2, 4, 5))).windows
    ((-1, 4, 4, 2, 2, 3), (0, 1, 3, 2, 4, 5), (-1, 8, 8, 3), (-1, 4, 4, 2, 2, 3))
    """
    if not axes or any(axis.num_prefix for axis in axes):
        return None
    factors = [factor for axis in axes for factor in axis.factors]
    places = {letter: _from_slowest(factors, letter) for letter in "NHWC"}
    if any(one is None for one in places.values()) or {factor.letter for factor in factors} != set("NHWC"):
        return None
    if len(places["N"] or ()) != 1:
        return None
    order = tuple(place for letter in "NHWC" for place in places[letter] or ())
    split = tuple(-1 if factor.letter == "N" else factor.size for factor in factors)
    height, width, channels = (prod(factors[place].size for place in places[letter] or ()) for letter in "HWC")
    own = tuple(-1 if "N" in axis.letters else axis.size for axis in axes)
    return AxisReading(axes="NHWC", grid=(height, width), windows=(split, order, (-1, height, width, channels), own))


def _from_slowest(factors: Sequence[Factor], letter: str) -> tuple[int, ...] | None:
    """Return the places of a letter's factors from the slowest to the fastest; None where one is missing."""
    places = sorted((k for k, one in enumerate(factors) if one.letter == letter), key=lambda k: -factors[k].stride)
    stride = 1
    for place in reversed(places):
        if factors[place].stride != stride:
            return None
        stride *= factors[place].size
    return tuple(places)


def _grid(tokens: Axis) -> tuple[int, int] | None:
    """Return height and width of the tokens after the prefix, where they are a grid row by row."""
    letters = [factor.letter for factor in tokens.factors]
    in_windows = letters != sorted(letters)
    if not letters or not set(letters) <= {"H", "W"} or in_windows or not tokens.is_in_order:
        return None
    height, width = (prod(f.size for f in tokens.factors if f.letter == letter) for letter in "HW")
    return height, width


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Return axes split and merged to another shape of as many entries; None where a size cuts across a factor.

    >>> windows = reshaped(fresh((2, 3, 8, 8), "NCHW"), (2, 3, 4, 2, 4, 2))
    >>> [axis.letters for axis in windows]
    ['N', 'C', 'H', 'H', 'W', 'W']
    """
    waiting = [part for axis in axes for part in ([axis] if axis.num_prefix else _apart(axis))]
    made = []
    for size in shape:
        parts: list[Axis] = []
        left = size
        while left > 1:
            if not waiting:
                return None
            part = waiting.pop(0)
            if part.size > left:
                halves = _halves(part, left)
                if halves is None:
                    return None
                part, rest = halves
                waiting.insert(0, rest)
            if left % part.size:
                return None
            left //= part.size
            parts.append(part)
        num_prefix = sum(part.num_prefix for part in parts)
        if num_prefix and len(parts) > 1:
            return None
        made.append(Axis(factors=tuple(factor for part in parts for factor in part.factors), num_prefix=num_prefix))
    return None if waiting else tuple(made)


def _apart(axis: Axis) -> list[Axis]:
    return [Axis(factors=(factor,)) for factor in axis.factors]


def _halves(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """Return an axis of one factor in two, the first of `size` entries; None where that does not divide it."""
    if axis.num_prefix or axis.size % size:
        return None
    (factor,) = axis.factors
    minor = factor.size // size
    slow = replace(factor, size=size, stride=factor.stride * minor)
    return Axis(factors=(slow,)), Axis(factors=(replace(factor, size=minor),))


def permuted(axes: Axes, order: Sequence[int]) -> Axes | None:
    """Return axes in another order, None where `order` is no permutation of them."""
    places = [position % len(axes) for position in order]
    return tuple(axes[place] for place in places) if sorted(places) == list(range(len(axes))) else None


def resized(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Return axes of the same letters and other sizes, None where their number changes."""
    return tuple(map(_resize, axes, shape)) if len(axes) == len(shape) else None


def _resize(axis: Axis, size: int) -> Axis:
    if axis.size == size:
        return axis
    letter = axis.letters if len(axis.letters) == 1 and not axis.num_prefix else "?"
    return fresh((size,), letter)[0]


def sliced(axis: Axis, key: slice, size: int) -> Axis:
    """Return what a slice of `size` entries leaves of an axis; tokens before a grid can be left out."""
    first = key.start or 0
    whole = key.step in {None, 1} and key.stop is None
    if axis.num_prefix and whole and 0 <= first <= axis.num_prefix:
        return replace(axis, num_prefix=axis.num_prefix - first)
    return _resize(axis, size)


def scaled(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Return the axes of a map made coarser, or finer, by one factor along height and width; else None."""
    was = read(axes)
    if was is None or was.grid is None or was.images or len(shape) != 4:
        return None
    height, width = was.grid
    new_height, new_width = shape[was.axes.index("H")], shape[was.axes.index("W")]
    coarser, finer = max(1, round(height / new_height)), max(1, round(new_height / height))
    if (-(-height // coarser) * finer, -(-width // coarser) * finer) != (new_height, new_width):
        return None
    return fresh(shape, was.axes)


def coarser(axes: Axes, gone: Collection[int]) -> Axes:
    """Return axes after all entries along some of them were pooled into one: rows in patches leave the grid of patches.

    Where something other than whole patches was pooled, the rows or columns that are left are unknown.

    >>> patches = reshaped(fresh((2, 8, 3), "NHC"), (2, 4, 2, 3))
    >>> coarser(patches, {2})[1]
    Axis(factors=(Factor(letter='H', size=4, stride=1),), num_prefix=0)
    """
    pooled = sorted((factor for place in gone for factor in axes[place].factors), key=lambda one: one.stride)
    patches: dict[str, int] = {}  # letter -> how many of its rows or columns were pooled into one
    for factor in pooled:
        if factor.stride == patches.get(factor.letter, 1):
            patches[factor.letter] = factor.stride * factor.size
    others = {one.letter for one in pooled if one.stride >= patches.get(one.letter, 1)}

    def left(factor: Factor) -> Factor:
        if factor.letter in others:
            return Factor(letter="?", size=factor.size)
        return replace(factor, stride=factor.stride // patches.get(factor.letter, 1))

    return tuple(
        axis if place in gone else replace(axis, factors=tuple(map(left, axis.factors)))
        for place, axis in enumerate(axes)
    )


def joined(axes: Axes, at: int, more: int, *, in_front: bool) -> Axes:
    """Return axes with `more` entries joined to axis `at`: features, or constant tokens in front of a grid."""
    made = list(axes)
    if axes[at].is_only("C"):
        made[at] = fresh((axes[at].size + more,), "C")[0]
    elif in_front:
        made[at] = replace(axes[at], num_prefix=axes[at].num_prefix + more)
    else:
        made[at] = fresh((axes[at].size + more,), "?")[0]
    return tuple(made)
