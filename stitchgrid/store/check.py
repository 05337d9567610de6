"""Verify every file of a store: what is damaged, what is merely not the store's, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stitchgrid.errors import StoreError
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.journal import Journal, beat_problem, round_problem
from stitchgrid.store.layout import (
    EXTRACTS,
    JOB,
    PARTS,
    PLAN,
    REVISION_NAME,
    SNAPSHOT_DATA,
    SUFFIXES,
    SWEEPS,
    TABLES,
    DataName,
    Layout,
    PartName,
    content_digest,
)
from stitchgrid.store.parts import DamagedFileError, Parts, json_object
from stitchgrid.store.schemas import PART
from stitchgrid.store.snapshots import Snapshots, Tier, manifest_name
from stitchgrid.store.sweeps import Sweeps

RESUME = "resume the sweep: its cells are computed again"
RELAUNCH = "launch the job file again: no result is lost"
RECOMPACT = "nothing: no result is lost, and it is made anew"
HARMLESS = "no reader looks at it; delete it when you like"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A file that is not as it should be."""

    file: str  # relative to the store
    problem: str
    advice: str  # what to do, once `check --repair` has set the file aside
    is_damage: bool = True
    goes_with: tuple[str, ...] = field(default=())  # further files that are worthless without this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found."""

    num_files: int  # that were verified
    findings: tuple[Finding, ...]

    @property
    def damage(self) -> tuple[Finding, ...]:
        """Return what is wrong, without what is harmless."""
        return tuple(one for one in self.findings if one.is_damage)


class Checker:
    """One pass over a store."""

    def __init__(self, files: Files):
        self.files = files
        self.num_files = 0

    def run(self) -> Report:
        """Return every file that is damaged or does not belong to the store."""
        checks = (self._parts(), self._snapshots(), self._artefacts(), self._sweeps(), self._leftovers())
        findings = [finding for check in checks for finding in check]
        return Report(num_files=self.num_files + 1, findings=tuple(findings))  # and store.json, read when opened

    def _parts(self) -> Iterator[Finding]:
        parts = Parts(self.files)
        for name in self.files.names(PARTS):
            self.num_files += 1
            if PartName.parse(name) is None:
                yield _foreign(f"{PARTS}/{name}")
                continue
            try:
                parts.read_one(name, PART.names)
            except (DamagedFileError, StoreError) as problem:
                yield Finding(file=f"{PARTS}/{name}", problem=str(problem), advice=RESUME)

    def _snapshots(self) -> Iterator[Finding]:
        snapshots = Snapshots(self.files)
        for number in snapshots.numbers():
            self.num_files += 1
            try:
                snapshots.read(number)
            except (DamagedFileError, StoreError) as problem:
                yield Finding(file=manifest_name(number), problem=str(problem), advice=RECOMPACT)
        newest = snapshots.newest()[0]
        tiers = {tier.file: tier for tier in newest.tiers}
        for name in sorted(newest.files()):
            if name and not self.files.exists(name):
                yield Finding(file=name, problem="is missing", advice=RESUME if name in tiers else RECOMPACT)
        for folder, is_data in ((SNAPSHOT_DATA, True), (EXTRACTS, False)):
            for name in self.files.names(folder):
                self.num_files += 1
                if DataName.parse(name) is None:
                    yield _foreign(f"{folder}/{name}")
                else:
                    yield from self._snapshot_file(snapshots, f"{folder}/{name}", tiers, is_data=is_data)

    def _snapshot_file(
        self, snapshots: Snapshots, name: str, tiers: dict[str, Tier], *, is_data: bool
    ) -> Iterator[Finding]:
        try:
            if is_data:
                snapshots.rows(Tier(file=name, num_rows=0, ids=""), PART.names)
            else:
                snapshots.content(name)
        except (DamagedFileError, StoreError) as problem:
            tier = tiers.get(name)
            advice = RESUME if is_data else RECOMPACT
            goes_with = tuple(one.file for one in tier.results.values()) if tier else ()
            yield Finding(file=name, problem=str(problem), advice=advice, goes_with=goes_with)

    def _artefacts(self) -> Iterator[Finding]:
        for kind in self.files.folders("artefacts"):
            names = self.files.names(f"artefacts/{kind}")
            needed: set[str] = set()
            for name in names if kind in SUFFIXES else ():
                if name.endswith(".manifest"):
                    self.num_files += 1
                    yield from self._artefact(kind, name.removesuffix(".manifest"), needed)
            for name in names:
                if not name.endswith(".manifest") and f"artefacts/{kind}/{name}" not in needed:
                    yield _foreign(f"artefacts/{kind}/{name}")

    def _artefact(self, kind: str, key: str, needed: set[str]) -> Iterator[Finding]:
        manifest = Layout.manifest(kind, key)
        advice = f"resume the sweep: the {kind} is made anew"
        found, problem = self._json(manifest)
        data_digest = str((found or {}).get("digest"))
        if problem or len(data_digest) != len(content_digest(b"")):
            yield Finding(file=manifest, problem=problem or "names no digest", advice=advice)
            return
        data = Layout.artefact(kind, key, data_digest)
        needed.add(data)
        self.num_files += 1
        try:
            intact = content_digest(self.files.read(data)) == data_digest
            problem = None if intact else "content differs from the digest in its manifest"
        except StoreError as error:
            problem = str(error)
        if problem:
            yield Finding(file=data, problem=problem, advice=advice, goes_with=(manifest,))

    def _sweeps(self) -> Iterator[Finding]:
        for sweep in self.files.folders(SWEEPS):
            for revision in self.files.folders(Layout.sweep(sweep)):
                if REVISION_NAME.fullmatch(revision):
                    yield from self._revision(sweep, int(revision))
            for name in Journal(self.files).round_files(sweep):
                advice = "nothing: the attempts of one round are not counted"
                yield from self._entry(name, round_problem, advice)
            if self.files.exists(Layout.heartbeat(sweep)):
                yield from self._entry(Layout.heartbeat(sweep), beat_problem, "nothing: the next launch writes it")

    def _revision(self, sweep: str, revision: int) -> Iterator[Finding]:
        here = {name: Layout.revision(sweep, revision, name) for name in (JOB, PLAN, *(f"{t}.parquet" for t in TABLES))}
        present = set(self.files.names(f"{Layout.sweep(sweep)}/{revision:04d}"))
        self.num_files += len(present & here.keys())
        yield from (_foreign(f"{Layout.sweep(sweep)}/{revision:04d}/{name}") for name in sorted(present - here.keys()))
        if JOB in present and (problem := self._json(here[JOB])[1]):
            yield Finding(file=here[JOB], problem=problem, advice=RELAUNCH)
        if PLAN not in present:
            return
        for name, problem in Sweeps(self.files).plan_problems(sweep, revision):
            others = tuple(here[one] for one in here if one not in (JOB, name) and one in present)
            yield Finding(file=here[name], problem=problem, advice=RELAUNCH, goes_with=others)

    def _entry(self, name: str, judge: Any, advice: str) -> Iterator[Finding]:
        self.num_files += 1
        value, problem = self._json(name)
        if problem := problem or judge(value):
            yield Finding(file=name, problem=problem, advice=advice)

    def _leftovers(self) -> Iterator[Finding]:
        names = self.files.leftovers() if isinstance(self.files, LocalFiles) else ()
        yield from (
            Finding(file=name, problem="left by a writer that was stopped", advice=HARMLESS, is_damage=False)
            for name in names
        )

    def _json(self, name: str) -> tuple[dict[str, Any], str | None]:
        """Return a JSON object, and what is wrong with it."""
        try:
            return json_object(self.files.read(name)), None
        except (DamagedFileError, StoreError) as problem:
            return {}, str(problem)


def _foreign(name: str) -> Finding:
    return Finding(file=name, problem="not a file of a store", advice=HARMLESS, is_damage=False)
