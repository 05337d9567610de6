"""Verify every file of a store: which are damaged, which do not belong to the store, and what to do about them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from stitchgrid.errors import NO_ANSWER, NO_PERMISSION, StoreError, UnseenError
from stitchgrid.store.artefacts import artefact_content
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import (
    ArtefactDocument,
    BeatDocument,
    ClaimDocument,
    CodeDocument,
    Document,
    RequestsDocument,
    RoundDocument,
    read_document,
)
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.folder import CLOSED, LEFT
from stitchgrid.store.journal import is_round
from stitchgrid.store.layout import (
    CODE,
    EXTRACTS,
    JOB,
    PARTS,
    PLAN,
    REQUESTS,
    SNAPSHOT_DATA,
    SNAPSHOTS,
    SUFFIXES,
    SWEEPS,
    TABLES,
    DataName,
    ManifestName,
    PartName,
    StoreLayout,
    is_safe,
)
from stitchgrid.store.lease import claim_number
from stitchgrid.store.logs import Logs
from stitchgrid.store.parts import Parts
from stitchgrid.store.reading import contents
from stitchgrid.store.schemas import PART
from stitchgrid.store.snapshots import Snapshots, manifest_file, unlisted_tiers
from stitchgrid.store.sweeps import Sweeps
from stitchgrid.store.tiers import Snapshot, Tier
from stitchgrid.store.unlisted_files import count_missing

RESUME = "resume the sweep: its cells are computed again"
RELAUNCH = "launch the job file again: no result is lost"
RECOMPACT = "nothing: no result is lost, and the file is made again"
UNFOLLOWED = "no command follows or opens it; what it held of the store is missing"
UNNOTED = "nothing: no result is lost"
SWEEP_FOLDERS = ("journal", "claims", "logs")
HEARTBEAT = "heartbeat.json"
ASK_AGAIN = "ask again with --recompute, if its cells are not there yet"
TAKE_BACK = "--repair, or the next compaction, recovers its rows"
UNFINISHED = f"a merge or compaction is still running or was stopped: run it again; {TAKE_BACK}"
LEFT_OVER = "all its rows are also in other files of the store; the next compaction, or 'stitchgrid gc', deletes it"
UNLISTED = "no snapshot lists it"
UNSEEN = {
    NO_PERMISSION: "ask its owner to let others read it; nobody else can say whether it is sound",
    NO_ANSWER: "check again when its file system answers",
}
HARMLESS = "no reader uses it; delete it when you like"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFinding:
    """A file that is not as it should be."""

    file: str  # relative to the store
    problem: str
    advice: str  # what to do, once `check --repair` has set the file aside
    is_damage: bool = True
    goes_with: tuple[str, ...] = field(default=())  # further files that are worthless without this one
    is_unseen: bool = False  # it could not be verified: no permission, or its file system does not answer
    is_sound: bool = False  # the file is sound, but no snapshot lists it: repair recovers its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found."""

    num_files: int  # that were verified
    findings: tuple[FileFinding, ...]

    @property
    def is_repairable(self) -> bool:
        """Return whether a repair would do something."""
        return any(one.is_damage or one.is_sound for one in self.findings)

    @property
    def unseen(self) -> tuple[FileFinding, ...]:
        """Return the files that could not be verified from here."""
        return tuple(one for one in self.findings if one.is_unseen)

    @property
    def damage(self) -> tuple[FileFinding, ...]:
        """Return the findings that are damage, without the harmless ones."""
        return tuple(one for one in self.findings if one.is_damage)


class Checker:
    """One pass over a store."""

    def __init__(self, files: Files):
        self.files = files
        self.num_files = 0

    def run(self) -> Report:
        """Return every file that is damaged or does not belong to the store."""
        checks = (self._parts(), self._snapshots(), self._artefacts(), self._sweeps())
        findings = [_judged(finding) for check in checks for finding in check]
        strangers = {one.file: one for one in self._strangers()}
        findings = [one for one in findings if one.is_damage or one.is_unseen or one.file not in strangers]
        findings += [one for name, one in strangers.items() if name not in {known.file for known in findings}]
        return Report(num_files=self.num_files + 1, findings=tuple(findings))  # and store.json, read when opened

    def _parts(self) -> Iterator[FileFinding]:
        names = self.files.names(PARTS)
        self.num_files += len(names)
        yield from (_foreign(f"{PARTS}/{name}") for name in names if PartName.parse(name) is None)
        for one in Parts(self.files).problems([name for name in names if PartName.parse(name)]):
            yield FileFinding(file=one.file, problem=one.reason, advice=RESUME)

    def _snapshots(self) -> Iterator[FileFinding]:
        snapshots = Snapshots(self.files)
        names = self.files.names(SNAPSHOTS)
        yield from (_foreign(f"{SNAPSHOTS}/{name}") for name in names if ManifestName.parse(name) is None)
        for name in snapshots.names():
            self.num_files += 1
            try:
                snapshots.read(name)
            except (DamagedFileError, StoreError) as problem:
                yield FileFinding(file=manifest_file(name), problem=str(problem), advice=RECOMPACT)
        newest = snapshots.newest()[0]
        tiers = {tier.file: tier for tier in newest.all_tiers}
        schemas, owners = newest.schemas(), self._owners(newest)
        for name in sorted(newest.files()):
            if name and not self.files.exists(name):
                yield FileFinding(file=name, problem="is missing", advice=RESUME if name in tiers else RECOMPACT)
        unlisted = {tier.file for tier in unlisted_tiers(self.files, newest)}
        for folder, is_data in ((SNAPSHOT_DATA, True), (EXTRACTS, False)):
            for name in self.files.names(folder):
                self.num_files += 1
                if DataName.parse(name) is None:
                    yield _foreign(f"{folder}/{name}")
                else:
                    full = f"{folder}/{name}"
                    found = list(self._snapshot_file(snapshots, full, tiers, schemas, owners, is_data=is_data))
                    yield from found or (self._unlisted(full) if full in unlisted else ())

    def _unlisted(self, name: str) -> Iterator[FileFinding]:
        """Yield the finding about a sound data file that no snapshot lists."""
        found = contents(self.files)
        promise = DataName.parse(name.rpartition("/")[2])
        missing = count_missing(self.files, found, name)
        if missing:
            is_lost = promise is not None and promise.number <= found.snapshot.number
            problem = f"{UNLISTED}, and {missing} of its rows are nowhere else"
            advice = TAKE_BACK if is_lost else UNFINISHED
            yield FileFinding(file=name, problem=problem, advice=advice, is_damage=is_lost, is_sound=True)
        elif not self._was_listed(name):
            yield FileFinding(file=name, problem=UNLISTED, advice=LEFT_OVER, is_damage=False)

    def _was_listed(self, name: str) -> bool:
        """Return whether a manifest that no longer counts lists a file; old stores keep such manifests."""
        snapshots = Snapshots(self.files)
        for one in snapshots.names():
            try:
                if name in snapshots.read(one).files():
                    return True
            except (DamagedFileError, StoreError):
                continue
        return False

    def _owners(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the sweep of each extract that was made from the latest plan of its sweep."""
        results = [one for tier in snapshot.tiers for one in tier.results.items()]
        found = {}
        for sweep, extract in (*snapshot.cells.items(), *results):
            try:
                if extract.is_current(Sweeps(self.files).stamp(sweep), {extract.file}):
                    found[extract.file] = sweep
            except StoreError:  # its plan is damaged, and reported as such
                continue
        return found

    def _snapshot_file(
        self,
        snapshots: Snapshots,
        name: str,
        tiers: Mapping[str, Tier],
        schemas: Mapping[str, pa.Schema],
        owners: Mapping[str, str],
        *,
        is_data: bool,
    ) -> Iterator[FileFinding]:
        try:
            if is_data:
                snapshots.rows(Tier(file=name, num_rows=0, ids=""), PART.names)
            elif name in schemas:
                table = snapshots.table(name, schemas[name])
                if name in owners:
                    Sweeps(self.files).check_cells(owners[name], table)
            else:  # of an earlier snapshot
                snapshots.content(name)
        except (DamagedFileError, StoreError) as problem:
            tier = tiers.get(name)
            advice = RESUME if is_data else RECOMPACT
            goes_with = tuple(one.file for one in tier.results.values()) if tier else ()
            yield FileFinding(file=name, problem=str(problem), advice=advice, goes_with=goes_with)

    def _artefacts(self) -> Iterator[FileFinding]:
        for kind in self.files.folders("artefacts"):
            names = self.files.names(f"artefacts/{kind}")
            needed: set[str] = set()
            for name in names if kind in SUFFIXES else ():
                if name.endswith(".manifest") and is_safe(name):
                    self.num_files += 1
                    yield from self._artefact(kind, name.removesuffix(".manifest"), needed)
            for name in names:
                is_manifest = kind in SUFFIXES and name.endswith(".manifest") and is_safe(name)
                if not is_manifest and f"artefacts/{kind}/{name}" not in needed:
                    yield _foreign(f"artefacts/{kind}/{name}")

    def _artefact(self, kind: str, key: str, needed: set[str]) -> Iterator[FileFinding]:
        manifest = StoreLayout.manifest(kind, key)
        advice = f"resume the sweep: the {kind} is made anew"
        found, problem = self._json(manifest, ArtefactDocument)
        if problem:
            yield FileFinding(file=manifest, problem=problem, advice=advice)
            return
        data = StoreLayout.artefact(kind, key, found["digest"])
        needed.add(data)
        self.num_files += 1
        try:
            artefact_content(self.files, kind, key)
        except (DamagedFileError, StoreError) as error:
            yield FileFinding(file=data, problem=str(error), advice=advice, goes_with=(manifest,))

    def _sweeps(self) -> Iterator[FileFinding]:
        for sweep in self.files.folders(SWEEPS):
            if not is_safe(sweep):
                yield _foreign(f"{SWEEPS}/{sweep}")
                continue
            try:
                yield from self._sweep(sweep)
            except UnseenError as problem:
                yield FileFinding(file=StoreLayout.sweep(sweep), problem=str(problem), advice=UNSEEN[problem.why])

    def _sweep(self, sweep: str) -> Iterator[FileFinding]:
        folder = StoreLayout.sweep(sweep)
        for name in self.files.folders(folder):
            if revision := StoreLayout.revision_number(name):
                yield from self._revision(sweep, revision)
            elif name not in SWEEP_FOLDERS:
                yield _foreign(f"{folder}/{name}")
        yield from self._journal(sweep)
        advice = "nothing: the next launch writes its own"
        yield from self._numbered(StoreLayout.claims(sweep), claim_number, ClaimDocument, advice)
        if self.files.exists(StoreLayout.heartbeat(sweep)):
            yield from self._entry(StoreLayout.heartbeat(sweep), BeatDocument, "nothing: the next launch writes it")
        if self.files.exists(StoreLayout.requests(sweep)):
            yield from self._entry(StoreLayout.requests(sweep), RequestsDocument, ASK_AGAIN)
        known = (HEARTBEAT, REQUESTS)
        yield from (_foreign(f"{folder}/{name}") for name in self.files.names(folder) if name not in known)
        yield from self._logs(sweep)

    def _journal(self, sweep: str) -> Iterator[FileFinding]:
        for launch in self.files.folders(StoreLayout.journal(sweep)):
            if is_safe(launch):
                advice = "nothing: the attempts of one round are not counted"
                yield from self._numbered(StoreLayout.launch(sweep, launch), is_round, RoundDocument, advice)
            else:
                yield _foreign(f"{StoreLayout.journal(sweep)}/{launch}")

    def _logs(self, sweep: str) -> Iterator[FileFinding]:
        for unit in self.files.folders(StoreLayout.logs(sweep)):
            if not is_safe(unit):
                yield _foreign(f"{StoreLayout.logs(sweep)}/{unit}")
                continue
            for one in Logs(self.files).problems(sweep, unit):
                yield FileFinding(file=one.file, problem=one.reason, advice=UNNOTED)

    def _numbered(
        self, folder: str, is_one: Callable[[str], object], kind: type[Document], advice: str
    ) -> Iterator[FileFinding]:
        """Check the documents in a folder."""
        for name in self.files.names(folder):
            if is_one(name):
                yield from self._entry(f"{folder}/{name}", kind, advice)
            else:
                self.num_files += 1
                yield _foreign(f"{folder}/{name}")

    def _revision(self, sweep: str, revision: int) -> Iterator[FileFinding]:
        here = {
            name: StoreLayout.revision(sweep, revision, name)
            for name in (JOB, CODE, PLAN, *(f"{t}.parquet" for t in TABLES))
        }
        present = set(self.files.names(f"{StoreLayout.sweep(sweep)}/{revision:04d}"))
        self.num_files += len(present & here.keys())
        yield from (
            _foreign(f"{StoreLayout.sweep(sweep)}/{revision:04d}/{name}") for name in sorted(present - here.keys())
        )
        if JOB in present and (problem := self._json(here[JOB])[1]):
            yield FileFinding(file=here[JOB], problem=problem, advice=RELAUNCH)
        if CODE in present and (problem := self._json(here[CODE], CodeDocument)[1]):
            yield FileFinding(file=here[CODE], problem=problem, advice=RELAUNCH)
        if PLAN not in present:
            return
        for name, problem in Sweeps(self.files).plan_problems(sweep, revision):
            others = tuple(here[one] for one in here if one not in (JOB, CODE, name) and one in present and name != JOB)
            yield FileFinding(file=here[name], problem=problem, advice=RELAUNCH, goes_with=others)

    def _entry(self, name: str, kind: type[Document], advice: str) -> Iterator[FileFinding]:
        self.num_files += 1
        if problem := self._json(name, kind)[1]:
            yield FileFinding(file=name, problem=problem, advice=advice)

    def _strangers(self) -> Iterator[FileFinding]:
        for one in self.files.strangers() if isinstance(self.files, LocalFiles) else ():
            if one.problem.startswith(CLOSED):
                advice = UNSEEN[NO_PERMISSION]
                yield FileFinding(file=one.name, problem=one.problem, advice=advice, is_damage=False, is_unseen=True)
                continue
            advice = HARMLESS if one.problem == LEFT or not one.is_unsafe else UNFOLLOWED
            yield FileFinding(file=one.name, problem=one.problem, advice=advice, is_damage=one.is_unsafe)

    def _json(self, name: str, kind: type[Document] = Document) -> tuple[dict[str, Any], str | None]:
        """Return a JSON object, and what is wrong with it."""
        try:
            return read_document(self.files, name, kind), None
        except (DamagedFileError, StoreError) as problem:
            return {}, str(problem)


def _judged(found: FileFinding) -> FileFinding:
    """Return a finding, but not as damage if its file could only not be read from here."""
    advice = next((advice for why, advice in UNSEEN.items() if found.problem.startswith(why)), None)
    return found if advice is None else replace(found, advice=advice, is_damage=False, is_unseen=True)


def _foreign(name: str) -> FileFinding:
    return FileFinding(file=name, problem="not a file of a store", advice=HARMLESS, is_damage=False)
