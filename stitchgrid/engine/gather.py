"""What is gathered while images pass: second moments per layer pair, Gram matrices per layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from stitchgrid.engine.laying import Laying, laying
from stitchgrid.engine.workspace import Batch, LayerKey, Workspace
from stitchgrid.matchers.alignment import (
    DEFAULT_RULES,
    Layout,
    index_shaping,
    is_identity,
    layout_of,
    layouts_of,
    pooled,
    rows_of,
)
from stitchgrid.matchers.gram import Gram, centred_grams, spreads
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.matchers.params import Rules
from stitchgrid.moments import CrossSums, PairMoments, RowSums, find_axes, find_finite
from stitchgrid.records import Layer

K = TypeVar("K")

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # of float64 rows of layers multiplied at a time
POOLED = Layout(num_prefix=0, grid=None)  # the rows of a vector: one an image


def chunk_bytes(device: torch.device) -> int:
    """Return the bytes of float64 rows that are multiplied at a time, unless a single image has more."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Every so many images of a split: those whose position, modulo `of`, is `number`."""

    number: int
    of: int


ALL = Group(number=0, of=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpace:
    """The rows in which two layers are compared: what each of them is read as, and what is done to the source's."""

    source: Layout
    target: Layout
    pools: bool = False  # both are read as one pooled row an image
    rules: Rules | None = None  # by which the source's rows are laid on the target's; None: they are compared as is


def index_space(source: Layer, target: Layer) -> RowSpace:
    """Return the rows in which CCA and Procrustes compare two layers."""
    if index_shaping(source, target) == "pooled":
        return RowSpace(source=POOLED, target=POOLED, pools=True)
    return RowSpace(source=layout_of(source), target=layout_of(target))


def stitch_space(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> RowSpace:
    """Return the rows between which a stitcher maps: the target's, and the source's laid on them."""
    ours, theirs = layouts_of(source, target)
    is_laid = not is_identity(ours, theirs, rules)
    return RowSpace(source=ours, target=theirs, rules=rules if is_laid else None)


@dataclass(kw_only=True, eq=False)
class Frame:
    """Layers of one layout, read side by side."""

    layout: Layout
    pools: bool
    keys: list[LayerKey]
    sums: RowSums
    needs_sums: bool = False  # not where its rows are only laid on others

    def read(self, work: Workspace, activations: Mapping[LayerKey, Tensor], part: slice | Tensor) -> Tensor:
        """Return the rows of some images, (N, P, X), about their pivot."""
        layers = [(activations[key][part], work.layer(key)) for key in self.keys]
        if self.pools:
            return self.sums.centre([pooled(a, layer).unsqueeze(1) for a, layer in layers])
        return self.sums.centre([rows_of(a, layer) for a, layer in layers])


@dataclass(kw_only=True)
class Cross:
    """A frame of sources against a frame of targets, in one row space."""

    source: Frame
    target: Frame
    laying: Laying | None  # None: rows are compared as they are
    laid: RowSums  # of the sources as the targets meet them
    products: CrossSums = field(init=False)

    def __post_init__(self) -> None:
        self.products = CrossSums(self.laid, self.target.sums)

    def add(self, x_NPX: Tensor, y_NQY: Tensor) -> None:
        """Add the rows of a few images, about their pivots."""
        rows_x = self.source_rows(x_NPX)
        self.products.add(rows_x, self.target_rows(y_NQY))
        if self.laying is not None and self._brings_back:
            partners_NPX = self.laying.there_and_back(x_NPX)
            self.laid.add(x_NPX, partners=partners_NPX, num_rows=y_NQY.shape[0] * y_NQY.shape[1])
        elif self.laying is not None:
            self.laid.add(rows_x)

    @property
    def _brings_back(self) -> bool:
        """Whether the target's rows are brought to the source's: a small source is never blown up."""
        return self.laying is not None and self.laying.enlarges and self.laying.keeps_means

    def source_rows(self, x_NPX: Tensor) -> Tensor:
        """Return a source's rows, about their pivot, as they are multiplied."""
        if self.laying is None:
            return x_NPX
        self.laid.pivot_X = self.source.sums.pivot_X
        if self._brings_back:
            return x_NPX
        pivot_X = 0.0 if self.laying.keeps_means else self.laid.pivot_X
        return self.laying.there(x_NPX + pivot_X) - pivot_X

    def target_rows(self, y_NQY: Tensor) -> Tensor:
        """Return a target's rows, about their pivot, as they are multiplied."""
        return self.laying.back(y_NQY) if self.laying is not None and self._brings_back else y_NQY


class MomentGatherer:
    """Second moments of all layer pairs that were asked for, over the first images of a split, or a group of them."""

    def __init__(
        self,
        work: Workspace,
        pairs: Iterable[tuple[RowSpace, LayerKey, LayerKey]],
        *,
        num_images: int,
        group: Group = ALL,
    ):
        self.work, self.num_images, self.group = work, num_images, group
        sources: dict[tuple[Layout, bool], set[LayerKey]] = {}
        targets: dict[tuple[Layout, bool], set[LayerKey]] = {}
        spaces: dict[RowSpace, None] = {}
        for space, source, target in pairs:
            spaces[space] = None
            sources.setdefault((space.source, space.pools), set()).add(source)
            targets.setdefault((space.target, space.pools), set()).add(target)
        self.frames: list[Frame] = []
        self.crosses = {
            space: self._cross(
                space,
                self._frame(space.source, space.pools, sorted(sources[space.source, space.pools])),
                self._frame(space.target, space.pools, sorted(targets[space.target, space.pools])),
            )
            for space in spaces
        }

    def _frame(self, layout: Layout, pools: bool, keys: list[LayerKey]) -> Frame:
        for frame in self.frames:
            if (frame.layout, frame.pools, frame.keys) == (layout, pools, keys):
                return frame
        self.frames.append(Frame(layout=layout, pools=pools, keys=keys, sums=self._sums(keys)))
        return self.frames[-1]

    def _sums(self, keys: Sequence[LayerKey]) -> RowSums:
        return RowSums([self.work.layer(key).width for key in keys], device=self.work.device)

    def _cross(self, space: RowSpace, source: Frame, target: Frame) -> Cross:
        target.needs_sums = True
        if space.rules is None:
            source.needs_sums = True
            return Cross(source=source, target=target, laying=None, laid=source.sums)
        between = laying(space.source, space.target, space.rules, self.work.device)
        return Cross(source=source, target=target, laying=between, laid=self._sums(source.keys))

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch, a few images at a time so that memory stays bounded."""
        count = batch.count_below(self.num_images)
        step = self.group.of * max(1, self.work.share(chunk_bytes(self.work.device)) // self.bytes_per_image())
        for start in range((self.group.number - batch.start) % self.group.of, count, step):
            self._add(batch, slice(start, min(start + step, count), self.group.of))

    @property
    def layers(self) -> list[LayerKey]:
        """The layers looked at."""
        return sorted({key for frame in self.frames for key in frame.keys})

    def bytes_per_image(self) -> int:
        """Return the bytes of an image's rows in float64."""
        frames = sum(frame.layout.num_rows * len(frame.sums.total_X) for frame in self.frames)
        laid = (cross.target.layout.num_rows * len(cross.laid.total_X) for cross in self.crosses.values())
        return 8 * (frames + max(laid, default=0))

    def _add(self, batch: Batch, part: slice) -> None:
        rows = {frame: frame.read(self.work, batch.activations, part) for frame in self.frames}
        for cross in self.crosses.values():
            cross.add(rows[cross.source], rows[cross.target])
        for frame in self.frames:
            if frame.needs_sums:
                frame.sums.add(rows[frame])

    def find_finite(self) -> None:
        """Find out of which layers the activations were finite, all together."""
        find_finite([*(frame.sums for frame in self.frames if frame.needs_sums), *self._laid])

    def find_axes(self) -> None:
        """Find the principal axes of all sources together, as the targets meet them."""
        self.find_finite()
        find_axes(side for sums in self._laid for side in sums.finite_sides())

    @property
    def _laid(self) -> list[RowSums]:
        return [cross.laid for cross in self.crosses.values()]

    def pair(self, space: RowSpace, source: LayerKey, target: LayerKey) -> PairMoments:
        """Return the moments of one layer pair.

        Raises:
            ValueError: If no image was taken, or an activation was infinite or NaN.
        """
        cross = self.crosses[space]
        return cross.products.pair(cross.source.keys.index(source), cross.target.keys.index(target))


def gatherers_by_count(
    work: Workspace, wanted: Iterable[tuple[int, RowSpace, LayerKey, LayerKey]], group: Group = ALL
) -> dict[int, MomentGatherer]:
    """Return a gatherer for every number of images among the (number, row space, source, target) wanted."""
    found = by_count(wanted)
    return {count: MomentGatherer(work, some, num_images=count, group=group) for count, some in found.items()}


def by_count(
    wanted: Iterable[tuple[int, RowSpace, LayerKey, LayerKey]],
) -> dict[int, list[tuple[RowSpace, LayerKey, LayerKey]]]:
    """Return the (row space, source, target) of each number of images."""
    pairs: dict[int, list[tuple[RowSpace, LayerKey, LayerKey]]] = {}
    for count, space, source, target in wanted:
        pairs.setdefault(count, []).append((space, source, target))
    return pairs


GramKey = tuple[LayerKey, int | None]  # a layer, and the rank to which it is reduced
Ranks = Mapping[int | None, Reduction | None]  # of a layer: rank -> its projection, None for the layer as it is


class GramGatherer:
    """Centred n x n Gram matrices, one per layer and rank, over the first n images of a split."""

    def __init__(self, work: Workspace, wanted: Mapping[LayerKey, Ranks], *, num_images: int, reads_rows: bool = False):
        self.work, self.wanted, self.num_images, self.reads_rows = work, wanted, num_images, reads_rows
        self.rows: dict[LayerKey, list[Tensor]] = {}  # (n, features) of each batch that has passed
        self.grams: dict[GramKey, Gram] = {}

    @property
    def layers(self) -> list[LayerKey]:
        """The layers looked at."""
        return list(self.wanted)

    def take(self, batch: Batch) -> None:
        """Keep the activations of the images that belong to the sample; the last of them completes the matrices.

        Features are kept in the order in which they lie in memory, which products of all of them do not know.
        """
        count = batch.count_below(self.num_images)
        if not count:
            return
        for key in self.wanted:
            taken_NP = rows_of(batch.activations[key][:count], self.work.layer(key)).flatten(1)
            self.rows.setdefault(key, []).append(taken_NP.float())
        if batch.start + count == self.num_images:
            read = {
                (key, rank): partial(self._reduced, key, reduction)
                for key, ranks in self.wanted.items()
                for rank, reduction in ranks.items()
            }
            for (key, rank), centred_NN in centred_grams(read).items():
                told = spreads(self._parts(key, self.wanted[key][rank])) if self.reads_rows else None
                self.grams[key, rank] = Gram(
                    centred_NN=centred_NN,
                    num_features=self.rows[key][0].shape[1],
                    mean_N=told[0] if told else None,
                    spread_N=told[1] if told else None,
                )
            self.rows.clear()

    def _reduced(self, key: LayerKey, reduction: Reduction | None) -> list[Tensor]:
        """Return the rows' coordinates in the axes kept, of which products are those of the projected rows."""
        parts, width = self.rows[key], self.work.layer(key).width
        if reduction is None:
            return parts
        return [reduction.coordinates(part_NP.view(len(part_NP), -1, width)).flatten(1) for part_NP in parts]

    def _parts(self, key: LayerKey, reduction: Reduction | None) -> Iterator[Tensor]:
        """Yield the rows of a few images at a time, projected where the source is of low rank: (n, features)."""
        width = self.work.layer(key).width
        for part_NP in self.rows[key]:
            if reduction is None:
                yield part_NP
            else:
                yield reduction(part_NP.view(len(part_NP), -1, width)).flatten(1)


def are_finite(grams: Mapping[K, Gram]) -> set[K]:
    """Return the keys of Gram matrices of finite activations, read from the device in one transfer."""
    traces = [gram.centred_NN.trace() for gram in grams.values()]
    finite = torch.stack(traces).isfinite().tolist() if traces else []
    return {key for key, is_finite in zip(grams, finite, strict=True) if is_finite}


def in_groups(items: Iterable[K], size: Callable[[K], int], *, budget: int) -> list[list[K]]:
    """Return the items in groups whose sizes together keep to the budget, or that stand alone."""
    groups: list[list[K]] = []
    free = -1
    for item in items:
        if size(item) > free:
            groups.append([])
            free = budget
        groups[-1].append(item)
        free -= size(item)
    return groups
