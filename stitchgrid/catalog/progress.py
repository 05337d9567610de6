"""How far the sweeps of a store are, read from any machine that can read the store."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.display import clock, pace
from stitchgrid.errors import StoreError, nearest
from stitchgrid.printable import in_one_line
from stitchgrid.store import Store
from stitchgrid.store.lease import moment

SHORTEST = 1e-3  # seconds after which a rate is computed
SHOWN = 16  # most busy workers and most remarks that are shown
REMARKS = "select sweep, model, unnest(remarks) as remark from models order by all"


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """How far one sweep is."""

    sweep: str
    state: str  # running | complete | failed: all cells ended, some failed | stopped: some cells are left | planning
    num_cells: int
    counts: dict[str, int]  # status -> cells
    reasons: dict[str, int]  # error of failed and quarantined cells -> cells
    is_running: bool
    launch: str | None  # the running launch
    stage: str | None
    host: str | None
    num_workers: int  # number of busy workers
    workers: list[dict[str, Any]]  # worker, node, state, unit, since, num_units, last_finished
    happened: dict[str, int]  # events of this stage -> how often: workers died, units retried, split, given up
    pace: str  # rate and time left, in words
    per_second: float | None  # cells (or networks) per second, in this stage
    seconds_left: float | None
    heard_seconds_ago: float | None
    running: list[dict[str, Any]]  # unit, worker, since
    remarks: list[str]  # on its networks: untrained, at chance, refused, ...

    def _repr_html_(self) -> str:
        told = {"state": self.state, **self.counts, "pace": self.pace, **self.reasons}
        rows = (f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in told.items())
        return f"<table>{''.join(rows)}</table>"


def read_progress(
    store: Store, sweep: str | None, *, warn: Callable[[Catalog], None] = lambda _: None
) -> list[SweepProgress]:
    """Return the progress of one sweep, or of all; `warn` is called with the catalog that was read.

    Raises:
        StoreError: If there is no such sweep.
    """
    names = store.sweep_names()
    if sweep is not None and sweep not in names:
        raise StoreError(f"no sweep {sweep!r} in the store {store.uri}; {nearest(sweep, names)}.")
    with Catalog(store, values=False) as catalog:
        rows = catalog.query("select sweep, status, error, count(*) as n from cells group by all").to_pylist()
        remarks = catalog.query(REMARKS).to_pylist()
        warn(catalog)
        unseen = {one.file.removeprefix("sweeps/") for one in catalog.damaged}
    names = [name for name in names if sweep in (None, name) and name not in unseen]
    beats = store.leases.heartbeats(names, datetime.now(UTC))
    return [
        _progress(
            store,
            name,
            beats.get(name, {}),
            [row for row in rows if row["sweep"] == name],
            [f"{row['model']}: {row['remark']}" for row in remarks if row["sweep"] == name],
        )
        for name in names
    ]


def _progress(
    store: Store, name: str, beat: dict[str, Any], rows: Sequence[dict[str, Any]], remarks: list[str]
) -> SweepProgress:
    counts: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + row["n"]
        if row["error"] is not None:
            reasons[row["error"]] = reasons.get(row["error"], 0) + row["n"]
    now = datetime.now(UTC)
    ended, total = beat.get("num_done", 0) + beat.get("num_failed", 0), beat.get("num_total", 0)
    seconds = beat.get("seconds", 0.0)
    rate = ended / seconds if ended and seconds >= SHORTEST else None
    return SweepProgress(
        sweep=name,
        state=_state(counts, is_running=bool(beat)),
        num_cells=sum(counts.values()),
        counts=dict(sorted(counts.items())),
        reasons=dict(sorted(reasons.items(), key=lambda one: -one[1])),
        is_running=bool(beat),
        launch=beat.get("launch"),
        stage=beat.get("stage"),
        host=beat.get("host"),
        num_workers=len(beat.get("running", ())),
        workers=list(beat.get("workers", ())),
        happened=dict(beat.get("happened", {})),
        pace="" if rate is None else pace(ended, total, seconds, beat.get("noun") or "cells"),
        per_second=rate,
        seconds_left=None if rate is None else (total - ended) / rate,
        heard_seconds_ago=_seconds_since((beat or store.read_heartbeat(name) or {}).get("at"), now),
        running=list(beat.get("running", ())),
        remarks=remarks,
    )


def _state(counts: Mapping[str, int], *, is_running: bool) -> str:
    """Return the state of a sweep in one word, for programs that schedule launches."""
    if is_running:
        return "running"
    if not counts:
        return "planning"
    if counts.keys() & {"pending", "running"}:
        return "stopped"
    return "complete" if counts.keys() == {"done"} else "failed"


def _seconds_since(at: object, now: datetime) -> float | None:
    then = moment(at)
    return None if then is None else (now - then).total_seconds()


def as_json(found: Sequence[SweepProgress]) -> str:
    """Return progress as JSON, for other programs."""
    return json.dumps([asdict(one) for one in found], indent=2)


def as_text(found: Sequence[SweepProgress]) -> str:
    """Return progress as lines of text, for people."""
    return "\n".join(line for one in found for line in _lines(one)) or "The store holds no sweep yet."


def _lines(one: SweepProgress) -> list[str]:
    done = one.counts.get("done", 0)
    rest = ", ".join(f"{count} {status}" for status, count in one.counts.items() if status != "done")
    planned = f"{done} of {one.num_cells} cells done" if one.num_cells else "not planned yet"
    lines = [f"{one.sweep}: {planned}" + (f" ({rest})" if rest else "")]
    if one.is_running:
        details = [f"{one.stage or 'preparing'} on {one.host}", f"{one.num_workers} workers busy", one.pace]
        lines.append("  " + ", ".join(detail for detail in details if detail))
        lines += _worker_lines(one)
    elif one.heard_seconds_ago is not None and done < one.num_cells:
        lines.append(f"  no launch is running; last heartbeat {clock(one.heard_seconds_ago)} ago")
    lines += [f"  {count} cells: {_first_line(reason)}" for reason, count in list(one.reasons.items())[:10]]
    lines += [f"  {remark}" for remark in one.remarks[:SHOWN]]
    if len(one.remarks) > SHOWN:
        lines.append(f"  ... and {len(one.remarks) - SHOWN} more remarks: stitchgrid query networks")
    return list(map(in_one_line, lines))


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _worker_lines(found: SweepProgress) -> list[str]:
    """Return what each busy worker computes, oldest start first; then counts of other workers and of events."""
    busy = sorted(found.running, key=lambda worker: str(worker.get("since")))
    lines = [f"    {one.get('worker')}{_on(one)}: {one['unit']} since {one.get('since')}" for one in busy[:SHOWN]]
    if len(busy) > SHOWN:
        lines.append(f"    ... and {len(busy) - SHOWN} more")
    states = Counter(str(worker.get("state")) for worker in found.workers)
    idle = [f"{count} {state}" for state, count in states.items() if state != "busy"]
    happened = [f"{count} {what.replace('_', ' ')}" for what, count in found.happened.items()]
    if idle or happened:
        lines.append("    " + ", ".join([*idle, *happened]))
    return lines


def _on(worker: Mapping[str, Any]) -> str:
    return f" on {worker['node']}" if worker.get("node") else ""
