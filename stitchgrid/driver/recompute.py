"""Cells to compute again on request: which they are, what is made anew for them, and when all of them are there.

Their rows get a generation above every one in the store: the time of the request in milliseconds if that is above them.
So the later of two requests counts, even if they were made in two stores that are merged afterwards. The store notes
the request before anything is computed and until all its rows are there: an interrupted launch is continued by the
next one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from stitchgrid.errors import InputError, StoreError, nearest
from stitchgrid.jobfile import Job
from stitchgrid.matchers.registry import asks_ood
from stitchgrid.records import Cell, NetworkSpec, Sweep
from stitchgrid.resolve import Anew
from stitchgrid.store import RecomputeRequest, Store
from stitchgrid.store.limits import MOST

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """The requests to compute cells of a job's sweep again: this launch's, and unfinished ones of earlier launches."""

    requests: tuple[RecomputeRequest, ...] = ()
    is_new: bool = False  # something of it is not noted in the store yet

    def generation(self, names: Iterable[str]) -> int:
        """Return the newest generation that is requested for one of these names; 0 if none is."""
        names = tuple(names)
        found = (one.generation for one in self.requests if any(_matches(glob, names) for glob in one.globs))
        return max(found, default=0)

    def of_cells(self, sweep: Sweep) -> Callable[[Cell], int]:
        """Return a function from a cell of a sweep to the lowest generation that its rows may have."""
        matchers = [self.generation([spec.kind]) for spec in sweep.matchers]
        networks = [self.generation(_names(network.spec)) for network in sweep.networks]
        return lambda cell: max(matchers[cell.matcher], networks[cell.source], networks[cell.target])

    def anew(self, job: Job) -> Anew:
        """Return which artefacts are made anew: all those of requested models, and detectors of requested matchers."""
        networks = {spec.name: found for spec in job.network_specs() if (found := self.generation(_names(spec)))}
        detecting = (spec.kind for spec in job.matcher_specs() if asks_ood(spec, "energy"))
        return Anew(networks=networks, detectors=max(map(self._of_kind, detecting), default=0))

    def may_change(self, job: Job) -> bool:
        """Return whether a network is trained anew, so that its cells may change."""
        return any(spec.is_made and self.generation(_names(spec)) for spec in job.network_specs())

    def _of_kind(self, kind: str) -> int:
        return self.generation([kind])

    def note(self, store: Store, sweep: str) -> None:
        """Note new requests in the store, so that a later launch can continue them."""
        if self.is_new:
            store.requests.write(sweep, self.requests)

    def settle(self, store: Store, sweep: Sweep, cells: Iterable[Cell]) -> None:
        """Forget the requests if each of `cells`, all cells of the sweep, has rows of them, be they errors."""
        if not self.requests:
            return
        status, asked = store.cell_status(), self.of_cells(sweep)
        if all((status.generation(cell.cell_id) or 0) >= asked(cell) for cell in cells):
            store.requests.forget(sweep.name)


def recomputation(job: Job, globs: Sequence[str], store: Store | None) -> Recomputation:
    """Return what is to be computed again: by these globs, and by the requests that the store notes.

    Raises:
        InputError: If a glob matches no matcher and no model of the job.
        StoreError: If the store cannot be read, or has rows that no later ones can follow.
    """
    check_globs(job, globs)
    noted = () if store is None else store.requests.read(job.name)
    if not globs:
        return Recomputation(requests=noted)
    last = 0 if store is None else store.cell_status().last_generation
    last = max([last, *(one.generation for one in noted)])
    generation = max(int(1000 * datetime.now(UTC).timestamp()), last + 1)
    if generation > MOST:
        raise StoreError(
            f"the store has, or is asked for, rows of generation {last}, which no later computation can follow. "
            "Nothing was computed. Merge the store into another one, which leaves such rows out, and compute there."
        )
    asked = RecomputeRequest(globs=tuple(dict.fromkeys(globs)), generation=generation)
    return Recomputation(requests=(*noted, asked), is_new=True)


def check_globs(job: Job, globs: Sequence[str]) -> None:
    """Refuse a glob that matches nothing.

    Raises:
        InputError: If there is one; the message names similar words.
    """
    known = {ALL: None, **{spec.kind: None for spec in job.matcher_specs()}}
    known |= dict.fromkeys(name for spec in job.network_specs() for name in _names(spec))
    for glob in globs:
        if not _matches(glob, known):
            raise InputError(
                f"--recompute {glob!r} is no matcher and no model of job {job.name!r}; {nearest(glob, known)}"
            )


def _names(spec: NetworkSpec) -> tuple[str, ...]:
    """Return the names under which cells of a network are asked for."""
    return spec.name, spec.entry


def _matches(glob: str, names: Iterable[str]) -> bool:
    return glob == ALL or any(glob == name or fnmatchcase(name, glob) for name in names)
