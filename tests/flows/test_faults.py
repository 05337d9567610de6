"""Faults injected into whole sweeps, run as users run them: nothing is lost, and the values are those of a quiet run.

Every test adds a line to a table: fault, what the user sees, cells lost, cells computed again, seconds until all was
there. `STITCHGRID_FAULT_TABLE=FILE pytest -m slow tests/flows/test_faults.py` writes it.
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
from helpers_objects import Fault, make_bucket, moto_server, proxy, store_uri

from stitchgrid.catalog import Catalog
from stitchgrid.errors import NoStoreError
from stitchgrid.store import Store
from stitchgrid.store.parts import Parts

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
    "hang": "hangs",
    "hog": "takes all memory",
}
TABLE: list[tuple[str, ...]] = []


class Site:
    """A job file and a store of their own."""

    def __init__(self, folder: Path, uri: str | None = None):
        self.folder, self.order = folder, folder / "order"
        (folder / "helpers_mined.py").write_bytes(
            (Path(__file__).parents[1] / "helpers" / "helpers_mined.py").read_bytes()
        )
        (folder / "faults.toml").write_text(JOB)
        self.uri = uri or str(folder / "grid")

    @property
    def store(self):
        return Store.open(self.uri)

    def start(self, verb="launch", *more, env=None, **options):
        what = "faults.toml" if verb == "launch" else "faults"
        command = [sys.executable, "-m", "stitchgrid.cli", verb, what, "--store", self.uri, "--workers", "2", *more]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "STITCHGRID_TEST_ORDER": str(self.order), "OMP_NUM_THREADS": "1", **(env or {})},
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
        return sorted((Path(self.uri) / "parts" / "v1").glob("*.parquet"))

    def attempted(self):
        """Ids of all units that were given to a worker."""
        return {one["unit"] for one in self.store.attempts("faults")}

    def stored(self):
        """Ids of all units of which something was stored."""
        files = [*self.parts(), *(Path(self.uri) / "artefacts").glob("*/*.manifest")]
        return {path.stem.split("-")[0] for path in files}

    def num_parts(self):
        if not self.uri.startswith("s3:"):
            return len(self.parts())
        try:
            return len(Parts(self.store.files).names())
        except NoStoreError:  # it is still to be made
            return 0

    def wait_for_parts(self, count, process):
        while self.num_parts() < count:
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
        ("hang", r"worker died: no answer within .*"),
        ("memory", r"432 of 432 cells are there"),
    ],
)
def test_a_worker_that_is_lost_amid_a_shard_costs_that_shard_one_more_try(site, quiet, word, seen):
    start = time.perf_counter()
    process = site.start()
    site.wait_for_parts(2, process)
    site.order.write_text(f"once-{word}")
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output
    assert site.order.with_suffix(".done").exists(), "the mine went off"
    if word == "memory":  # trained maps have seen their batches in halves
        assert site.values().keys() == quiet.keys()
    else:
        same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note(f"worker: {WORDS[word]} amid a shard", line(output, seen), lost=0, again=0, since=start)


def test_a_worker_that_takes_all_memory_is_ended_by_rays_monitor_and_replaced(site, quiet):
    with Path("/proc/meminfo").open() as file:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file}
    taken = 1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"]
    start = time.perf_counter()
    process = site.start(env={"RAY_memory_usage_threshold": f"{taken + 0.3:.2f}"})
    site.wait_for_parts(2, process)
    site.order.write_text("once-hog")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert site.order.with_suffix(".done").exists(), "the mine went off"
    same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note(f"worker: {WORDS['hog']}", line(output, r"worker died: .*"), lost=0, again=0, since=start)


def test_the_one_cell_that_kills_every_worker_is_quarantined_and_no_other(site):
    job = JOB + '[grid]\npairs = [["net/0", "mined"]]\n'
    (site.folder / "faults.toml").write_text(
        job.replace('weights = "random"', 'weights = "random"\nlayers = ["blocks.1"]')
    )
    site.order.write_text("train-kill")
    start = time.perf_counter()
    output = site.run(code=1)
    with Catalog(site.store) as catalog:
        cells = catalog.query("select matcher, status, error from cells").to_pylist()
    assert {cell["matcher"]: cell["status"] for cell in cells} == {
        "direct": "done",
        "cka": "done",
        "task_loss": "quarantined",
    }
    [error] = [cell["error"] for cell in cells if cell["error"]]
    assert "killed its worker 3 times" in error
    note(
        "worker: killed by one cell, always",
        line(output, r"1 quarantined.*|.*killed its worker 3 times"),
        lost=1,
        again=0,
        since=start,
    )


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
        assert site.attempted() <= site.stored(), "what was in flight has finished"
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


def test_a_driver_that_is_stopped_for_a_while_goes_on(site, quiet):
    start = time.perf_counter()
    process = site.start()
    site.wait_for_parts(2, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(30)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note("driver: SIGSTOP for 30 s", line(output, r"432 of 432 cells are there"), lost=0, again=0, since=start)


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


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a disk of its own, of 200 kB, and a way to mount it otherwise."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_full_ends_the_launch_and_room_lets_it_go_on(tmp_path, quiet, small_disk):
    disk, remount = small_disk
    site, start = Site(tmp_path, str(disk / "grid")), time.perf_counter()
    output = site.run(code=1)
    seen = line(output, r"cannot write .*No space left on device")
    kept = len(site.parts())
    remount("size=50m")
    site.run("launch", "--retry-failed")
    same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note(f"store: disk full after {kept} parts", seen, lost=0, again=0, since=start)


def test_a_store_that_became_read_only_can_still_be_read_and_later_be_completed(tmp_path, quiet, small_disk):
    disk, remount = small_disk
    remount("size=50m")
    site, start = Site(tmp_path, str(disk / "grid")), time.perf_counter()
    site.run()
    site.parts()[0].unlink()
    remount("ro")
    seen = line(site.run("resume", code=1), r"cannot write .*Read-only file system")
    assert "cells done" in site.run_plain("status")
    assert "net/0" in site.run_plain("query", "best_source")
    remount("rw")
    site.run("resume")
    same(site.values(), quiet)
    note("store: read-only", seen, lost=0, again=0, since=start)


@pytest.mark.parametrize("what", ["cells", "layers"])
def test_a_damaged_plan_is_found_set_aside_and_made_again(finished, quiet, what):
    start = time.perf_counter()
    [victim] = sorted(Path(finished.uri).glob(f"sweeps/faults/*/{what}*.parquet"))[-1:]
    flip(victim)
    check = finished.run_plain("check", code=1)
    finished.run_plain("check", "--repair", code=0)
    finished.run("resume")
    finished.run_plain("check")
    same(finished.values(), quiet)
    assert finished.computed() == len(quiet), "no value was computed again"
    note(f"plan: a bit of its {what} flipped", check.strip().splitlines()[0][:140], lost=0, again=0, since=start)


def test_a_damaged_artefact_is_found_set_aside_and_made_again(finished, quiet):
    start = time.perf_counter()
    victim = next(
        path for path in sorted(Path(finished.uri).glob("artefacts/**/*.json")) if b"accuracy" in path.read_bytes()
    )
    flip(victim)
    check = finished.run_plain("check", code=1)
    finished.run_plain("check", "--repair", code=0)
    finished.run("resume")
    finished.run_plain("check")
    same(finished.values(), quiet)
    note("artefact: one bit flipped", check.strip().splitlines()[0][:140], lost=0, again=0, since=start)


# Object stores


@pytest.fixture(scope="module")
def server():
    with moto_server() as endpoint:
        yield endpoint


def test_a_server_that_is_slow_down_for_a_while_is_waited_for(tmp_path, quiet, server):
    start = time.perf_counter()
    with proxy(server) as between:
        site = Site(tmp_path, store_uri(between.endpoint, make_bucket(server)))
        process = site.start()
        site.wait_for_parts(2, process)
        fault = Fault(status=503, code="SlowDown", methods=("PUT",))
        between.faults.append(fault)
        time.sleep(8)
        between.faults.clear()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert len(fault.seen) > 3
        same(site.values(), quiet)
        assert site.computed() == len(quiet), "nothing was computed again"
    note("bucket: 503 SlowDown for 8 s", line(output, r"432 of 432 cells are there"), lost=0, again=0, since=start)


def test_a_server_that_is_gone_ends_the_launch_and_resume_goes_on(tmp_path, quiet, server):
    with proxy(server) as between:
        bucket = make_bucket(server)
        site = Site(tmp_path, store_uri(between.endpoint, bucket))
        process = site.start()
        site.wait_for_parts(2, process)
        between.end()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 1, output
    start = time.perf_counter()
    site.uri = store_uri(server, bucket)
    kept = site.computed()
    assert kept
    site.run("resume", "--retry-failed", "--force")
    same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note("bucket: refuses connections", line(output, r"[^:]*cannot be reached.*"), lost=0, again=0, since=start)


def test_a_launch_into_a_bucket_that_is_killed_leaves_whole_parts(tmp_path, quiet, server):
    site = Site(tmp_path, store_uri(server, make_bucket(server)))
    process = site.start()
    site.wait_for_parts(3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    start = time.perf_counter()
    site.run_plain("check")  # exit 0: no part is short
    site.run("resume", "--force")
    same(site.values(), quiet)
    assert site.computed() == len(quiet), "nothing finished was computed again"
    note("bucket: launch and workers SIGKILL", "nothing; `resume` goes on", lost=0, again=0, since=start)
