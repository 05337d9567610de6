"""How far the sweeps of a store are, from any machine that sees it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.display import clock, pace
from stitchgrid.errors import StoreError, nearest
from stitchgrid.store import Damage, Store, is_fresh


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """How far one sweep is."""

    sweep: str
    num_cells: int
    counts: dict[str, int]  # status -> cells
    reasons: dict[str, int]  # error of failed and quarantined cells -> cells
    is_running: bool
    stage: str | None  # of a running launch
    host: str | None
    num_workers: int  # busy ones
    pace: str  # rate and time left, in words
    heard_seconds_ago: float | None
    running: list[dict[str, Any]]  # unit, worker, since


def read_progress(
    store: Store, sweep: str | None, *, warn: Callable[[tuple[Damage, ...]], None] = lambda _: None
) -> list[SweepProgress]:
    """Return the progress of one sweep, or of all; `warn` is told which files were left out.

    Raises:
        StoreError: If there is no such sweep.
    """
    names = store.sweep_names()
    if sweep is not None and sweep not in names:
        raise StoreError(f"no sweep {sweep!r} in the store {store.uri}; {nearest(sweep, names)}.")
    with Catalog(store) as catalog:
        rows = catalog.query("select sweep, status, error, count(*) as n from cells group by all").to_pylist()
        warn(catalog.damaged)
    return [
        _progress(store, name, [row for row in rows if row["sweep"] == name]) for name in names if sweep in (None, name)
    ]


def _progress(store: Store, name: str, rows: Sequence[dict[str, Any]]) -> SweepProgress:
    counts: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + row["n"]
        if row["error"] is not None:
            reasons[row["error"]] = reasons.get(row["error"], 0) + row["n"]
    beat = store.read_heartbeat(name) or {}
    now = datetime.now(UTC)
    running = bool(beat) and not beat.get("is_over") and is_fresh(beat, now)
    ended = beat.get("num_done", 0) + beat.get("num_failed", 0)
    return SweepProgress(
        sweep=name,
        num_cells=sum(counts.values()),
        counts=dict(sorted(counts.items())),
        reasons=dict(sorted(reasons.items(), key=lambda one: -one[1])),
        is_running=running,
        stage=beat.get("stage") if running else None,
        host=beat.get("host") if running else None,
        num_workers=len(beat.get("running", ())) if running else 0,
        pace=pace(ended, beat["num_total"], beat["seconds"], beat["noun"]) if running and "noun" in beat else "",
        heard_seconds_ago=_seconds_since(beat.get("at"), now),
        running=list(beat.get("running", ())) if running else [],
    )


def _seconds_since(at: object, now: datetime) -> float | None:
    try:
        then = datetime.fromisoformat(str(at))
    except ValueError:
        return None
    return (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()


def as_json(found: Sequence[SweepProgress]) -> str:
    """Return progress for other programs."""
    return json.dumps([asdict(one) for one in found], indent=2)


def as_text(found: Sequence[SweepProgress]) -> str:
    """Return progress for people."""
    return "\n".join(line for one in found for line in _lines(one)) or "The store holds no sweep yet."


def _lines(one: SweepProgress) -> list[str]:
    done = one.counts.get("done", 0)
    rest = ", ".join(f"{count} {status}" for status, count in one.counts.items() if status != "done")
    planned = f"{done} of {one.num_cells} cells done" if one.num_cells else "not planned yet"
    lines = [f"{one.sweep}: {planned}" + (f" ({rest})" if rest else "")]
    if one.is_running:
        details = [f"{one.stage} on {one.host}", f"{one.num_workers} workers busy", one.pace]
        lines.append("  " + ", ".join(detail for detail in details if detail))
        lines += [f"    {what['worker']}: {what['unit']} since {what['since']}" for what in one.running]
    elif one.heard_seconds_ago is not None and done < one.num_cells:
        lines.append(f"  no launch is running; last heard of {clock(one.heard_seconds_ago)} ago")
    lines += [f"  {count} cells: {reason.splitlines()[0]}" for reason, count in list(one.reasons.items())[:10]]
    return lines
