"""The cells of networks that cannot be measured: each gets an error, and all other cells are computed."""

from collections.abc import Mapping
from dataclasses import replace

from stitchgrid.planning import Plan
from stitchgrid.records import Cell, Shard, Sweep


def refused_by(cell: Cell, refused: Mapping[int, str]) -> int | None:
    """Return the first of a cell's networks that is refused, None where none is."""
    return min(refused.keys() & {cell.source, cell.target}, default=None)


def refusal(sweep: Sweep, position: int, refused: Mapping[int, str]) -> str:
    """Return the error of a refused network's cells."""
    return f"model {sweep.networks[position].name!r} cannot be measured: {refused[position]}"


def without_refused(plan: Plan, refused: Mapping[int, str]) -> tuple[Plan, list[tuple[Shard, str]]]:
    """Return a plan without the cells of refused networks, and these cells as shards, each with its error.

    Args:
        plan: What is to be computed.
        refused: Position of each refused network -> why.
    """
    todo, lost = [], []
    for shard in plan.todo:
        by_network: dict[int | None, list[Cell]] = {}
        for cell in plan.sweep.cells(shard):
            by_network.setdefault(refused_by(cell, refused), []).append(cell)
        left = by_network.pop(None, [])
        for position, cells in by_network.items():
            assert position is not None
            lost.append((_of(shard, cells), refusal(plan.sweep, position, refused)))
        if left:
            todo.append(_of(shard, left) if by_network else shard)
    return replace(plan, todo=tuple(todo)), lost


def _of(shard: Shard, cells: list[Cell]) -> Shard:
    """Return a shard of which only some of its cells are wanted."""
    wanted = frozenset(cell.cell_id for cell in cells)
    return replace(shard, wanted=wanted, num_cells=len(cells), flops=shard.flops * len(cells) / shard.num_cells)
