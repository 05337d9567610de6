"""Snapshots: many parts merged into a few files, each snapshot a manifest that is written once.

A manifest is named by its content and lists the manifests that it follows. Every manifest that no other follows counts:
usually one, and several where stores were copied into one another, until the next compaction merges them. Manifests of
old stores have a number alone; of these the highest counts. A reader lists parts first and manifests second: every part
that was deleted before the first listing is in a snapshot of the second. Data files hold rows as parts do. Extracts
hold tables that readers would join from them; they can be deleted at any time, and the next compaction makes them
again.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime

from stitchgrid import __version__
from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.data_files import DataFiles
from stitchgrid.store.documents import SnapshotDocument, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.layout import (
    EXTRACTS,
    HIGHEST,
    PARTS,
    SNAPSHOTS,
    DataName,
    ManifestName,
    content_digest,
)
from stitchgrid.store.opening import raise_format
from stitchgrid.store.tiers import EMPTY, Snapshot, Tier, as_tier, joint, parsed


class Snapshots(DataFiles):
    """All snapshots of a store."""

    def newest(self) -> tuple[Snapshot, tuple[Damage, ...]]:
        """Return the snapshot that counts, or `EMPTY`, and the damaged manifests that might count.

        If one is damaged, all data files count; rows may then appear twice.
        """
        names = self.names()
        if not names:
            return EMPTY, ()
        heads: list[Snapshot] = []
        damaged: list[Damage] = []
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            gone = set() if _parsed(name).digest else {one for one in waiting if not _parsed(one).digest}
            try:
                heads.append(self.read(name))
                gone |= heads[-1].follows
            except (DamagedFileError, StoreError) as problem:
                damaged.append(Damage(file=manifest_file(name), reason=str(problem)))
            waiting = [one for one in waiting if one not in gone]
        number, there = number_of(names[-1]), frozenset(names)
        if damaged:
            return Snapshot(number=number, loose=tuple(map(as_tier, self.data_files())), names=there), tuple(damaged)
        if len(heads) == 1:
            return replace(heads[0], names=there), ()
        return replace(joint(heads), number=number, names=there), ()

    def names(self) -> list[str]:
        """Return the names of all manifests, sound or not, by their numbers."""
        return sorted(filter(ManifestName.parse, self.files.names(SNAPSHOTS)), key=lambda name: (number_of(name), name))

    def read(self, name: str) -> Snapshot:
        """Return the snapshot of a manifest.

        Raises:
            DamagedFileError: If its manifest is damaged.
            StoreError: If it cannot be read.
        """
        found = read_document(self.files, manifest_file(name), SnapshotDocument)
        body = json.dumps(found["snapshot"], sort_keys=True).encode()
        if content_digest(body) != found["digest"] or _parsed(name).digest not in ("", found["digest"]):
            raise DamagedFileError("content differs from the digest in it")
        try:
            return parsed(number_of(name), found["snapshot"])
        except TypeError as problem:  # keys of a later version
            raise DamagedFileError(f"not readable as a snapshot ({problem!r})") from problem

    def publish(self, snapshot: Snapshot) -> str | None:
        """Write the manifest of a snapshot, which follows all manifests that it knows; return its name.

        None, and the snapshot does not count, if another compaction was faster. If both write within the same instant,
        both may count; the next compaction then merges their rows.
        """
        body = {
            "tiers": [asdict(tier) for tier in snapshot.tiers],
            "cells": {sweep: asdict(extract) for sweep, extract in snapshot.cells.items()},
            "replaces": sorted(snapshot.replaces),
            "follows": sorted(snapshot.names),
            "before": sorted(snapshot.before),
        }
        digest = content_digest(json.dumps(body, sort_keys=True).encode())
        manifest = {
            "created_at": datetime.now(UTC).isoformat(),
            "version": __version__,
            "digest": digest,
            "snapshot": body,
        }
        self.require_number(snapshot.number)
        name = str(ManifestName(number=snapshot.number, digest=digest))
        if not snapshot.names.issuperset(self.names()):
            return None
        raise_format(self.files)
        if not self.files.write_once(manifest_file(name), json.dumps(manifest, indent=1).encode()):
            return None
        if self._is_first(name, snapshot):
            return name
        self.files.delete(manifest_file(name))
        return None

    def _is_first(self, name: str, snapshot: Snapshot) -> bool:
        """Return whether a manifest that was just written counts, even if others came at the same time."""
        others = set(self.names()) - snapshot.names
        return max(others, key=lambda one: (number_of(one), one), default=name) == name

    def require_number(self, number: int) -> None:
        """Raise a StoreError if no snapshot can have this number."""
        if number > HIGHEST:
            last = next(iter(self.names()[-1:]), manifest_name(number - 1))
            raise StoreError(
                f"no snapshot can follow {manifest_file(last)} in the store {self.files.uri}: no store "
                "counts that far; delete that file, and compact again."
            )

    def delete_unneeded(self, snapshot: Snapshot, merged: Iterable[str]) -> None:
        """Delete what a published snapshot makes superfluous: parts, data files that were merged, old extracts.

        Files of the snapshots before it stay for processes that read them. An extract carries the number of its
        snapshot: an extract with an earlier number that no manifest names is deleted.
        """
        for name in sorted(snapshot.replaces):
            self.files.delete(f"{PARTS}/{name}")
        needed = snapshot.files() | snapshot.before
        for name in sorted(set(merged) - needed):
            self.files.delete(name)
        for one in self.files.names(EXTRACTS):
            promise = DataName.parse(one)
            if promise and promise.number < snapshot.number and f"{EXTRACTS}/{one}" not in needed:
                self.files.delete(f"{EXTRACTS}/{one}")

    def delete_own(self, number: int, names: Iterable[str]) -> None:
        """Delete files that were written for a snapshot of this number and that no manifest of this number needs."""
        needed: set[str] = set()
        for name in self.names():
            if number_of(name) >= number:
                try:
                    needed |= self.read(name).files()
                except (DamagedFileError, StoreError):
                    return
        for one in sorted(set(names) - needed):
            self.files.delete(one)


def number_of(name: str) -> int:
    """Return the number in the name of a manifest."""
    return _parsed(name).number


def _parsed(name: str) -> ManifestName:
    found = ManifestName.parse(name)
    assert found is not None, f"no manifest has the name {name!r}"
    return found


def manifest_file(name: str) -> str:
    """Return where the manifest of this name lies."""
    return f"{SNAPSHOTS}/{name}"


def manifest_name(number: int) -> str:
    """Return the name of the manifest of an old snapshot, which has a number alone."""
    return str(ManifestName(number=number, digest=""))


def unlisted_tiers(files: Files, snapshot: Snapshot) -> list[Tier]:
    """Return the data files that neither a snapshot nor the snapshots before it need."""
    known = snapshot.files() | snapshot.before
    return [as_tier(name) for name in Snapshots(files).data_files() if name not in known]
