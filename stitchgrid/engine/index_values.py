"""Values of the indices, found for many layer pairs together and read from the device in one transfer."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Ledger, is_process_error
from stitchgrid.records import Cell

G = TypeVar("G")  # what an index is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[G]):
    """Cells that one pair of layers gives their values: two, where the order of the pair does not matter."""

    cells: tuple[Cell, ...]
    made_of: G


def note_index(
    ledger: Ledger,
    cells: Sequence[Cell],
    look_up: Callable[[Cell], G],
    index: Callable[[Sequence[G]], dict[str, Tensor]],
    *,
    same: Callable[[Cell], Hashable] | None = None,
) -> None:
    """Note an index of some cells, all of one matcher.

    Cells for which `same` returns the same share a value that is found once. Where values cannot be found for all cells
    together they are found for each alone, so that a failure costs its own cells.
    """
    given: dict[Hashable, Asked[G]] = {}
    for cell in cells:
        with ledger.failing([cell]):
            found, key = look_up(cell), cell.cell_id if same is None else same(cell)
            before = given.get(key)
            given[key] = (
                Asked(cells=(*before.cells, cell), made_of=before.made_of)
                if before
                else Asked(cells=(cell,), made_of=found)
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


def _note(ledger: Ledger, asked: Sequence[Asked[G]], index: Callable[[Sequence[G]], dict[str, Tensor]]) -> None:
    if asked:
        columns = index([one.made_of for one in asked])
        values = torch.stack(list(columns.values()), dim=1).tolist()
        for one, row in zip(asked, values, strict=True):
            for cell in one.cells:
                ledger[cell].values |= dict(zip(columns, row, strict=True))
