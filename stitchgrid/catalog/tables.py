"""The Arrow tables behind the views: read from a store, checked, without duplicates."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from stitchgrid.catalog.views import TablesShape
from stitchgrid.errors import StoreError
from stitchgrid.matchers.describe import as_record
from stitchgrid.matchers.evidence import MOST_GROUPS, t_quantiles
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.store import Damage, Store
from stitchgrid.store.result_tables import state_columns
from stitchgrid.store.row_status import COLUMNS, row_status
from stitchgrid.store.schemas import ALL_TABLES, PART, TEXT, as_dictionaries, with_sweep

ATTEMPTS = pa.schema([("sweep", TEXT), ("shard", TEXT), ("attempts", pa.int64())])
RUNNING = pa.schema([("sweep", TEXT), ("shard", TEXT)])
QUANTILES = pa.schema([("degrees", pa.int64()), ("quantile", pa.float64())])
MATCHER_TABLE = pa.schema(
    [
        ("matcher", TEXT),
        ("family", TEXT),
        ("trained", pa.bool_()),
        ("score_metric", TEXT),
        ("higher_is_similar", pa.bool_()),
        ("summary", TEXT),
        ("symmetric", pa.bool_()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables from which the views are made."""

    by_name: Mapping[str, pa.Table | pa.dataset.Dataset]  # by their names in DuckDB
    shape: TablesShape
    sweeps: tuple[str, ...]  # those that have a complete revision
    damaged: tuple[Damage, ...]
    num_loose_parts: int  # parts that are in no snapshot, read one by one
    found_late: list[Damage]  # files that a query found damaged while it was reading
    look_closely: Callable[[], list[Damage]]  # reads every file that queries read in pieces, and returns the damaged


def load_tables(
    store: Store, *, now: datetime | None = None, without: frozenset[str] = frozenset(), values: bool = True
) -> Tables:
    """Read the tables behind the views; the rows of snapshots are read later, when a query needs them.

    Damaged files are left out and listed in the result.

    Args:
        store: The store.
        now: The time that decides whether a launch is still running; None: the present.
        without: Files to leave out, because a query found them damaged.
        values: Whether the values of loose rows are read; if not, only the columns that give the status of cells.
    """
    found = store.scan(PART.names if values else COLUMNS, without)
    sweeps, names, damaged = _sweep_tables(store, found.ready)
    has_evidence = any(_has_evidence(store.read_plan_info(name)) for name in names)
    tables = {
        "_loose": found.loose,
        "_loose_cells": _loose_cells(found.loose),
        "_moved": pa.table({"cell_id": found.moved}),
        **{f"_{name}": table for name, table in sweeps.items()},
        "_attempts": _table(ATTEMPTS, _attempts(store, names)),
        "_running": _table(RUNNING, _running(store, names, now or datetime.now(UTC))),
        "_matchers": _table(MATCHER_TABLE, map(_matcher, _kinds(store, names))),
        "_quantiles": _table(QUANTILES, _quantiles() if has_evidence and values else ()),
    }
    datasets = {"_rows": found.rows, "_ready_results": found.results, "_ready_cells": found.cells}
    return Tables(
        by_name={**tables, **{name: dataset for name, dataset in datasets.items() if dataset is not None}},
        shape=TablesShape(
            has_snapshot=found.rows is not None,
            has_ready=bool(found.ready),
            has_others=tables["_cells"].num_rows > 0,
            has_loose=found.loose.num_rows > 0,
            has_moved=len(found.moved) > 0,
            has_running=tables["_running"].num_rows > 0,
            has_values=values,
            has_evidence=has_evidence,
        ),
        sweeps=tuple(names),
        damaged=(*found.damaged, *damaged),
        num_loose_parts=found.num_loose_parts,
        found_late=found.found_late,
        look_closely=found.look_closely,
    )


def _has_evidence(info: Mapping[str, Any]) -> bool:
    return bool(info.get("groups") or info.get("shuffles"))


def _quantiles() -> Iterable[dict[str, Any]]:
    """Yield the quantiles of Student's t by degrees of freedom, for intervals that SQL computes from replicates."""
    return ({"degrees": degrees, "quantile": value} for degrees, value in enumerate(t_quantiles(MOST_GROUPS - 1), 1))


def _loose_cells(rows: pa.Table) -> pa.Table:
    """Return the status of the cells of loose rows, one row per cell."""
    ids = pc.unique(rows["cell_id"])
    return state_columns(row_status(rows, ids), np.arange(len(ids))).add_column(0, "cell_id", ids)


def _sweep_tables(store: Store, ready: Set[str]) -> tuple[dict[str, pa.Table], list[str], list[Damage]]:
    """Return the tables of every sweep's latest complete revision, the names of these sweeps, and damaged files.

    The table of cells has only the sweeps that are not `ready`.
    """
    found: dict[str, list[pa.Table]] = {name: [table] for name, table in _no_tables().items()}
    names, damaged = [], []
    for sweep in store.sweep_names():
        wanted = [name for name in ALL_TABLES if name != "cells" or sweep not in ready]
        try:
            tables = store.read_plan_tables(sweep, wanted)
        except StoreError as problem:
            damaged.append(Damage(file=f"sweeps/{sweep}", reason=str(problem)))
            continue
        names += [sweep] * bool(tables)
        for name, table in tables.items():
            found[name].append(with_sweep(sweep, as_dictionaries(table)))
    return {name: pa.concat_tables(tables).unify_dictionaries() for name, tables in found.items()}, names, damaged


@cache
def _no_tables() -> dict[str, pa.Table]:
    """Return the tables of a store without sweeps: all are empty."""
    return {name: with_sweep("", as_dictionaries(schema.empty_table())) for name, schema in ALL_TABLES.items()}


def _attempts(store: Store, sweeps: Sequence[str]) -> Iterable[dict[str, Any]]:
    for sweep in sweeps:
        counts = Counter(_shard_of(attempt) for attempt in store.attempts(sweep))
        yield from ({"sweep": sweep, "shard": shard, "attempts": count} for shard, count in counts.items())


def _running(store: Store, sweeps: Sequence[str], now: datetime) -> Iterable[dict[str, Any]]:
    for sweep in sweeps:
        beat = store.leases.heartbeat(sweep, now) or {}
        shards = {_shard_of(unit) for unit in beat.get("running", ())}
        yield from ({"sweep": sweep, "shard": shard} for shard in sorted(shards))


def _shard_of(unit: Mapping[str, Any]) -> str:
    """Return the planned shard of a unit: a piece of a shard that was cut in two names that shard under `shard`."""
    return str(unit.get("shard") or unit.get("unit", ""))


def _kinds(store: Store, sweeps: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records of all kinds: those of this version, and those of stored sweeps that it does not know."""
    known = {name: as_record(about) for name, about in MATCHERS.items()}
    for sweep in sweeps:
        for record in store.read_plan_info(sweep).get("matchers", ()):
            known.setdefault(record["kind"], record)
    return list(known.values())


def _matcher(record: Mapping[str, Any]) -> dict[str, Any]:
    score = next(metric for metric in record["metrics"] if metric["name"] == record["score"])
    return {
        "matcher": record["kind"],
        "family": record["family"],
        "trained": record["is_trained"],
        "score_metric": record["score"],
        "higher_is_similar": score["higher_is_similar"],
        "summary": record["summary"],
        "symmetric": record["symmetric"],
        "low": score["low"],
        "high": score["high"],
    }


def _table(schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)
