"""Stored cells that another version of the code, or of a library, computed: how many, and how to compute them again."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache

from stitchgrid import __version__
from stitchgrid.models.versions import library_versions
from stitchgrid.planning import Plan, never
from stitchgrid.records import Cell, Sweep
from stitchgrid.store import CellStatus, MadeWith

PACKAGE = "stitchgrid"


def version_lines(plan: Plan, done: CellStatus, *, again: Callable[[Cell], int] = never, command: str) -> list[str]:
    """Return lines about stored cells that were computed with other versions than those of this environment.

    Args:
        plan: The sweep.
        done: What is stored.
        again: As for `make_plan`; cells that it has computed again are left out.
        command: The launch that would be given `--recompute`.
    """
    is_other = _others(plan.sweep)
    told: Counter[str] = Counter()
    stored: Counter[str] = Counter()  # cells by matcher
    other: Counter[str] = Counter()
    seen: set[str] = set()
    for shard in plan.shards:
        for cell in plan.sweep.cells(shard):
            if cell.cell_id in seen or not (made := done.made_with(cell.cell_id)):
                continue
            seen.add(cell.cell_id)
            kind = plan.sweep.matchers[cell.matcher].kind
            stored[kind] += 1
            if again(cell) <= (done.generation(cell.cell_id) or 0) and (
                found := is_other(made, cell.source, cell.target)
            ):
                told.update(found)
                other[kind] += 1
    if not told:
        return []
    lines = [f"  {num} by {what}" for what, num in sorted(told.items(), key=lambda one: (-one[1], one[0]))]
    globs = ["all"] if other == stored else sorted(other)
    words = " ".join(f"--recompute {shlex.quote(glob)}" for glob in globs)
    return [
        f"stored cells that other versions computed: {other.total()}",
        *lines,
        f"  to compute them again: {command} {words}",
    ]


def _others(sweep: Sweep) -> Callable[[frozenset[MadeWith], int, int], tuple[str, ...]]:
    """Return a function from what a cell was made with, and its two networks, to the versions that differ here."""

    @cache
    def here(network: int) -> Mapping[str, str]:
        return library_versions(sweep.networks[network].spec)

    @cache
    def others(made: frozenset[MadeWith], source: int, target: int) -> tuple[str, ...]:
        found = {f"{PACKAGE} {one.package} (here {__version__})" for one in made if one.package != __version__}
        now = {**here(source), **here(target)}
        for one in made:
            before = dict(one.libraries or ())
            found |= {
                f"{name} {before.get(name, 'none')} (here {now.get(name, 'none')})"
                for name in (before.keys() | now.keys() if one.libraries is not None else ())
                if before.get(name) != now.get(name)
            }
        return tuple(sorted(found))

    return others
