"""Values of the indices, found for many layer pairs together and read from the device in one transfer."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Ledger, is_nobodys
from stitchgrid.matchers.indices.cka import cka
from stitchgrid.matchers.indices.procrustes import procrustes
from stitchgrid.matchers.indices.pwcca import pwcca
from stitchgrid.moments import PairMoments
from stitchgrid.records import Cell

G = TypeVar("G")  # what an index is made of

MOMENT_INDICES: dict[str, Callable[[Sequence[PairMoments]], dict[str, Tensor]]] = {  # metrics of B pairs, (B,) each
    "pwcca": lambda pairs: dict(zip(("pwcca", "pwcca_reverse"), pwcca(pairs).mT, strict=True)),
    "procrustes": lambda pairs: {"procrustes": procrustes(pairs)},
}
GRAM_INDICES: dict[str, Callable[[Sequence[tuple[Tensor, Tensor]]], dict[str, Tensor]]] = {
    "cka": lambda pairs: {"cka": cka(pairs)},
}


def note_index(
    ledger: Ledger,
    cells: Sequence[Cell],
    look_up: Callable[[Cell], G],
    index: Callable[[Sequence[G]], dict[str, Tensor]],
) -> None:
    """Note an index of some cells, all of one kind.

    Where it cannot be found for all of them together it is found for each alone, so that a failure costs its own cell.
    """
    given: list[tuple[Cell, G]] = []
    for cell in cells:
        with ledger.failing([cell]):
            given.append((cell, look_up(cell)))
    try:
        _note(ledger, given, index)
    except Exception as problem:
        if is_nobodys(problem):
            raise
        for one in given:
            with ledger.failing([one[0]]):
                _note(ledger, [one], index)


def _note(ledger: Ledger, given: Sequence[tuple[Cell, G]], index: Callable[[Sequence[G]], dict[str, Tensor]]) -> None:
    if given:
        columns = index([one for _, one in given])
        values = torch.stack(list(columns.values()), dim=1).tolist()
        for (cell, _), row in zip(given, values, strict=True):
            ledger[cell].values |= dict(zip(columns, row, strict=True))
