"""What a snapshot consists of: tiers of rows, extracts of them, and the manifest that lists both."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from stitchgrid.store.layout import DataName
from stitchgrid.store.schemas import CELL_STATES, IDS, RESULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """A table for one revision of a sweep, made from the rows of a snapshot, so that queries need not join it."""

    revision: int
    file: str  # relative to the store
    plan: str = ""  # digest of the revision's manifest, since numbers repeat if a sweep was removed; "" in old ones

    def is_current(self, stamp: tuple[int, str] | None, here: Container[str]) -> bool:
        """Return whether it was made for this revision and plan, and its file is among those that exist."""
        return stamp == (self.revision, self.plan or (stamp or (0, ""))[1]) and self.file in here


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Rows that were merged together; no (cell, metric) has a value in two tiers of a snapshot."""

    file: str  # relative to the store
    num_rows: int
    ids: str  # file of the distinct cell ids
    results: Mapping[str, Extract] = field(default_factory=dict)  # sweep -> its rows, joined with its names


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The result of one compaction, or of several that count together."""

    number: int
    tiers: tuple[Tier, ...] = ()
    cells: Mapping[str, Extract] = field(default_factory=dict)  # sweep -> its cells with their status
    replaces: frozenset[str] = frozenset()  # names of the parts whose rows are in the tiers
    before: frozenset[str] = frozenset()  # files of the snapshots it follows, kept for processes that read them
    follows: frozenset[str] = frozenset()  # names of the manifests that no longer count because of this one
    loose: tuple[Tier, ...] = ()  # of further snapshots: their rows may also be in the tiers
    names: frozenset[str] = frozenset()  # of all manifests that existed when it was read, its own included

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the columns that each of its extracts has to have."""
        of_cells = {extract.file: CELL_STATES for extract in self.cells.values()}
        of_results = {one.file: RESULTS for tier in self.tiers for one in tier.results.values()}
        return {**of_cells, **of_results, **{tier.ids: IDS for tier in self.tiers}}

    @property
    def all_tiers(self) -> tuple[Tier, ...]:
        """All tiers, those of further snapshots among them."""
        return self.tiers + self.loose

    def files(self) -> set[str]:
        """Return all files that the snapshot needs."""
        extracts = [*self.cells.values(), *(one for tier in self.tiers for one in tier.results.values())]
        own = [name for tier in self.all_tiers for name in (tier.file, tier.ids) if name]
        return {*own, *(extract.file for extract in extracts)}


EMPTY = Snapshot(number=0)


def as_tier(file: str) -> Tier:
    """Return a data file as a tier without a list of its ids, as no manifest describes it."""
    promise = DataName.parse(file.rpartition("/")[2])
    assert promise is not None
    return Tier(file=file, num_rows=promise.num_rows, ids="")


def joint(heads: Sequence[Snapshot]) -> Snapshot:
    """Return snapshots that do not follow each other as one: the tiers of the largest, and all others as loose tiers.

    Their extracts are dropped: they may be of another sweep of the same name.
    """
    first, *others = sorted(heads, key=lambda one: -sum(tier.num_rows for tier in one.tiers))
    tiers = {tier.file: replace(tier, results={}) for tier in first.tiers}
    loose = {tier.file: replace(tier, results={}) for one in others for tier in one.tiers if tier.file not in tiers}
    return Snapshot(
        number=first.number,
        tiers=tuple(tiers.values()),
        loose=tuple(loose.values()),
        replaces=frozenset().union(*(one.replaces for one in heads)),
        before=frozenset().union(*(one.before for one in heads)),
    )


def parsed(number: int, body: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot of this number that the body of a manifest describes."""

    def extracts(found: Mapping[str, Any]) -> dict[str, Extract]:
        return {sweep: Extract(**one) for sweep, one in found.items()}

    return Snapshot(
        number=number,
        tiers=tuple(Tier(**{**one, "results": extracts(one["results"])}) for one in body["tiers"]),
        cells=extracts(body["cells"]),
        replaces=frozenset(body["replaces"]),
        follows=frozenset(body.get("follows", ())),
        before=frozenset(body.get("before", ())),
    )
