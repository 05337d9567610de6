"""A sweep's name stands for one set of cells: whether a job, and the code it names, are still what the store has."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from stitchgrid.datasets.catalogue import own_parts
from stitchgrid.datasets.own import holding_files, own_content, own_data_digest
from stitchgrid.errors import InputError, JobFileError
from stitchgrid.jobfile import Job
from stitchgrid.models.architecture import find_code, holding_codes
from stitchgrid.models.closure import Code
from stitchgrid.records import DataSpec, NetworkSpec, Shard, Sweep
from stitchgrid.store import Store

SHOWN = 3  # cells of each kind in a message
COLUMNS = ("source_model", "source_layer", "target_model", "target_layer", "matcher", "params", "seed")

Named = tuple[str, str, str, str, str, str, int | None]


def check_same_cells(store: Store, sweep: Sweep, shards: Sequence[Shard], *, update: bool) -> None:
    """Compare a sweep with the latest complete revision under its name, if there is one.

    Networks still to be trained are compared by name alone.

    Raises:
        JobFileError: If the cells differ and `update` is off; says how.
    """
    if update or store.latest_revision(sweep.name) is None:
        return
    stored = store.read_plan(sweep.name)
    if stored is None:
        return
    before = dict(
        zip(_names(*(stored.cells[c].to_pylist() for c in COLUMNS)), stored.cells["cell_id"].to_pylist(), strict=True)
    )
    after = dict(_cells(sweep, shards))
    added, removed = [n for n in after if n not in before], [n for n in before if n not in after]
    changed = [n for n, cell_id in after.items() if cell_id is not None and before.get(n, cell_id) != cell_id]
    found = {"new": added, "no longer asked for": removed, "of other weights, code, images or preprocessing": changed}
    differences = [f"{len(some)} cells {what}, e.g. {_shown(some)}" for what, some in found.items() if some]
    if differences:
        raise JobFileError(
            f"a sweep {sweep.name!r} with other cells is in the store; give the job another name, or use --update to "
            "make it the sweep's next revision (nothing is lost, nothing finished is computed again):",
            differences,
        )


def own_code(sweep: Sweep) -> dict[str, Code]:
    """Return users' own code behind the networks of a sweep, by the name of the network; none of libraries'."""
    return dict(_codes(network.spec for network in sweep.networks))


def _codes(specs: Iterable[NetworkSpec]) -> Iterable[tuple[str, Code]]:
    for spec in specs:
        with suppress(InputError):  # a file that is missing: not found, here
            if (code := find_code(spec)) is not None:
                yield spec.name, code


def own_data(job: Job) -> dict[str, str]:
    """Return the digests of users' own files that give a job its images, by the word that names them."""
    return {spec.dataset: found for spec in _images_of(job) if (found := own_data_digest(spec)) is not None}


def _images_of(job: Job) -> list[DataSpec]:
    return [spec for spec in (job.data_spec(), job.outliers_spec()) if spec is not None]


class HeldCode:
    """Users' own code that a job names, as it was at one moment: what is compared is what is run."""

    def __init__(self, job: Job):
        self._codes: dict[tuple[str, str], Code] = {}
        for spec in job.network_specs():
            with suppress(InputError, JobFileError):  # whoever wants to run it is told
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
    """Compare users' own code, before any of it runs, with what the latest complete revision was planned with.

    Version 0.1.0 noted of each network the digest of one file, without what it imports; then that is compared.

    Raises:
        JobFileError: If some of it has changed.
    """
    info = store.read_plan_info(job.name)
    planned: dict[str, str] = info.get("own_code", {})
    files: dict[str, dict[str, str]] = info.get("own_files", {})
    words = {spec.name: spec.architecture for spec in job.network_specs()}
    changed = []
    for name, code in _codes(job.network_specs()):
        known = {code.digest} if name in files else {code.digest, code.entry_digest}
        if planned.get(name, code.digest) not in known:
            changed.append(f"model {name!r}: {words[name]}{_difference(files.get(name), code.files)}")
    planned_data: dict[str, str] = info.get("own_data", {})
    changed += [f"images: {word}" for word, found in own_data(job).items() if planned_data.get(word, found) != found]
    if changed:
        raise JobFileError(
            f"code of sweep {job.name!r} has changed since it was planned, and was not run; put it back, or launch the "
            "job file again with --update:",
            changed,
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
