"""Several writers of one store at once, randomly interleaved: nothing is lost, shown twice, or wrong."""

import random
import shutil
import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from helpers_store import make_row, plan_tables, planned_cells

from stitchgrid.catalog import Catalog
from stitchgrid.errors import StoreError
from stitchgrid.store import Store
from stitchgrid.store.files import LocalFiles

CELLS = list(planned_cells())[:12]
SWEEPS = ("a", "b")
ACTIONS = ("part", "part", "part", "again", "fail", "compact", "collect", "claim", "merge", "read", "artefact")


class Turns:
    """Lets one of several threads go on at a time, at every access to the store; a seed says which."""

    def __init__(self, seed, count):
        self.random, self.waiting, self.going = random.Random(seed), {}, set(range(count))
        self.lock = threading.Condition()
        self.now = None

    def wait(self, who):
        """Return when it is this thread's turn."""
        with self.lock:
            self.waiting[who] = True
            self._choose()
            while self.now != who:
                self.lock.wait()
            del self.waiting[who]

    def over(self, who):
        """Take a thread out."""
        with self.lock:
            self.going.discard(who)
            self.now = None
            self._choose()

    def _choose(self):
        if self.going and self.going == self.waiting.keys():  # all stand still
            self.now = self.random.choice(sorted(self.waiting))
            self.lock.notify_all()


class SteppedFiles(LocalFiles):
    """Waits for its turn before every access."""

    def __init__(self, root, turns, who):
        super().__init__(root)
        self.turns, self.who, self.one = turns, who, threading.Lock()

    def _turn(self, call, *arguments, **named):
        with self.one:  # a query reads in several threads of its own
            self.turns.wait(self.who)
            return call(*arguments, **named)

    def names(self, folder):
        return self._turn(super().names, folder)

    def read(self, name, *arguments, **named):
        return self._turn(super().read, name, *arguments, **named)

    def write_once(self, name, data):
        return self._turn(super().write_once, name, data)

    def replace(self, name, data):
        return self._turn(super().replace, name, data)

    def delete(self, name):
        return self._turn(super().delete, name)


def planned(folder):
    store = Store.open(folder, create=True)
    tables = plan_tables()
    ids = {cell.cell_id for cell in CELLS}
    mine = [row for row in tables["cells"].to_pylist() if row["cell_id"] in ids]
    tables["cells"] = tables["cells"].from_pylist(mine, schema=tables["cells"].schema)
    for sweep in SWEEPS:
        revision = store.write_job(sweep, {"name": sweep})
        store.write_plan(sweep, revision, **tables, info={"artefacts": {"network": ["k"]}})
    return store


class Writer(threading.Thread):
    """One process, as far as a store can tell: does what its seed says, and notes what it has written."""

    def __init__(self, root, other, turns, who, seed):
        super().__init__(daemon=True)
        self.store, self.other = Store(SteppedFiles(root, turns, who)), other
        self.turns, self.who, self.random = turns, who, random.Random(seed)
        self.written, self.claims, self.has_merged, self.problem = [], [], False, None

    def run(self):
        try:
            for number in range(self.random.randint(3, 6)):
                with suppress(StoreError):  # beaten by others, or a lease that somebody holds: said, and no harm done
                    self._act(self.random.choice(ACTIONS), number)
        except BaseException as problem:
            self.problem = problem
        finally:
            self.turns.over(self.who)

    def _act(self, action, number):
        cells = self.random.sample(CELLS, 3)
        at = f"2026-01-{self.random.randint(1, 28):02d}T00:00:{10 * self.who + number:02d}+00:00"
        match action:
            case "part" | "again":
                generation = self.random.randint(1, 3) if action == "again" else None
                self._write(cells, at, number, generation=generation)
            case "fail":
                failed = {"status": "failed", "error": f"{self.who} {number}", "created_at": at}
                self._keep([make_row(cell, None, None, **failed) for cell in cells], number)
            case "merge":
                self.store.merge([Store.open(self.other)])
                self.has_merged = True
            case "claim":
                sweep = self.random.choice(SWEEPS)
                self.store.leases.claim(sweep, f"launch-{self.who}-{number}")
                self.claims.append(sweep)
            case "read":
                check_reader(self.store)
            case "artefact":
                self.store.write_artefact("network", "k", f"{self.who}".encode())
            case _:
                getattr(self.store, action)()

    def _write(self, cells, at, number, **changes):
        rows = [make_row(cell, metric, 0.0, created_at=at, **changes) for cell in cells for metric in cell.metrics]
        self._keep([replace(row, value=value_of(row)) for row in rows], number)

    def _keep(self, rows, number):
        self.store.write_part(f"shard-{self.who}-{number}", rows)
        self.written += rows


def value_of(row):
    """Return the one right value of a row, whoever computes it: any other is a wrong number."""
    return sum(map(ord, f"{row.cell_id} {row.metric} {row.generation or 0}")) / 1024


def shown(store):
    with Catalog(store) as catalog:
        assert catalog.damaged == ()
        statement = "select sweep, cell_id, metric, value, created_at from results order by all"
        return [tuple(row.values()) for row in catalog.query(statement).to_pylist()]


def check_reader(store):
    """See that nothing is shown twice while others write."""
    keys = [row[:3] for row in shown(store)]
    assert len(keys) == len(set(keys))


def expected(rows):
    """Return what is to be shown of all rows ever written."""
    last, best = {}, {}
    for row in rows:
        last[row.cell_id] = max(last.get(row.cell_id, 0), row.generation or 0)
    for row in rows:
        if row.metric is not None and (row.generation or 0) == last[row.cell_id]:
            key = row.cell_id, row.metric
            best[key] = min(best.get(key, (row.created_at, row.value)), (row.created_at, row.value))
    return sorted((sweep, *key, value, at) for sweep in SWEEPS for key, (at, value) in best.items())


def standing(rows, found):
    """Return the error of each cell that stands after what is shown."""
    last, stored, errors = {}, {}, {}
    for row in rows:
        last[row.cell_id] = max(last.get(row.cell_id, 0), row.generation or 0)
    for _, cell_id, _, _, at in found:
        stored[cell_id] = max(stored.get(cell_id, ""), at)
    for row in rows:
        if row.error and (row.generation or 0) == last[row.cell_id]:
            errors[row.cell_id] = max(errors.get(row.cell_id, ("", "")), (row.created_at, row.error))
    said = [errors.get(cell.cell_id, ("", None)) for cell in CELLS]
    return [
        error if at >= stored.get(cell.cell_id, "") else None for cell, (at, error) in zip(CELLS, said, strict=True)
    ]


def play(tmp_path, seed):
    """Let two to four writers at one store in an order that the seed says, then look at what is there."""
    draw = random.Random(seed)
    root, other = tmp_path / f"grid-{seed}", tmp_path / f"other-{seed}"
    planned(root)
    source = planned(other)
    rows = [make_row(cell, m, 0.0, created_at="2026-01-15T00:00:00+00:00") for cell in CELLS[:4] for m in cell.metrics]
    rows_there = [replace(row, value=value_of(row)) for row in rows]
    source.write_part("theirs", rows_there)
    if draw.random() < 0.5:
        source.compact()
    count = draw.randint(2, 4)
    turns = Turns(seed, count)
    writers = [Writer(root, other, turns, who, (seed, who).__hash__()) for who in range(count)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=300)
        assert not writer.is_alive()
        assert writer.problem is None, (seed, writer.problem)
    written = [row for writer in writers for row in writer.written]
    store = Store.open(root)
    without, with_other = expected(written), expected([*written, *rows_there])
    found = shown(store)
    has_merged = any(writer.has_merged for writer in writers)
    assert found in ((with_other,) if has_merged else (without, with_other)), seed
    status = store.cell_status()
    assert [status.failed(cell.cell_id) for cell in CELLS] == standing(written, found)
    assert store.check().damage == ()
    claimed = [sweep for writer in writers for sweep in writer.claims]
    assert len(claimed) == len(set(claimed)), "of those who want a sweep, one gets it: all are alive"
    store.compact()
    assert shown(store) == found
    store.merge([source])
    assert shown(store) == with_other
    assert store.check().damage == ()
    for folder in (root, other):
        shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(6))
def test_writers_at_once_lose_nothing(tmp_path, seed):
    play(tmp_path, seed)


@pytest.mark.slow
def test_writers_at_once_lose_nothing_for_a_hundred_rounds(tmp_path):
    for seed in range(100):
        play(tmp_path, 1000 + seed)
