"""Faults injected into whole sweeps, run as users run them: nothing is lost, and the values are those of a quiet run.

Every test adds a line to a table: fault, what the user sees, cells lost, cells computed again, seconds until all was
there. `STITCHGRID_FAULT_TABLE=FILE pytest -m slow tests/test_faults.py` writes it.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from stitchgrid.catalog import Catalog
from stitchgrid.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

JOB = """
name = "faults"
[data]
dataset = "digits"
fit = { split = "train", samples = 300 }
eval = { split = "test", samples = 300 }
[[models]]
name = "net"
architecture = "helpers_mined.py:net"
args = { width = 32 }
weights = "random"
seeds = [0, 1]
[[models]]
name = "mined"
architecture = "helpers_mined.py:net"
args = { width = 32, mined = true }
weights = "random"
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka"
[[matchers]]
kind = "task_loss"
epochs = 1
samples = 600
"""
NUM_CELLS = 9 * 4 * 4 * 3
NUM_MINED = 5 * 4 * 4 * 3  # of layer pairs with the network that carries the mine
WORDS = {
    "exit": "os._exit",
    "kill": "SIGKILL",
    "segv": "SIGSEGV",
    "cuda": "a CUDA error",
    "memory": "out of memory",
}
TABLE: list[tuple[str, ...]] = []


class Site:
    """A job file and a store of their own."""

    def __init__(self, folder: Path):
        self.folder, self.order = folder, folder / "order"
        (folder / "helpers_mined.py").write_bytes((Path(__file__).parent / "helpers_mined.py").read_bytes())
        (folder / "faults.toml").write_text(JOB)
        self.uri = str(folder / "grid")

    @property
    def store(self):
        return Store.open(self.uri)

    def start(self, verb="launch", *more, **options):
        what = "faults.toml" if verb == "launch" else "faults"
        command = [sys.executable, "-m", "stitchgrid.cli", verb, what, "--store", self.uri, "--workers", "2", *more]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "STITCHGRID_TEST_ORDER": str(self.order), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, verb="launch", *more, code=0, **options):
        process = self.start(verb, *more, **options)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == code, output
        return output

    def run_plain(self, *arguments, code=0):
        command = [sys.executable, "-m", "stitchgrid.cli", *arguments, "--store", self.uri]
        found = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert found.returncode == code, found.stdout + found.stderr
        return found.stdout

    def parts(self):
        return sorted((self.folder / "grid" / "parts" / "v1").glob("*.parquet"))

    def wait_for_parts(self, count, process):
        while len(self.parts()) < count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    def done(self):
        with Catalog(self.store) as catalog:
            rows = catalog.query("select cell_id from cells where status = 'done'").to_pylist()
        return {row["cell_id"] for row in rows}

    def values(self):
        with Catalog(self.store) as catalog:
            rows = catalog.query("select cell_id, metric, value from results").to_pylist()
        return {(row["cell_id"], row["metric"]): row["value"] for row in rows}

    def computed(self):
        """How often a value of each cell was stored: more than once is work done twice."""
        table = self.store.read_parts(("cell_id", "metric", "status")).table
        return table.filter(table["status"].cast("string").to_numpy() == "done").num_rows


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """Return the values of a run that nothing disturbs."""
    found = Site(tmp_path_factory.mktemp("quiet"))
    start = time.perf_counter()
    found.run()
    note("none", "432 of 432 cells are there", lost=0, again=0, since=start)
    return found.values()


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    lines = ["| fault | what the user sees | cells lost | computed again | seconds |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in TABLE]
    if target := os.environ.get("STITCHGRID_FAULT_TABLE"):
        Path(target).write_text("\n".join(lines) + "\n")


def note(fault, seen, *, lost, again, since):
    TABLE.append((fault, f"`{seen}`", str(lost), str(again), f"{time.perf_counter() - since:.0f}"))


def same(found, wanted):
    """Whether the values are those of the quiet run, to the last digit."""
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if found[key] != wanted[key]] == []


def line(output, pattern):
    found = re.search(pattern, output)
    assert found, output
    return found[0][:140]


# Workers


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("exit", r"worker died: .*"),
        ("kill", r"worker died: .*"),
        ("segv", r"worker died: .*"),
        ("cuda", r"worker died: .*"),
        ("memory", r"432 of 432 cells are there"),
    ],
)
def test_a_worker_that_is_lost_amid_a_shard_costs_that_shard_one_more_try(site, quiet, word, seen):
    start = time.perf_counter()
    process = site.start()
    site.wait_for_parts(2, process)
    site.order.write_text(f"once-{word}")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert site.order.with_suffix(".done").exists(), "the mine went off"
    if word == "memory":  # trained maps have seen their batches in halves
        assert site.values().keys() == quiet.keys()
    else:
        same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note(f"worker: {WORDS[word]} amid a shard", line(output, seen), lost=0, again=0, since=start)


def test_a_network_that_cannot_be_run_any_more_costs_its_own_cells(site, quiet):
    process = site.start()
    site.wait_for_parts(1, process)
    site.order.write_text("raise")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    done = site.done()
    assert NUM_CELLS - NUM_MINED <= len(done) < NUM_CELLS
    seen = line(output, r"\d+ without values: ValueError: this network cannot be run")
    site.order.unlink()
    start = time.perf_counter()
    site.run("resume", "--retry-failed")
    same(site.values(), quiet)
    note("network: raises for ever", seen, lost=0, again=NUM_CELLS - len(done), since=start)


# The driver


@pytest.mark.parametrize(
    ("signals", "seen"),
    [
        ([signal.SIGINT], r"Stopping: what is in flight has 60 s to finish"),
        ([signal.SIGTERM], r"Stopping: what is in flight has 60 s to finish"),
        ([signal.SIGINT, signal.SIGINT], r"Interrupted; what is finished is kept. Go on with: .*"),
    ],
)
def test_an_interrupted_launch_says_how_to_go_on_and_goes_on(site, quiet, signals, seen):
    process = site.start()
    site.wait_for_parts(2, process)
    for number in signals:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to the whole group
        else:
            process.send_signal(number)  # as Slurm and Kubernetes do: to the command alone
        time.sleep(0.5)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stitchgrid resume faults" in output
    if len(signals) == 1:
        assert len(site.parts()) >= 4, "what was in flight has finished"
    before, start = site.done(), time.perf_counter()
    stored = site.computed()
    site.run("resume")
    same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    assert stored < len(quiet)
    assert before <= site.done()
    name = " twice".join([signals[0].name, ""]) if len(signals) > 1 else signals[0].name
    note(f"driver: {name}", line(output, seen), lost=0, again=0, since=start)


def test_a_driver_killed_at_random_moments_loses_nothing_twenty_times_over(tmp_path, quiet):
    rng, start, kept = Random(0), time.perf_counter(), []
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = Site(folder)
        process = site.start()
        if number % 4:  # at a random moment after some parts; every fourth time of the start
            site.wait_for_parts(rng.randint(1, 7), process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0, 2) if number % 4 else rng.uniform(2, 12))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        before = {path.name: path.read_bytes() for path in site.parts()}
        planned = any((folder / "grid").glob("sweeps/faults/*/job.json"))
        kept.append(len(before))
        site.run("resume" if planned else "launch")
        same(site.values(), quiet)
        assert site.computed() == len(quiet), "nothing finished was computed again"
        assert all(path.read_bytes() == before[path.name] for path in site.parts() if path.name in before)
    assert len(set(kept)) > 3, "the moments differ"
    note("driver: SIGKILL at a random moment, 20 times", f"parts kept: {sorted(kept)}", lost=0, again=0, since=start)


def test_a_second_launch_is_told_who_has_the_sweep_and_may_take_it_over(site):
    (site.folder / "faults.toml").write_text(JOB.replace("epochs = 1", "epochs = 8"))  # longer than it takes to tell
    first = site.start()
    site.wait_for_parts(1, first)
    refused = site.run(code=1)
    seen = line(refused, r"sweep 'faults' is being computed by launch \S+")
    start = time.perf_counter()
    output = site.run("launch", "--force")
    told, _ = first.communicate(timeout=120)
    assert first.returncode == 1, told
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are there" in output
    note("driver: a second launch", seen, lost=0, again=0, since=start)
    told = line(told, r"sweep 'faults' was taken over by launch \S+")
    again = site.computed() - len(site.values())
    note("driver: --force", told, lost=0, again=f"{again} values in flight", since=start)


# Damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quiet):
    found = Site(tmp_path_factory.mktemp("finished"))
    found.run()
    return found


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "part: truncated": truncate,
    "part: empty": lambda path: path.write_bytes(b""),
    "part: one bit flipped": flip,
    "part: deleted": Path.unlink,
    "part: replaced by another's content": lambda path: path.write_bytes(
        next(other for other in path.parent.glob("*.parquet") if other != path).read_bytes()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_found_left_out_and_computed_again(finished, quiet, damage):
    victim = finished.parts()[0]
    cells = int(len(finished.done()) / len(finished.parts()))
    DAMAGES[damage](victim)
    start = time.perf_counter()
    check = finished.run_plain("check", code=0 if damage == "part: deleted" else 1)
    lost = NUM_CELLS - len(finished.done())
    assert lost >= cells / 2
    finished.run("resume")
    same(finished.values(), quiet)
    if damage != "part: deleted":
        finished.run_plain("check", "--repair", code=0)
    finished.run_plain("check")
    seen = check.strip().splitlines()[0][:140] if damage != "part: deleted" else "nothing: the cells are pending"
    note(damage, seen, lost=lost, again=lost, since=start)


def test_a_full_disk_ends_the_launch_and_room_lets_it_go_on(site, quiet):
    start = time.perf_counter()

    def no_files_above_2_kb():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = site.start("launch", "--address", "none", preexec_fn=no_files_above_2_kb)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    seen = line(output, r"cannot write .*")
    site.run("launch", "--retry-failed")
    same(site.values(), quiet)
    note("store: files cannot grow (RLIMIT_FSIZE)", seen, lost=0, again=0, since=start)
