"""A seeded fuzzer of stores: changes any file of a small store, drives commands, and looks at what must hold.

`python tests/helpers/fuzz_store.py FIRST_SEED NUM` runs by hand, in no more memory than `MEMORY` beyond what the
libraries take; it ends with 1 where a round failed. Most rounds call the readers, one in `WHOLE` runs whole commands,
and one in `MERGED` merges.
"""

import importlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import chdir, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner
from helpers_store import SWEEP, make_synthetic_store, planned_cells

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import StitchgridError
from stitchgrid.store import Store, lease
from stitchgrid.store.layout import DATA_NAME, PART_NAME, content_digest
from stitchgrid.store.reading import read_rows

UNIT = next(iter(planned_cells())).shard
SECONDS = 30
MEMORY = 2 * 2**30
WHOLE = 20
MERGED = 10  # one round in so many merges the changed store into a sound one
VALUES = "select cell_id, metric, value from results"
CHEAP = (["status"], ["sql", "select count(*) as n, sum(value) from results"], ["logs", SWEEP, UNIT], ["check"])
OTHERS = (
    ["status", "--format", "json"],
    ["query", "progress"],
    ["query", "failures"],
    ["query", "best_source", "--param", "matcher=direct"],
    ["answer"],
    ["answer", "--format", "json"],
    ["diff", f"{{sound}}:{SWEEP}", SWEEP],
    ["diff", SWEEP, f"{{sound}}:{SWEEP}", "--format", "csv"],
    ["export", "--parquet", "p"],
    ["export", "--duckdb", "e.duckdb"],
    ["merge", "{sound}"],
    ["remove", SWEEP],
    ["gc"],
    ["gc", "--dry-run"],
    ["atlas", "--out", "a.html"],
    ["report", "--format", "markdown", "--out", "r.md"],
    ["compact"],
    ["resume", SWEEP, "--address", "none"],
)
REPAIR = ["check", "--repair"]
READERS: tuple[Callable[[Store], object], ...] = (
    lambda store: store.cell_status(),
    lambda store: store.read_parts(),
    lambda store: store.compact(),
    lambda store: store.collect(),
    lambda store: query(store, "select status, count(*) from cells group by all"),
    lambda store: query(store, "select * from results"),
)
ODD = [None, True, -1, 0, 2**70, 1e308, 10**400, "", "../../outside/a", "a\0b", "\ud800", "x" * 5000, [], {}, "\u0663"]
NAMES = ["lost+found", "a b", "..x", "\u00b2.json", "999999999.json", "0000", "x" * 200, "@eaDir", "caf\udce9"]


def make_place(folder: Path) -> Path:
    """Write the store that is changed, beside a folder that nothing may touch."""
    store = make_synthetic_store(folder / "grid").store
    store.write_log(SWEEP, UNIT, "went well\n")
    store.write_heartbeat(SWEEP, {"at": "2026-11-24T00:00:00+00:00", "running": [{"unit": UNIT, "worker": "w"}]})
    claim = {"launch": "l", "user": "u", "host": "h", "pid": 7, "process": "p/1", "at": "2026-11-24T00:00:00+00:00"}
    store.files.write_once(f"sweeps/{SWEEP}/claims/000001.json", json.dumps(claim).encode())
    store.write_artefact("evaluation", "k" * 32, json.dumps({"accuracy": 0.5, "problems": []}).encode())
    (folder / "outside").mkdir()
    (folder / "outside" / "a").write_text("SECRET")
    shutil.copytree(folder / "grid", folder / "compacted")
    Store.open(folder / "compacted").compact()
    return folder


# Changes --------------------------------------------------------------------------------------------------------------


def change_bytes(path: Path, rng: random.Random) -> None:
    """Flip, cut, repeat or replace bytes."""
    data = bytearray(path.read_bytes())
    kind = rng.randrange(5)
    at = rng.randrange(len(data) + 1)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randrange(1, 50))
    elif kind == 3:
        data = bytearray(rng.randbytes(rng.randrange(100)))
    else:
        data[at:at] = b"[" * rng.choice([50, 5000, 50_000])
    path.write_bytes(sign(path, bytes(data)) if rng.random() < 0.3 else bytes(data))


def change_json(path: Path, rng: random.Random) -> None:
    """Put an odd value somewhere into a document, and sign it where it is signed."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # an earlier change spoilt it
        return change_bytes(path, rng)
    spots = list(places(value))
    if spots:
        parent, key = rng.choice(spots)
        if rng.random() < 0.2 and isinstance(parent, dict):
            parent[rng.choice(["../../x", "", "new", "\u0663"])] = parent.pop(key)
        elif rng.random() < 0.2:
            del parent[key]
        else:
            parent[key] = rng.choice([*ODD, nested(rng.choice([100, 900]))])
    if isinstance(value, dict) and "snapshot" in value and rng.random() < 0.8:
        value["digest"] = content_digest(json.dumps(value["snapshot"], sort_keys=True).encode())
    sys.set_int_max_str_digits(0)
    path.write_text(json.dumps(value))
    sys.set_int_max_str_digits(4300)
    return None


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def places(value):
    """Yield every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from places(one)


def change_table(path: Path, rng: random.Random) -> None:
    """Drop, double, retype, empty or spoil a column but for values, and give the file the name of its content."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, UnicodeError):  # a name that is no text, too
        return change_bytes(path, rng)
    if not table.num_columns:  # an earlier change took the last one
        return change_bytes(path, rng)
    index = rng.randrange(table.num_columns)
    name = table.column_names[index]
    raw = pa.array([rng.randbytes(3) for _ in range(table.num_rows)], pa.binary())
    nothing = rng.sample(range(table.num_rows), min(3, table.num_rows))
    kind = rng.randrange(6)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.append_column(name, table[name])
    elif kind == 2:
        column = [None if row in nothing else one for row, one in enumerate(table[name].to_pylist())]
        field = table.schema.field(name).with_nullable(True)
        table = table.set_column(index, field, pa.array(column, field.type))
    elif kind == 3:
        table = table.set_column(index, name, pa.Array.from_buffers(pa.string(), table.num_rows, raw.buffers()))
    elif kind == 4:
        table = table.set_column(index, name, pa.array(range(table.num_rows)))
    else:
        table = table.slice(0, rng.randrange(table.num_rows + 1))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    path.write_bytes(sign(path, bytes(sink.getvalue()), table.num_rows))
    return None


def sign(path: Path, data: bytes, num_rows: int | None = None) -> bytes:
    """Rename a file that is named after its content, so that its name fits these bytes; return them."""
    match = PART_NAME.fullmatch(path.name) or DATA_NAME.fullmatch(path.name)
    if match:
        head = match.groupdict().get("number") or match.groupdict().get("shard")
        rows = match["rows"] if num_rows is None else num_rows
        new = path.with_name(f"{head}-{content_digest(data)}-{rows}.parquet")
        path.rename(new)
        new.write_bytes(data)
        raise SignedError
    return data


class SignedError(Exception):
    """The file has its new name and content already."""


FORGED = "forged: "  # bytes of values with a digest that fits them: a store cannot know the true ones


def change_entry(path: Path, rng: random.Random) -> None:
    """Put a link, a pipe, a folder, an odd name or an absurd size in a file's or folder's place."""
    target = rng.choice([path, path.parent]) if path.name != "store.json" else path
    kind = rng.randrange(6)
    outside = rng.choice(["outside/a", "outside", "nowhere"])
    root = next(one for one in path.parents if one.name in ("grid", "compacted")).parent
    if kind == 5:
        os.truncate(path, rng.choice([0, 2**33]))
        return
    if target.name in ("grid", "compacted"):
        target = path
    if kind == 4:
        new = target.with_name(rng.choice(NAMES))
        if not new.exists():
            target.rename(new)
        return
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    if kind == 0:
        target.symlink_to(root / outside)
    elif kind == 1:
        os.mkfifo(target)
    elif kind == 2:
        target.mkdir()
    else:
        target.symlink_to(target.parent)


def change(grid: Path, rng: random.Random) -> str:
    """Change one file of a store; return what was done."""
    files = (one for one in grid.rglob("*") if one.is_file() and not one.is_symlink())
    path = rng.choice(sorted(one for one in files if one.stat().st_size < MEMORY // 2))
    kinds: list[Callable[[Path, random.Random], None]] = [change_bytes, change_entry]
    kinds += [change_json] * 3 if path.suffix in (".json", ".manifest") else []
    kinds += [change_table] * 3 if path.suffix == ".parquet" else []
    chosen = rng.choice(kinds)
    try:
        chosen(path, rng)
    except SignedError:
        forged = FORGED if chosen is change_bytes else ""  # other changes never make another value
        return f"{forged}{chosen.__name__} {path.relative_to(grid)}"
    return f"{chosen.__name__} {path.relative_to(grid)}"


# What must hold -------------------------------------------------------------------------------------------------------

WATCHED: list[str] = []
_inside: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if _inside and event == "open" and "outside" in str(arguments[0]):
        WATCHED.append(str(arguments[0]))


sys.addaudithook(_audit)


@contextmanager
def watching():
    _inside.append("")
    WATCHED.clear()
    try:
        yield
    finally:
        _inside.pop()


def query(store: Store, sql: str) -> list[dict]:
    with Catalog(store) as catalog:
        return catalog.query(sql).to_pylist()


def read_sweep(store: Store) -> None:
    """Read all that a store keeps of sweeps but for results."""
    for sweep in store.sweep_names():
        store.leases.holder(sweep)
        store.attempts(sweep)
        store.read_heartbeat(sweep)
        for name in store.log_names(sweep):
            store.read_log(sweep, name)
        store.read_job(sweep)
        store.read_plan(sweep)
        store.read_plan_info(sweep)
    store.read_artefact("evaluation", "k" * 32)


def values(grid: Path) -> dict:
    """Return all values of a store that has names for them."""
    return {(row["cell_id"], row["metric"]): row["value"] for row in query(Store.open(grid), VALUES)}


def stored_values(grid: Path) -> dict:
    """Return all values of a store, without the names of a sweep."""
    rows = read_rows(Store.open(grid).files, ("cell_id", "metric", "value", "status")).table.to_pylist()
    return {(row["cell_id"], row["metric"]): row["value"] for row in rows if row["status"] == "done"}


def drive(grid: Path, commands, *, made: Path) -> None:
    """Run commands; an AssertionError where one ends in anything but words."""
    for command in commands:
        start = time.monotonic()
        words = [word.replace("{sound}", str(made / "grid")) for word in command]
        result = CliRunner().invoke(cli, [*words, "--store", str(grid)])
        trace = "".join(traceback.format_exception(result.exception)) if result.exception else ""
        assert result.exception is None or isinstance(result.exception, SystemExit), f"{command}\n{trace}"
        assert result.exit_code in (0, 1, 2), f"{command}: {result.exit_code}"
        assert "SECRET" not in result.output, command
        assert time.monotonic() - start < SECONDS, command


def drive_readers(grid: Path, readers) -> None:
    """Call readers; an AssertionError where one raises anything but an error that the command line shows."""
    for reader in readers:
        start = time.monotonic()
        said = ""
        try:
            reader(Store.open(grid))
        except StitchgridError as problem:
            said = str(problem)
        except Exception:
            raise AssertionError(traceback.format_exc()) from None
        assert "SECRET" not in said
        assert time.monotonic() - start < SECONDS


def repair(store: Store) -> None:
    store.set_aside(store.check())


def look(grid: Path, made: Path, rng: random.Random, sound: dict) -> None:
    """Drive what reads a changed store, merge or repair it, and look at the values that are left.

    `sound` has the true values; it is empty if none are known.
    """
    is_whole = rng.randrange(WHOLE) == 0
    if rng.randrange(MERGED) == 0:
        merge(grid, made, is_whole=is_whole, sound=sound)
    if is_whole:
        drive(grid, rng.sample(CHEAP, 1) + rng.sample(OTHERS, 1), made=made)
        drive(grid, [REPAIR], made=made)
    else:
        drive_readers(grid, [rng.choice([*READERS, read_sweep]), repair])
    if not (grid / "store.json").is_file() or not can_be_opened(grid):
        return
    if is_whole:
        drive(grid, [["check"]], made=made)
    else:
        drive_readers(grid, [Store.check])
    require_sound(grid, sound, values if is_whole or rng.randrange(5) == 0 else stored_values)


def merge(grid: Path, made: Path, *, is_whole: bool, sound: dict) -> None:
    """Merge the changed store into a copy of the sound one, which keeps all of its values and takes no other."""
    into = grid.parent / "into"
    shutil.copytree(made / "grid", into)
    try:
        if is_whole:
            drive(into, [["merge", str(grid)], ["check"]], made=made)
        else:
            drive_readers(into, [lambda store: store.merge([Store.open(grid)])])
        found = require_sound(into, sound, stored_values)
        assert found == sound or not sound, "a value was lost in merging"
    finally:
        shutil.rmtree(into)


def require_sound(grid: Path, sound: dict, read: Callable[[Path], dict]) -> dict:
    """Return the values of a store, each of which is that of the sound store."""
    found = read(grid)
    for key, value in found.items() if sound else ():
        assert key in sound, f"a value of nobody: {key}"
        assert value is None or value == sound[key], f"a wrong number: {key}: {value}, not {sound[key]}"
    return found


def fuzz(made: Path, place: Path, seed: int, sound: dict) -> str:
    """Run one round; return what was changed. An AssertionError if something does not hold."""
    rng = random.Random(seed)
    grid = place / rng.choice(["grid", "compacted"])
    shutil.copytree(made / grid.name, grid)
    shutil.copytree(made / "outside", place / "outside")
    done: list[str] = []
    try:
        done += [change(grid, rng) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
        with chdir(place), watching():
            look(grid, made, rng, {} if any(one.startswith(FORGED) for one in done) else sound)
        assert not WATCHED, WATCHED
        assert [one.name for one in (place / "outside").iterdir()] == ["a"]
        assert (place / "outside" / "a").read_text() == "SECRET"
    except AssertionError as problem:
        raise AssertionError(f"seed {seed}: {done}: {problem}") from problem
    finally:
        shutil.rmtree(grid)
        shutil.rmtree(place / "outside")
    return "; ".join(done)


def can_be_opened(grid: Path) -> bool:
    """Return whether a store can still be opened, and its rows be read."""
    try:
        Store.open(grid).cell_status()
    except StitchgridError:
        return False
    return True


def taken() -> int:
    """Return how many bytes this process has of its own, once all that commands import is there."""
    importlib.import_module("stitchgrid.driver")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:"))


def main(first: int, num: int) -> int:
    """Run rounds in little memory, showing those that fail; return how many did."""
    os.fsync = lambda _: None  # no round waits for the disk, nor long for launches of other machines
    lease.SILENCE_S = lease.SECOND_LOOK_S = lease.LOOK_S = 0.01
    most = taken() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STITCHGRID_CACHE"] = str(Path(folder, "cache"))
        made, place = Path(folder, "made"), Path(folder, "place")
        made.mkdir()
        place.mkdir()
        sound = stored_values(make_place(made) / "grid")
        for seed in range(first, first + num):
            try:
                fuzz(made, place, seed, sound)
            except Exception as problem:
                bad += 1
                sys.stdout.write(f"seed {seed}: {str(problem)[-1500:]}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{bad} of {num}\n")
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]), int(sys.argv[2])) else 0)
