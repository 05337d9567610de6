"""Second moments of layer pairs: which layers are read side by side, and which are multiplied with each other.

X are the features of all sources of a frame side by side, Y those of all targets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

from stitchgrid.matchers.layouts import Layout, keeps_means
from stitchgrid.matchers.params import Rules
from stitchgrid.statistics.base import DRAWN, EXACT, NUMBER_BYTES, LayerKey, Statistic
from stitchgrid.statistics.rows import Geometry, NumberedSpace, RowSpace

SideName = Literal["source", "target"]
NO_AXES: frozenset[SideName] = frozenset()
# Features that are multiplied at a time with those before them, where half of all products are mirror images.
BLOCK = 128
READING = 2.0  # operations in float64 on each number of a row that is read
RESAMPLING = 16.0  # and on each that is resampled to other rows: interpolation reads four, and its transpose more


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageGroup:
    """A group of the images of a split: those whose position modulo `of` is `number`."""

    number: int
    of: int


ALL = ImageGroup(number=0, of=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """Layers of one layout, read side by side."""

    layout: Layout
    pools: bool
    keys: tuple[LayerKey, ...]
    widths: tuple[int, ...]
    width: int  # of all of them
    squares: int  # number of products of each layer with itself
    needs_sums: bool  # False where its rows are only resampled to others


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cross:
    """A frame of sources against a frame of targets, in one row space."""

    space: RowSpace
    source: Frame
    target: Frame
    axes: frozenset[SideName]  # the sides whose principal axes are computed

    @property
    def is_laid(self) -> bool:
        """Whether the source's rows are resampled to the target's; they then have sums of their own."""
        return self.space.rules is not None

    @property
    def is_mirrored(self) -> bool:
        """Whether every product has a mirror image; the products of each layer with itself are then among them."""
        return self.source is self.target and not self.is_laid

    @property
    def brings_back(self) -> bool:
        """Whether the target's rows are resampled to the source's instead, so that a small source is not enlarged."""
        rules, source, target = self.space.rules, self.space.source, self.space.target
        return rules is not None and source.num_rows < target.num_rows and keeps_means(target, rules)

    @property
    def num_rows(self) -> int:
        """Rows of an image that are multiplied."""
        return self.space.source.num_rows if self.brings_back else self.space.target.num_rows

    @property
    def num_products(self) -> int:
        """Numbers in the products of all sources with all targets."""
        return self.source.width * self.target.width

    @property
    def blocks(self) -> list[slice]:
        """Blocks of whole layers' features: each is multiplied with itself and with those before it at a time."""
        return mirrored_blocks(self.source.widths)

    @property
    def row_flops(self) -> float:
        """Operations on one row."""
        if not self.is_mirrored:
            return 2.0 * self.num_products
        multiplied: list[int] = [(block.stop - block.start) * block.stop for block in self.blocks]
        return 2.0 * sum(multiplied)


def mirrored_blocks(widths: Sequence[int]) -> list[slice]:
    """Return the features of layers that lie side by side in blocks of whole layers, of `BLOCK` features or more.

    >>> mirrored_blocks([100, 100, 200])
    [slice(0, 200, None), slice(200, 400, None)]
    """
    blocks: list[slice] = []
    for start, stop in pairwise(accumulate(widths, initial=0)):
        if blocks and blocks[-1].stop - blocks[-1].start < BLOCK:
            blocks[-1] = slice(blocks[-1].start, stop)
        else:
            blocks.append(slice(start, stop))
    return blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Products:
    """Frames and crosses of all layer pairs that were asked for."""

    frames: tuple[Frame, ...]
    crosses: tuple[Cross, ...]

    @cached_property
    def layers(self) -> frozenset[LayerKey]:
        """The layers that are read."""
        return frozenset(key for frame in self.frames for key in frame.keys)

    @cached_property
    def pair_flops(self) -> float:
        """Operations in float64 on one image's rows, for the products of sources with targets."""
        return sum(one.num_rows * one.row_flops for one in self.crosses)

    @cached_property
    def own_flops(self) -> float:
        """Operations in float64 on one image's rows that depend on one layer: reading, resampling, own products."""
        mirrored = {id(cross.source) for cross in self.crosses if cross.is_mirrored}
        total = 0.0
        for frame in self.frames:
            own = 2.0 * frame.squares * (frame.needs_sums and id(frame) not in mirrored)
            total += frame.layout.num_rows * (READING * frame.width + own)
        for cross in self.crosses:
            if cross.is_laid:
                moved = cross.source.width + cross.target.width * cross.brings_back
                total += RESAMPLING * cross.space.target.num_rows * moved + 2.0 * cross.num_rows * cross.source.squares
        return total

    @cached_property
    def bytes_per_image(self) -> int:
        """Bytes of an image's rows in float64, with those of one resampled frame."""
        read = sum(frame.layout.num_rows * frame.width for frame in self.frames)
        laid = (cross.space.target.num_rows * cross.source.width for cross in self.crosses)
        return NUMBER_BYTES * (read + max(laid, default=0))

    @cached_property
    def num_products(self) -> int:
        """Numbers in the products of sources with targets."""
        return sum(cross.num_products for cross in self.crosses)

    @cached_property
    def num_own(self) -> int:
        """Numbers in the products of layers with themselves that are stored separately."""
        mirrored = {id(cross.source) for cross in self.crosses if cross.is_mirrored}
        of_frames = sum(one.squares for one in self.frames if one.needs_sums and id(one) not in mirrored)
        return of_frames + sum(cross.source.squares for cross in self.crosses if cross.is_laid)

    @cached_property
    def num_scatter(self) -> int:
        """Numbers in the centred scatter matrices of all layers."""
        of_frames = sum(one.squares for one in self.frames if one.needs_sums)
        return of_frames + sum(cross.source.squares for cross in self.crosses if cross.is_laid)

    @cached_property
    def _widths_of_axes(self) -> list[int]:
        """Widths of all layers whose principal axes are computed, in every row space that asks for them."""
        own: dict[int, Frame] = {}
        laid: list[Frame] = []
        for cross in self.crosses:
            if "target" in cross.axes:
                own[id(cross.target)] = cross.target
            if "source" in cross.axes and cross.is_laid:
                laid.append(cross.source)
            elif "source" in cross.axes:
                own[id(cross.source)] = cross.source
        return [width for frame in (*own.values(), *laid) for width in frame.widths]

    @cached_property
    def num_axes(self) -> int:
        """Numbers in the principal axes of all layers whose axes are computed."""
        return sum(width**2 for width in self._widths_of_axes)

    @property
    def num_axes_cubed(self) -> int:
        """Cubes of the sides of the matrices that are decomposed for these axes."""
        return sum(width**3 for width in self._widths_of_axes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments(Statistic):
    """Moments over the first images of a split, or over a group of them."""

    products: Products
    group: ImageGroup = ALL
    #: Whether other moments are computed from these; then no principal axes are computed for these themselves.
    is_part: bool = False

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers whose activations are read."""
        return self.products.layers

    def flops(self) -> float:
        """Return the cost of all products, in float64, on whichever side has fewer rows."""
        return EXACT / self.group.of * self.num_images * (self.products.pair_flops + self.products.own_flops)

    def shared_flops(self) -> float:
        """Return the cost of what depends on one layer alone."""
        return EXACT / self.group.of * self.num_images * self.products.own_flops

    def held_bytes(self) -> int:
        """Return the size of all sums, of the centred scatter matrices, and of the axes found of these."""
        found = self.products
        axes = 0 if self.is_part else found.num_axes
        return NUMBER_BYTES * (found.num_products + found.num_own + found.num_scatter + axes)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedMoments(Statistic):
    """Moments of groups of images, of all images together, and of all images without each group."""

    products: Products
    num_groups: int

    @property
    def parts(self) -> tuple[Moments, ...]:
        """The moments of each group."""
        groups = (ImageGroup(number=number, of=self.num_groups) for number in range(self.num_groups))
        return tuple(
            Moments(num_images=self.num_images, products=self.products, group=group, is_part=True) for group in groups
        )

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers whose activations are read."""
        return self.products.layers

    def flops(self) -> float:
        """Return the cost of all products: each image belongs to one group."""
        return sum(part.flops() for part in self.parts)

    def shared_flops(self) -> float:
        """Return the cost of what depends on one layer alone."""
        return sum(part.shared_flops() for part in self.parts)

    def held_bytes(self) -> int:
        """Return the size of the groups' moments, of those of all images, and of layers without each group."""
        found = self.products
        whole = found.num_products + found.num_scatter + found.num_axes
        rests = self.num_groups * (found.num_scatter + found.num_axes)
        return sum(part.held_bytes() for part in self.parts) + NUMBER_BYTES * (whole + rests)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShuffledMoments(Statistic):
    """Products of layer pairs with the source's images shuffled, in some draws."""

    products: Products
    num_draws: int

    @property
    def layers(self) -> frozenset[LayerKey]:
        """The layers whose activations are read."""
        return self.products.layers

    def flops(self) -> float:
        """Return the cost of the products of every draw."""
        drawn = sum(2.0 * cross.num_rows * cross.num_products for cross in self.products.crosses)
        return EXACT * DRAWN * self.num_draws * self.num_images * drawn

    def held_bytes(self) -> int:
        """Return the size of the products of every draw."""
        return NUMBER_BYTES * self.num_draws * self.products.num_products


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsAsked:
    """Layer pairs whose moments are asked for: all sources with all targets."""

    sources: tuple[LayerKey, ...]
    targets: tuple[LayerKey, ...]
    rules: Rules | None  # of a stitcher; None: rows are those of an index
    axes: frozenset[SideName] = NO_AXES  # the sides whose principal axes are asked for


def products_of(geometry: Geometry, asked: Iterable[PairsAsked]) -> Products:
    """Return the frames and crosses from which the moments of some layer pairs are computed.

    All sources of one layout are read side by side, and so are all targets; in each row space, all sources are
    multiplied with all targets.
    """
    sources: dict[int, set[LayerKey]] = {}
    targets: dict[int, set[LayerKey]] = {}
    spaces: dict[int, tuple[NumberedSpace, frozenset[SideName]]] = {}
    for some in asked:
        alike_targets = geometry.alike(some.targets)
        for source_layer, source_keys in geometry.alike(some.sources):
            for target_layer, target_keys in alike_targets:
                space = geometry.space(source_layer, target_layer, some.rules)
                known = spaces.get(space.number)
                spaces[space.number] = space, some.axes if known is None else known[1] | some.axes
                sources.setdefault(space.source, set()).update(source_keys)
                targets.setdefault(space.target, set()).update(target_keys)
    frames = _Frames(geometry)
    sides = [
        (
            frames.note(one.target, one.space.target, one.space.pools, targets[one.target], needs_sums=True),
            frames.note(
                one.source, one.space.source, one.space.pools, sources[one.source], needs_sums=one.space.rules is None
            ),
        )
        for one, _ in spaces.values()
    ]
    crosses = tuple(
        Cross(space=one.space, source=frames.found[source], target=frames.found[target], axes=axes)
        for (one, axes), (target, source) in zip(spaces.values(), sides, strict=True)
    )
    return Products(frames=tuple(frames.found.values()), crosses=crosses)


FrameKey = tuple[int, frozenset[LayerKey]]  # (number of what layers are read as, the layers)


class _Frames:
    """Frames by what they read: sources and targets that are the same layers are read once."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry
        self.found: dict[FrameKey, Frame] = {}

    def note(self, number: int, layout: Layout, pools: bool, keys: set[LayerKey], *, needs_sums: bool) -> FrameKey:
        what = number, frozenset(keys)
        known = self.found.get(what)
        if known is None:
            ordered = tuple(sorted(keys))
            widths = tuple(self.geometry.width(key) for key in ordered)
            self.found[what] = Frame(
                layout=layout,
                pools=pools,
                keys=ordered,
                widths=widths,
                width=sum(widths),
                squares=sum(width**2 for width in widths),
                needs_sums=needs_sums,
            )
        elif needs_sums and not known.needs_sums:
            self.found[what] = replace(known, needs_sums=True)
        return what
