"""The rows in which two layers are compared, and layers with the same rows."""

from dataclasses import dataclass
from math import prod

from stitchgrid.matchers.layouts import DEFAULT_RULES, Layout, index_shaping, is_identity, layout_of, layouts_of
from stitchgrid.matchers.params import Rules
from stitchgrid.records import Layer, Sweep
from stitchgrid.statistics.base import LayerKey, layer_of

POOLED = Layout(num_prefix=0, grid=None)  # the rows of a vector: one an image


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpace:
    """The rows in which two layers are compared: the layout of each layer, and how the source's is resampled."""

    source: Layout
    target: Layout
    pools: bool = False  # both are read as one pooled row an image
    rules: Rules | None = None  # by which the source's rows are resampled to the target's; None: not resampled


def index_space(source: Layer, target: Layer) -> RowSpace:
    """Return the rows in which CCA and Procrustes compare two layers."""
    if index_shaping(source, target) == "pooled":
        return RowSpace(source=POOLED, target=POOLED, pools=True)
    return RowSpace(source=layout_of(source), target=layout_of(target))


def stitch_space(source: Layer, target: Layer, rules: Rules = DEFAULT_RULES) -> RowSpace:
    """Return the rows between which a stitcher maps: the target's, and the source's resampled to them."""
    source_layout, target_layout = layouts_of(source, target)
    is_laid = not is_identity(source_layout, target_layout, rules)
    return RowSpace(source=source_layout, target=target_layout, rules=rules if is_laid else None)


def space_between(source: Layer, target: Layer, rules: Rules | None) -> RowSpace:
    """Return the rows of a stitcher with these rules; without rules, those of an index."""
    return index_space(source, target) if rules is None else stitch_space(source, target, rules)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NumberedSpace:
    """A row space of a sweep, with numbers for itself and for what each side is read as."""

    space: RowSpace
    number: int
    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """How large a layer is, for one image."""

    width: int
    num_rows: int
    num_values: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayersSize:
    """How large several layers are together."""

    keys: tuple[LayerKey, ...]
    width: int
    widths_by_rows: tuple[tuple[int, int], ...]  # number of rows, and the features of all layers that have so many
    num_values: int


class Geometry:
    """The row spaces of a sweep's layers, found once for all layers with the same rows."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        self._classes: dict[tuple[object, ...], int] = {}
        self._examples: list[Layer] = []
        self._class_of: dict[LayerKey, int] = {}
        self._spaces: dict[tuple[int, int, int], tuple[NumberedSpace, Rules | None]] = {}
        self._numbers: dict[object, int] = {}
        self._sizes: dict[LayerKey, LayerSize] = {}
        self._sides: dict[tuple[LayerKey, ...], LayersSize] = {}
        self._alike: dict[tuple[LayerKey, ...], list[tuple[int, list[LayerKey]]]] = {}

    def alike(self, keys: tuple[LayerKey, ...]) -> list[tuple[int, list[LayerKey]]]:
        """Return layers in groups that are compared in the same rows: the number of each group, and its layers."""
        if keys not in self._alike:
            found: dict[int, list[LayerKey]] = {}
            for key in keys:
                found.setdefault(self._class(key), []).append(key)
            self._alike[keys] = list(found.items())
        return self._alike[keys]

    def _class(self, key: LayerKey) -> int:
        if key not in self._class_of:
            layer = layer_of(self.sweep, key)
            what = layer.kind, layer.grid, layer.num_prefix, layout_of(layer)
            if what not in self._classes:
                self._classes[what] = len(self._examples)
                self._examples.append(layer)
            self._class_of[key] = self._classes[what]
        return self._class_of[key]

    def space(self, source: int, target: int, rules: Rules | None) -> NumberedSpace:
        """Return the rows in which layers of two groups, given by their numbers, are compared."""
        key = source, target, id(rules)
        if key not in self._spaces:
            space = space_between(self._examples[source], self._examples[target], rules)
            found = NumberedSpace(
                space=space,
                number=self._numbers.setdefault(space, len(self._numbers)),
                source=self._numbers.setdefault((space.source, space.pools), len(self._numbers)),
                target=self._numbers.setdefault((space.target, space.pools), len(self._numbers)),
            )
            self._spaces[key] = found, rules  # kept, so that no other object gets the id of the rules
        return self._spaces[key][0]

    def between(self, source: LayerKey, target: LayerKey, rules: Rules | None) -> RowSpace:
        """Return the rows in which two layers are compared."""
        return self.space(self._class(source), self._class(target), rules).space

    def width(self, key: LayerKey) -> int:
        """Return the number of features of a layer."""
        return self.size(key).width

    def size(self, key: LayerKey) -> LayerSize:
        """Return how large a layer is."""
        if key not in self._sizes:
            layer = layer_of(self.sweep, key)
            width, values = layer.width, prod(layer.shape)
            self._sizes[key] = LayerSize(width=width, num_rows=values // width, num_values=values)
        return self._sizes[key]

    def side(self, keys: tuple[LayerKey, ...]) -> LayersSize:
        """Return how large some layers are together."""
        if keys not in self._sides:
            widths: dict[int, int] = {}
            for key in keys:
                size = self.size(key)
                widths[size.num_rows] = widths.get(size.num_rows, 0) + size.width
            self._sides[keys] = LayersSize(
                keys=keys,
                width=sum(widths.values()),
                widths_by_rows=tuple(widths.items()),
                num_values=sum(rows * width for rows, width in widths.items()),
            )
        return self._sides[keys]
