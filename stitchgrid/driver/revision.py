"""A sweep's name stands for one set of cells: checks that a job, and the code it names, still match the store."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stitchgrid.datasets.registry import own_parts
from stitchgrid.datasets.user_dataset import holding_files, own_content, own_data_digest
from stitchgrid.errors import InputError, JobFileError
from stitchgrid.jobfile import Job
from stitchgrid.models.architecture import find_code, holding_codes, names_code
from stitchgrid.models.code_closure import Code
from stitchgrid.records import DataSpec, NetworkSpec, Shard, Sweep, digest
from stitchgrid.store import Store

SHOWN = 3  # cells of each kind in a message
COLUMNS = ("source_model", "source_layer", "target_model", "target_layer", "matcher", "params", "seed")

Named = tuple[str, str, str, str, str, str, int | None]


def check_same_cells(store: Store, sweep: Sweep, shards: Sequence[Shard], *, update: bool) -> None:
    """Compare a sweep with the latest complete revision under its name, if there is one.

    Raises:
        JobFileError: If the cells differ and `update` is off; the message says how.
    """
    if not update and (differences := other_cells(store, sweep, shards)):
        raise JobFileError(
            f"a sweep {sweep.name!r} with other cells is in the store; give the job another name, or use --update to "
            "make it the sweep's next revision (nothing is lost, nothing finished is computed again):",
            differences,
        )


def other_cells(store: Store, sweep: Sweep, shards: Sequence[Shard]) -> list[str]:
    """Return in words how a sweep's cells differ from those of the latest complete revision under its name.

    Networks still to be trained are compared by name alone.
    """
    stored = None if store.latest_revision(sweep.name) is None else store.read_plan(sweep.name)
    if stored is None:
        return []
    before = dict(
        zip(_names(*(stored.cells[c].to_pylist() for c in COLUMNS)), stored.cells["cell_id"].to_pylist(), strict=True)
    )
    after = dict(_cells(sweep, shards))
    added, removed = [n for n in after if n not in before], [n for n in before if n not in after]
    changed = [n for n, cell_id in after.items() if cell_id is not None and before.get(n, cell_id) != cell_id]
    found = {"new": added, "no longer asked for": removed, "of other weights, code, images or preprocessing": changed}
    return [f"{len(some)} cells {what}, e.g. {_shown(some)}" for what, some in found.items() if some]


def code_record(job: Job, networks: Sequence[NetworkSpec]) -> dict[str, Any]:
    """Return which users' own code a job names, as a store keeps it (`documents.CodeDocument`), without libraries.

    For code that cannot be read without running it, such as a module of the interpreter, only the word that names it
    is noted.
    """
    specs = {spec.name: spec for spec in (*job.network_specs(), *networks)}
    found = list(_codes(specs.values()))
    return {
        "own_code": {spec.name: _word_digest(spec) if code is None else code.digest for spec, code in found},
        "own_data": own_data(job),
        "own_files": {spec.name: code.files for spec, code in found if code is not None},
    }


def _codes(specs: Iterable[NetworkSpec]) -> Iterator[tuple[NetworkSpec, Code | None]]:
    """Yield the networks whose architecture names code that is run, each with the code if it can be read."""
    for spec in specs:
        with suppress(InputError, JobFileError):  # a missing file, or a word for no network: there is nothing to run
            code = find_code(spec)
            if code is not None or names_code(spec):
                yield spec, code


def _word_digest(spec: NetworkSpec) -> str:
    return digest("the word alone", spec.architecture)


def own_data(job: Job) -> dict[str, str]:
    """Return the digests of users' own files that give a job its images, by the word that names them."""
    return {spec.dataset: found for spec in _images_of(job) if (found := own_data_digest(spec)) is not None}


def _images_of(job: Job) -> list[DataSpec]:
    return [spec for spec in (job.data_spec(), job.outliers_spec()) if spec is not None]


class HeldCode:
    """The users' own code that a job names, as it was at one moment, so that the code compared is the code run."""

    def __init__(self, job: Job):
        self._codes: dict[tuple[str, str], Code] = {}
        for spec in job.network_specs():
            with suppress(InputError, JobFileError):  # running it raises the error
                if (code := find_code(spec)) is not None:
                    self._codes[spec.base, spec.architecture] = code
        paths = [Path(parts[0]) for spec in _images_of(job) if (parts := own_parts(spec.dataset)) is not None]
        self._files = {path: content for path in paths if (content := own_content(path)) is not None}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run this code, and no other under its names, within a block."""
        with holding_codes(self._codes), holding_files(self._files):
            yield


def check_same_code(store: Store, job: Job) -> None:
    """Compare users' own code, before any of it runs, with the code that the latest revision was planned with.

    Code without a noted digest is refused. Version 0.1.0 noted for each network the digest of one file, without its
    imports; then the digest of that file is compared.

    Raises:
        JobFileError: If some of it has changed, or nothing is noted of it.
    """
    known = store.read_code(job.name)
    planned: dict[str, str] = known.get("own_code", {})
    files: dict[str, dict[str, str]] = known.get("own_files", {})
    changed, unknown = [], []
    for spec, code in _codes(job.network_specs()):
        told = f"model {spec.name!r}: {spec.architecture}"
        now = {_word_digest(spec)} if code is None else {code.digest}
        now |= {code.entry_digest} if code is not None and spec.name not in files else set()
        if spec.name not in planned:
            unknown.append(told)
        elif planned[spec.name] not in now:
            changed.append(told + ("" if code is None else _difference(files.get(spec.name), code.files)))
    planned_data: dict[str, str] = known.get("own_data", {})
    data = own_data(job)
    unknown += [f"images: {word}" for word in data if word not in planned_data]
    changed += [f"images: {word}" for word, found in data.items() if planned_data.get(word, found) != found]
    if changed:
        raise JobFileError(
            f"code of sweep {job.name!r} has changed since it was planned, and was not run; put it back, or launch the "
            "job file again with --update:",
            changed,
        )
    if unknown:
        raise JobFileError(
            f"the job of sweep {job.name!r} names code that its plan does not mention; it was not run. Read the job, "
            "and launch the job file again if you trust it:",
            unknown,
        )


def _difference(before: dict[str, str] | None, after: dict[str, str]) -> str:
    """Return which modules changed, as text to put behind the name of a network."""
    if before is None:
        return ""
    kinds = {
        "changed": [name for name in after if name in before and before[name] != after[name]],
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
    }
    return "".join(f"; {kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names)


def _cells(sweep: Sweep, shards: Sequence[Shard]) -> Iterable[tuple[Named, str | None]]:
    for shard in shards:
        for cell in sweep.cells(shard):
            f, g, spec = sweep.networks[cell.source], sweep.networks[cell.target], sweep.matchers[cell.matcher]
            name = (
                f.name,
                f.layers[cell.source_layer].name,
                g.name,
                g.layers[cell.target_layer].name,
                spec.kind,
                spec.params,
                spec.seed,
            )
            yield name, cell.cell_id if f.is_known and g.is_known else None


def _names(*columns: list[object]) -> list[Named]:
    return list(zip(*columns, strict=True))


def _shown(names: Sequence[Named]) -> str:
    shown = [
        f"{f}:{i} -> {g}:{j} by {kind}{'' if seed is None else f' seed {seed}'}"
        for f, i, g, j, kind, _, seed in names[:SHOWN]
    ]
    return "; ".join(shown) + (" ..." if len(names) > SHOWN else "")
