"""Merge the sweeps of another store: revisions, journals and logs; under another name where their own is taken.

Revisions never change. If both stores have a sweep of one name, and the revisions here are the first ones there, as
when one of two copies went on, the sweep gets the revisions that it lacks. Otherwise the sweep of this store stays as
it is; the other sweep comes under a name that ends in the digest of its plan, unless this store has all of its cells.
Notes of a launch about code behind a job without a plan are not copied: that code does not run here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.documents import Document, PlanDocument, RoundDocument, json_object, longest, read_document
from stitchgrid.store.files import Files, write_next
from stitchgrid.store.journal import Journal, is_round
from stitchgrid.store.layout import HIGHEST, JOB, PLAN, SWEEPS, TABLES, StoreLayout, content_digest, is_safe
from stitchgrid.store.lease import Leases
from stitchgrid.store.logs import LONGEST, Logs
from stitchgrid.store.sweeps import Sweeps, json_bytes

HIGHEST_REVISION_TAKEN = HIGHEST // 2  # number of a revision, so that as many can follow it here
DIGITS = 8  # of the digest in the name of a sweep whose own name is taken
SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A sweep of another store that is now in this one."""

    sweep: str  # its name there
    name: str  # its name here
    is_new: bool  # whether revisions of it were not here before
    is_covered: bool = False  # whether this store's sweep of the name has all its cells, and stays as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The files of one revision that a store has, checked as readers check them."""

    job: bytes | None
    plan: bytes | None
    tables: Mapping[str, bytes] = field(default_factory=dict)


class SweepMerge:
    """Copies the files that a store lacks of the sweeps of another."""

    def __init__(self, into: Files, source: Files):
        self.into, self.source = into, source
        self.damaged: list[Damage] = []  # files of the source that were left out
        self.left_out: list[str] = []  # sweeps that could not be merged, with the reason
        self.num_logs = 0  # files of logs and journals

    def run(self) -> list[Taken]:
        """Copy the sweeps; return those that are in this store now.

        Raises:
            StoreError: If this store cannot be written.
        """
        known = set(Sweeps(self.source).names())
        for name in self.source.folders(SWEEPS):
            if not is_safe(name):
                self.damaged.append(Damage(file=f"{SWEEPS}/{name}", reason="not the name of a sweep"))
        return [taken for sweep in sorted(known) if (taken := self._take(sweep))]

    def _take(self, sweep: str) -> Taken | None:
        history = self._history(self.source, sweep, self.damaged)
        if not history:
            return None
        if (last := max(history)) > HIGHEST_REVISION_TAKEN:
            self.left_out.append(f"sweep {sweep!r}: its revision {last} has a number above {HIGHEST_REVISION_TAKEN}")
            return None
        name = self._name(sweep, history)
        history = history if name == sweep else _renamed(history, name)
        here = self._history(self.into, name, [])
        is_covered = not _is_one(history, here)
        if is_covered and not self._is_covered(sweep, name):
            self.left_out.append(f"sweep {sweep!r}: another sweep has the name {name!r} here")
            return None
        missing = {} if is_covered else {k: one for k, one in history.items() if not _has(here.get(k), one)}
        if missing and (holder := Leases(self.into, Journal(self.into)).holder(name)) is not None:
            self.left_out.append(f"sweep {sweep!r}: {name!r} is being computed by {holder}; merge again after it")
            return None
        for number, revision in sorted(missing.items()):
            self._write(name, number, revision)
        self._copy_journals(sweep, name)
        self._copy_logs(sweep, name)
        return Taken(sweep=sweep, name=name, is_new=bool(missing), is_covered=is_covered)

    def _name(self, sweep: str, history: Mapping[int, Revision]) -> str:
        """Return the name under which a sweep comes in."""
        if _is_one(history, self._history(self.into, sweep, [])) or self._is_covered(sweep, sweep):
            return sweep
        first = min((k for k in history if history[k].plan), default=min(history))
        name = f"{sweep}-{content_digest(history[first].plan or history[first].job or b'')[:DIGITS]}"
        return name if is_safe(name) else sweep

    def _is_covered(self, sweep: str, name: str) -> bool:
        """Return whether all cells of the other store's sweep are among those of the sweep of a name here."""
        try:
            there, here = (Sweeps(files).read_plan(one) for files, one in ((self.source, sweep), (self.into, name)))
        except StoreError:
            return False
        if there is None or here is None:
            return False
        return bool(pc.all(pc.is_in(_cells(there.cells), value_set=_cells(here.cells))).as_py())

    def _history(self, files: Files, sweep: str, damaged: list[Damage]) -> dict[int, Revision]:
        """Return the sound files of a sweep's revisions, by number; of this store, even revisions that have none."""
        numbers = filter(None, map(StoreLayout.revision_number, files.folders(StoreLayout.sweep(sweep))))
        found = {number: self._revision(files, sweep, number, damaged) for number in numbers}
        return {
            k: one
            for k, one in found.items()
            if one.job or one.plan or (files is self.into and self._is_there(sweep, k))
        }

    def _is_there(self, sweep: str, number: int) -> bool:
        return any(self.into.exists(StoreLayout.revision(sweep, number, file)) for file in (JOB, PLAN))

    def _revision(self, files: Files, sweep: str, number: int, damaged: list[Damage]) -> Revision:
        job = _document(files, StoreLayout.revision(sweep, number, JOB), Document, damaged)
        if not files.exists(StoreLayout.revision(sweep, number, PLAN)):
            return Revision(job=job, plan=None)
        if files is self.source:
            problems = Sweeps(files).plan_problems(sweep, number)
            damaged += [Damage(file=StoreLayout.revision(sweep, number, file), reason=why) for file, why in problems]
            job = None if JOB in dict(problems) else job
            if dict(problems).keys() - {JOB}:
                return Revision(job=job, plan=None)
        plan = _document(files, StoreLayout.revision(sweep, number, PLAN), PlanDocument, damaged)
        return Revision(job=job, plan=plan, tables=self._tables(files, sweep, number, plan))

    def _tables(self, files: Files, sweep: str, number: int, plan: bytes | None) -> dict[str, bytes]:
        if plan is None or files is not self.source:
            return {}
        listed = json_object(plan, PlanDocument)["sha256"]
        names = [f"{table}.parquet" for table in TABLES if f"{table}.parquet" in listed]
        return {name: files.read(StoreLayout.revision(sweep, number, name)) for name in names}

    def _write(self, name: str, number: int, revision: Revision) -> None:
        if revision.job is not None:
            self.into.write_once(StoreLayout.revision(name, number, JOB), revision.job)
        for file, data in revision.tables.items():
            self.into.replace(StoreLayout.revision(name, number, file), data)
        if revision.plan is not None:
            self.into.write_once(StoreLayout.revision(name, number, PLAN), revision.plan)

    def _copy_journals(self, sweep: str, name: str) -> None:
        for launch in filter(is_safe, self.source.folders(StoreLayout.journal(sweep))):
            folder, here = StoreLayout.launch(sweep, launch), StoreLayout.launch(name, launch)
            present = set(self.into.names(here))
            missing = [one for one in self.source.names(folder) if is_round(one) and one not in present]
            contents = self.source.read_many((f"{folder}/{one}" for one in missing), longest(RoundDocument))
            for one, data in zip(missing, contents, strict=True):
                if (sound := _sound(f"{folder}/{one}", data, self.damaged)) is not None:
                    self.num_logs += self.into.write_once(f"{here}/{one}", sound)

    def _copy_logs(self, sweep: str, name: str) -> None:
        for unit in Logs(self.source).names(sweep):
            here, folder = f"{StoreLayout.logs(name)}/{unit}", f"{StoreLayout.logs(sweep)}/{unit}"
            present = self.into.names(here)
            known = set(self.into.read_many((f"{here}/{file}" for file in present), LONGEST))
            for file in self.source.names(folder):
                try:
                    data = self.source.read(f"{folder}/{file}", LONGEST)
                except StoreError as problem:
                    self.damaged.append(Damage(file=f"{folder}/{file}", reason=str(problem)))
                    continue
                if data not in known:
                    known.add(data)
                    write_next(self.into, lambda k, to=here: f"{to}/{k:03d}.log", data, after=len(present))  # type: ignore[misc]
                    self.num_logs += 1


def _document(files: Files, name: str, kind: type[Document], damaged: list[Damage]) -> bytes | None:
    """Return a sound JSON file as it is; None if there is none, or if it is damaged, which is noted."""
    try:
        if not files.exists(name):
            return None
        read_document(files, name, kind)
        return files.read(name, longest(kind))
    except (DamagedFileError, StoreError) as problem:
        damaged.append(Damage(file=name, reason=str(problem)))
        return None


def _sound(name: str, data: bytes | StoreError, damaged: list[Damage]) -> bytes | None:
    try:
        if isinstance(data, StoreError):
            raise data
        json_object(data, RoundDocument)
    except (DamagedFileError, StoreError) as problem:
        damaged.append(Damage(file=name, reason=str(problem)))
        return None
    return data


def _is_one(history: Mapping[int, Revision], here: Mapping[int, Revision]) -> bool:
    """Return whether two stores have the same sweep: the revisions in one are the first ones in the other."""
    few, many = sorted((history, here), key=len)
    first = sorted(many)[: len(few)]
    return sorted(few) == first and all(_are_equal(history[number], here[number]) for number in few)


def _are_equal(one: Revision, other: Revision) -> bool:
    """Return whether two revisions have something in common, and nothing that differs."""
    pairs = [(mine, its) for mine, its in ((one.job, other.job), (one.plan, other.plan)) if mine and its]
    return bool(pairs) and all(mine == its for mine, its in pairs)


def _has(here: Revision | None, wanted: Revision) -> bool:
    """Return whether a store has all files of a revision that another one has."""
    if here is None:
        return False
    return not (wanted.job and not here.job) and not (wanted.plan and not here.plan)


def _renamed(history: Mapping[int, Revision], name: str) -> dict[int, Revision]:
    """Return revisions as those of a sweep of another name."""
    return {
        number: Revision(
            job=None if one.job is None else json_bytes({**json.loads(one.job), "name": name}),
            plan=one.plan,
            tables=one.tables,
        )
        for number, one in history.items()
    }


def _cells(cells: pa.Table) -> pa.Array:
    """Return a text for each cell with its id, its metrics, and the names that a sweep gives it."""
    names = ("cell_id", "source_model", "source_layer", "target_model", "target_layer", "matcher", "params", "seed")
    texts: Sequence[pa.ChunkedArray] = [pc.fill_null(cells[name].cast(pa.string()), "") for name in names]
    metrics = pc.binary_join(cells["metrics"].cast(pa.list_(pa.string())), ",")
    found = pc.binary_join_element_wise(*texts, metrics, SEPARATOR).combine_chunks()
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
