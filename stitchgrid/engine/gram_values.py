"""Values of the indices that read Gram matrices: all kinds share a layer's matrix, also for some of its images."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from stitchgrid.engine.gram_matrices import GramKey, are_finite
from stitchgrid.engine.groups import Groups
from stitchgrid.engine.index_values import Variants, note_index, note_variants, same_value
from stitchgrid.engine.ledger import Entry, Ledger
from stitchgrid.engine.shuffles import shuffled_orders
from stitchgrid.engine.workspace import Workspace
from stitchgrid.matchers.gram import Gram
from stitchgrid.matchers.protocol import GramIndex
from stitchgrid.moments import NOT_FINITE
from stitchgrid.records import Cell

SampleKey = tuple[int, GramKey]  # number of images, and the layer


class SampledGrams:
    """The Gram matrices of a shard, of all images or of some of them, each made once for all kinds of index."""

    def __init__(self, grams: Mapping[SampleKey, Gram], images: Callable[[int], Tensor] | None = None):
        self._whole, self._images = grams, images  # number of images -> which, in which order; None: all
        self._found: dict[SampleKey, Gram] = {}

    def __getitem__(self, key: SampleKey) -> Gram:
        if self._images is None:
            return self._whole[key]
        if key not in self._found:
            self._found[key] = self._whole[key].of_images(self._images(key[0]))
        return self._found[key]


class Prepared:
    """What one index prepares of each layer, once for all layers that it is compared with."""

    def __init__(self, work: Workspace, grams: SampledGrams, finite: Collection[SampleKey], index: GramIndex[Any, Any]):
        self.work, self.grams, self.finite, self.index = work, grams, finite, index
        self._found: dict[SampleKey, Any] = {}

    def __call__(self, cell: Cell) -> tuple[Any, Any]:
        """Return what the index prepares of a cell's source and target.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        return self.source(cell), self.target(cell)

    def source(self, cell: Cell) -> Any:
        """Return what the index prepares of a cell's source."""
        return self._of(cell, (cell.source_key, self.work.rank(cell)))

    def target(self, cell: Cell) -> Any:
        """Return what the index prepares of a cell's target."""
        return self._of(cell, (cell.target_key, None))

    def _of(self, cell: Cell, layer: GramKey) -> Any:
        key = self.work.needs[cell.matcher].num_eval, layer
        if key not in self.finite:
            raise ValueError(f"{self.index.about.kind} needs finite activations, got inf or NaN; {NOT_FINITE}.")
        if key not in self._found:
            self._found[key] = self.index.prepare(self.grams[key])
        return self._found[key]


class GramValues:
    """Notes the values of all indices of Gram matrices, and the evidence for them."""

    def __init__(self, work: Workspace, ledger: Ledger, grams: Mapping[SampleKey, Gram]):
        self.work, self.ledger, self.grams, self.finite = work, ledger, grams, are_finite(grams)

    def note(self, cells_by_matcher: Mapping[int, Sequence[Cell]]) -> None:
        """Note the values of cells, then those without each group of images, and those with the source's shuffled."""
        indices: dict[int, GramIndex[Any, Any]] = {}
        whole: dict[int, Prepared] = {}
        shared: dict[int, list[tuple[Cell, ...]]] = {}
        same = partial(same_value, self.work)
        for position, cells in cells_by_matcher.items():
            index = self.work.needs[position].kind
            assert isinstance(index, GramIndex)
            indices[position] = index
            whole[position] = Prepared(self.work, SampledGrams(self.grams), self.finite, index)
            shared[position] = note_index(self.ledger, cells, whole[position], index.compare, same=same)
            if not self._has_shuffles:  # only shuffled sources are compared with whole targets later
                del whole[position]
        self._note_replicates(indices, shared)
        self._note_null(indices, shared, whole)

    @property
    def _has_shuffles(self) -> bool:
        return bool(self.work.sweep.shuffles)

    def _note_replicates(
        self, indices: Mapping[int, GramIndex[Any, Any]], shared: Mapping[int, list[tuple[Cell, ...]]]
    ) -> None:
        found = {position: Variants(index.compare) for position, index in indices.items()}
        for number in range(self.work.sweep.groups or 0):
            grams = SampledGrams(self.grams, partial(self._kept, number))
            for position, index in indices.items():
                kept = Prepared(self.work, grams, self.finite, index)
                found[position].add({cell.cell_id: kept(cell) for cell, *_ in shared[position]})
        for position, variants in found.items():
            note_variants(self.ledger, variants, shared[position], Entry.note_replicates)

    def _note_null(
        self,
        indices: Mapping[int, GramIndex[Any, Any]],
        shared: Mapping[int, list[tuple[Cell, ...]]],
        whole: Mapping[int, Prepared],
    ) -> None:
        found = {position: Variants(index.compare) for position, index in indices.items()}
        alone = {position: [(cell,) for cells in some for cell in cells] for position, some in shared.items()}
        for number in range(self.work.sweep.shuffles):
            grams = SampledGrams(self.grams, partial(self._order, number))
            for position, index in indices.items():
                drawn, as_is = Prepared(self.work, grams, self.finite, index), whole[position]
                found[position].add({c.cell_id: (drawn.source(c), as_is.target(c)) for (c,) in alone[position]})
        for position, variants in found.items():
            note_variants(self.ledger, variants, alone[position], Entry.note_null)

    def _kept(self, left_out: int, count: int) -> Tensor:
        """Return the positions of the first images without those of a group."""
        return Groups(self.work.sweep.groups or 1).others(left_out, count, self.work.device)

    def _order(self, draw: int, count: int) -> Tensor:
        return shuffled_orders(count, self.work.sweep.shuffles, self.work.device)[draw]
