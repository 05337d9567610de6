"""Values of indices, computed for many layer pairs together and read from the device in one transfer.

Values without each group of images, and with images shuffled, are computed and read in the same way.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Entry, Ledger, is_process_error
from stitchgrid.engine.workspace import Workspace
from stitchgrid.records import Cell

G = TypeVar("G")  # what an index is computed from


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCells(Generic[G]):
    """The cells that share the values of one layer pair: two if the order of the pair does not matter, else one."""

    cells: tuple[Cell, ...]
    made_of: G


def note_index(
    ledger: Ledger,
    cells: Sequence[Cell],
    look_up: Callable[[Cell], G],
    index: Callable[[Sequence[G]], dict[str, Tensor]],
    *,
    same: Callable[[Cell], Hashable] | None = None,
) -> list[tuple[Cell, ...]]:
    """Note the values of an index for cells of one matcher; return the cells that got one, in groups that share one.

    Cells for which `same` returns the same key share a value, which is computed once. If the values cannot be computed
    for all cells together, they are computed one by one, so that a failure costs only its own cells.
    """
    given: dict[Hashable, PairCells[G]] = {}
    for cell in cells:
        with ledger.failing([cell]):
            found, key = look_up(cell), cell.cell_id if same is None else same(cell)
            before = given.get(key)
            given[key] = (
                PairCells(cells=(*before.cells, cell), made_of=before.made_of)
                if before
                else PairCells(cells=(cell,), made_of=found)
            )
    asked = list(given.values())
    try:
        _note(ledger, asked, index)
    except Exception as problem:
        if is_process_error(problem):
            raise
        for one in asked:
            with ledger.failing(one.cells):
                _note(ledger, [one], index)
    return [one.cells for one in asked if ledger.sound(one.cells)]


class Variants(Generic[G]):
    """Values of an index on variants of the images, as evidence for cells: one for each cell, variant and metric.

    A variant that cannot be computed is left out; the value of its cell stands without this evidence.
    """

    def __init__(self, index: Callable[[Sequence[G]], dict[str, Tensor]]):
        self.index = index
        self._found: dict[str, dict[str, list[Tensor]]] = {}  # cell id -> metric -> values, variant by variant

    def add(self, made_of: Mapping[str, G]) -> None:
        """Add a variant of some cells: what the index is computed from, by cell id."""
        if not made_of:
            return
        try:
            columns = self.index(list(made_of.values()))
        except Exception as problem:
            if is_process_error(problem):
                raise
            if len(made_of) > 1:
                for cell_id, one in made_of.items():
                    self.add({cell_id: one})
            return
        for metric, values in columns.items():
            for cell_id, value in zip(made_of, values, strict=True):
                self._found.setdefault(cell_id, {}).setdefault(metric, []).append(value)

    def read(self) -> dict[str, dict[str, list[float]]]:
        """Return the values by cell id and metric, in order of the variants, read from the device in one transfer."""
        numbers = [value for metrics in self._found.values() for values in metrics.values() for value in values]
        told = iter(torch.stack(numbers).tolist() if numbers else [])
        return {
            cell_id: {metric: [next(told) for _ in values] for metric, values in metrics.items()}
            for cell_id, metrics in self._found.items()
        }


def same_value(work: Workspace, cell: Cell) -> Hashable:
    """Return the key that cells with one value share: their two layers, if the order of these does not matter.

    It matters for an index that is not symmetric, and for a source that is reduced to a low rank.
    """
    if not work.needs[cell.matcher].kind.about.symmetric or work.rank(cell) is not None:
        return cell.cell_id
    return frozenset((cell.source_key, cell.target_key))


def note_variants(
    ledger: Ledger,
    variants: Variants[Any],
    sharing: Sequence[tuple[Cell, ...]],
    note: Callable[[Entry, Mapping[str, Sequence[float]]], None],
) -> None:
    """Note variants, found for the first of the cells that share a value, as evidence for each of these cells."""
    found = variants.read()
    for cells in sharing:
        for cell in cells:
            note(ledger[cell], found.get(cells[0].cell_id, {}))


def _note(ledger: Ledger, asked: Sequence[PairCells[G]], index: Callable[[Sequence[G]], dict[str, Tensor]]) -> None:
    if asked:
        columns = index([one.made_of for one in asked])
        values = torch.stack(list(columns.values()), dim=1).tolist()
        for one, row in zip(asked, values, strict=True):
            for cell in one.cells:
                ledger[cell].values |= dict(zip(columns, row, strict=True))
