"""Cells and artefacts that the sweeps of a store refer to, and why these may not be known."""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.files import Files
from stitchgrid.store.journal import Journal
from stitchgrid.store.layout import JOB, PLAN, SWEEPS, StoreLayout, is_safe
from stitchgrid.store.lease import Leases
from stitchgrid.store.sweeps import Sweeps


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Cells and artefacts of all revisions of all sweeps."""

    cells: pa.Array  # distinct ids
    artefacts: frozenset[tuple[str, str]]  # kind and key
    of_rows: tuple[str, ...] = field(default=())  # reasons why it is not known which rows are needed; then all are kept
    of_artefacts: tuple[str, ...] = field(default=())  # reasons why it is not known which artefacts are needed

    @property
    def are_rows_known(self) -> bool:
        """Return whether no sweep needs rows of other cells."""
        return not self.of_rows

    @property
    def are_artefacts_known(self) -> bool:
        """Return whether no sweep needs other artefacts."""
        return not self.of_rows and not self.of_artefacts


def read_references(files: Files) -> References:
    """Return the cells and artefacts that the sweeps of a store refer to."""
    sweeps = Sweeps(files)
    running = Leases(files, Journal(files)).running()
    of_rows = [f"sweep {sweep!r} is being computed by {who}; run gc after it" for sweep, who in running.items()]
    of_artefacts: list[str] = []
    ids: list[pa.Array] = [pa.array([], pa.string())]
    artefacts: set[tuple[str, str]] = set()
    for sweep in files.folders(SWEEPS):
        numbers = _revisions(files, sweep)
        planned = [number for number in numbers if files.exists(StoreLayout.revision(sweep, number, PLAN))]
        if numbers and numbers[-1:] != planned[-1:] and sweep not in running:
            of_rows.append(f"the plan of sweep {sweep!r} is not complete: resume the sweep, or remove it")
        for number in planned:
            try:
                found = sweeps.read_plan(sweep, number)
            except StoreError as problem:
                of_rows.append(f"the plan of sweep {sweep!r} cannot be read: {problem}")
                continue
            assert found is not None
            ids.append(pc.unique(found.cells["cell_id"].combine_chunks()))
            noted = found.info.get("artefacts")
            if noted is None:
                of_artefacts.append(
                    f"sweep {sweep!r} (revision {number}) was planned by an earlier version, which did not note its "
                    "artefacts: remove the sweep and launch its job again; no finished cell is computed again"
                )
            artefacts |= {(kind, key) for kind, keys in (noted or {}).items() for key in keys}
    return References(
        cells=pc.unique(pa.concat_arrays(ids)),
        artefacts=frozenset(artefacts),
        of_rows=tuple(of_rows),
        of_artefacts=tuple(of_artefacts),
    )


def _revisions(files: Files, sweep: str) -> list[int]:
    """Return the numbers of the revisions of a sweep that have a job or a plan, ascending."""
    if not is_safe(sweep):
        return []
    numbers = sorted(filter(None, map(StoreLayout.revision_number, files.folders(StoreLayout.sweep(sweep)))))
    return [n for n in numbers if any(files.exists(StoreLayout.revision(sweep, n, one)) for one in (JOB, PLAN))]
