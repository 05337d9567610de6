"""Clusters of several nodes on one machine, of which some go away, freeze, come late, or see nothing to work with."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from helpers_cluster import ROOT, FakeWorker, halve, make_unit, python_path

from stitchgrid.cluster import open_executor
from stitchgrid.cluster.connection import Settings
from stitchgrid.errors import ClusterError

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ENVIRONMENT = {
    "PYTHONPATH": python_path(__file__),  # actors import the fake worker
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "secret" * 8,
    # Ray takes 64 s to miss a frozen node; 4 s are enough for tests.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@contextmanager
def a_cluster(*nodes, **options):
    """Connect to a cluster whose head has no place for workers; yield it and its nodes."""
    import ray
    from ray.cluster_utils import Cluster

    with Settings(ENVIRONMENT, loopback=False):
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False},
        )
        try:
            made = [add_node(cluster, **node) for node in nodes]
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            yield cluster, made
        finally:
            ray.shutdown()
            with suppress(Exception):  # nodes that were killed already
                cluster.shutdown()


def add_node(cluster, **options):
    return cluster.add_node(object_store_memory=80_000_000, **{"num_cpus": 2, **options})


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def family_of(node):
    """Return a node's raylet and the processes that it has started."""
    raylet = raylet_of(node)
    found = [raylet]
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == raylet:
                found.append(int(entry.name))
    return found


def signal_all(pids, number):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Script(list):
    """Notes what an executor tells, with the time, and does something once so many units have finished."""

    def __init__(self, *, after, act):
        super().__init__()
        self.after, self.act, self.acted_at = after, act, 0.0
        self.node_of = {}

    def on_event(self, event):
        self.append((time.monotonic(), event))
        if event.kind == "worker_ready":
            self.node_of[event.worker] = event.node
        if event.kind == "finished" and len(self.of("finished")) == self.after:
            self.acted_at = time.monotonic()
            self.act()

    def of(self, kind):
        return [event for _, event in self if event.kind == kind]

    def report(self, what):
        """Write what a fault did to stderr, for the record: run with -s."""
        retried = {event.unit.unit_id for event in self.of("retried")}
        ends = [at for at, e in self if e.kind == "finished" and e.unit.unit_id in retried and at > self.acted_at]
        missed = [at for at, event in self if event.kind == "retried" and at > self.acted_at]
        sys.stderr.write(
            f"\n{what}: {len(self.of('worker_died'))} workers died, {len(retried)} units again; missed after "
            f"{max(missed, default=self.acted_at) - self.acted_at:.1f} s, done again after "
            f"{max(ends, default=self.acted_at) - self.acted_at:.1f} s\n"
        )


def run(cluster, units, script, *, workers=6, split=None, **options):
    factory = partial(FakeWorker, options.pop("folder", None), options.pop("needs", None))
    with open_executor(cluster.address, factory=factory, workers=workers, **options) as executor:
        return executor.run(units, "context", split=split, on_event=script.on_event)


NAPS = [make_unit(f"u{i}", "nap") for i in range(30)]


def assert_all_finished_once(outcome, units):
    assert sorted(report.unit_id for report in outcome.finished) == sorted(unit.unit_id for unit in units)
    assert (outcome.failed, outcome.quarantined, outcome.unfinished) == ((), (), ())


def test_a_node_that_is_killed_costs_no_unit_and_is_no_strike():
    with a_cluster({}, {}, {}) as (cluster, nodes):
        script = Script(after=8, act=lambda: os.kill(raylet_of(nodes[1]), signal.SIGKILL))
        outcome = run(cluster, NAPS, script, split=halve)
        script.report("raylet killed")
    assert_all_finished_once(outcome, NAPS)
    assert not script.of("bisected")
    assert 1 <= len(script.of("retried")) <= 4


@pytest.mark.parametrize("thaws", [False, True], ids=["for good", "and thaws"])
def test_a_node_that_freezes_costs_no_unit(thaws):
    with a_cluster({}, {}, {}) as (cluster, nodes):
        frozen = []

        def freeze():
            frozen.extend(family_of(nodes[1]))
            signal_all(frozen, signal.SIGSTOP)

        script = Script(after=8, act=freeze)
        thawed = []

        def on_event(event):
            script.on_event(event)
            if thaws and event.kind == "tick" and script.of("retried") and not thawed:
                thawed.append(True)
                signal_all(frozen, signal.SIGCONT)

        with open_executor(cluster.address, factory=FakeWorker, workers=6) as executor:
            outcome = executor.run(NAPS, "context", split=halve, on_event=on_event)
        script.report(f"node frozen {'and thawed' if thaws else 'for good'}")
        signal_all(frozen, signal.SIGCONT)
        signal_all(frozen, signal.SIGKILL)
    assert bool(thawed) == thaws
    assert_all_finished_once(outcome, NAPS)
    assert not script.of("bisected")
    assert script.of("retried")


def test_a_node_that_joins_late_is_used_and_workers_still_waiting_at_the_end_are_dropped():
    with a_cluster({}, {}) as (cluster, _):
        import ray

        script = Script(after=3, act=lambda: add_node(cluster))
        outcome = run(cluster, NAPS, script, workers=9)
        script.report("node joined")
        late = [event for at, event in script if event.kind == "submitted" and at > script.acted_at]
        assert len(set(script.node_of.values())) == 3
        assert len({event.worker for event in late}) >= 6
        assert len(script.of("worker_ready")) < 9 <= len(script.of("worker_started"))
        deadline = time.monotonic() + 10
        while ray.available_resources().get("CPU", 0) < 6 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ray.available_resources()["CPU"] == 6, "nothing is left behind, waiting or at work"
    assert_all_finished_once(outcome, NAPS)


def test_poison_on_several_nodes_is_found_and_costs_one_cell():
    units = [make_unit("bad", "crash", num_cells=4, flops=9.0), *NAPS[:12]]
    with a_cluster({}, {}, {}) as (cluster, _):
        script = Script(after=1, act=lambda: None)
        outcome = run(cluster, units, script, split=halve)
        script.report("poison")
    assert [failure.unit.unit_id for failure in outcome.quarantined] == ["bad/0-0:crash"]
    assert len(outcome.finished) == 12 + 2
    assert (outcome.failed, outcome.unfinished) == ((), ())


def test_two_workers_share_a_gpu_and_each_sees_its_own(tmp_path):
    units = [make_unit(f"u{i}", "gpu") for i in range(16)]
    with a_cluster({"num_gpus": 1}, {"num_gpus": 1}) as (cluster, _):
        script = Script(after=1, act=lambda: None)
        outcome = run(cluster, units, script, workers=None, gpus_per_worker=0.5, folder=str(tmp_path))
        seen = {report.part for report in outcome.finished}
    assert len(outcome.finished) == 16
    assert len(script.of("worker_ready")) == 4
    assert seen == {"0"}, "each node counts its own from 0"
    assert len(set(script.node_of.values())) == 2


def test_a_node_that_sees_no_data_is_told_of_once_and_the_others_do_the_work(tmp_path):
    blind = {"env_vars": {"DATA": "/nowhere"}}
    sees = {"env_vars": {"DATA": str(tmp_path)}}
    with a_cluster(sees, blind, sees) as (cluster, _):
        script = Script(after=1, act=lambda: None)
        outcome = run(cluster, NAPS[:18], script, needs="$DATA")
    assert_all_finished_once(outcome, NAPS[:18])
    (told,) = script.of("node_unfit")
    assert "$DATA is not there" in told.detail
    assert told.node in told.detail
    assert told.node not in script.node_of.values()
    assert len(set(script.node_of.values())) == 2


def test_a_worker_that_dies_is_replaced_where_work_can_be_done(tmp_path):
    """Ray would put its successor on the node that has room, which is the one that sees no data."""
    blind = {"env_vars": {"DATA": "/nowhere"}}
    sees = {"env_vars": {"DATA": str(tmp_path)}}
    units = [make_unit("bad", "crash", flops=9.0), *NAPS[:8]]
    with a_cluster(sees, blind) as (cluster, _):
        script = Script(after=1, act=lambda: None)
        outcome = run(cluster, units, script, workers=3, needs="$DATA")
    assert len(outcome.finished) == 8
    assert [failure.unit.unit_id for failure in outcome.quarantined] == ["bad:crash"]
    assert len(script.of("worker_failed")) <= 2, "tried once, and perhaps a second that was on its way"


def test_no_node_that_sees_the_data_is_one_error_before_any_unit():
    with a_cluster({}, {}) as (cluster, _):
        script = Script(after=1, act=lambda: None)
        with pytest.raises(ClusterError, match=r"No worker could be started.*on node \S+/\S+: .*/nowhere is not there"):
            run(cluster, NAPS, script, needs="/nowhere")
    assert not script.of("submitted")


# Nodes as `ray start` makes them, and the command


def can_hide_folders():
    """Return whether a process may be given a view of the file system of its own, as on another machine."""
    return (
        shutil.which("unshare") is not None and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    )


class RayStart:
    """A head and nodes that join it, each in its own processes; one may see an empty folder where others see files."""

    def __init__(self, folder):
        token = folder / "token"
        token.write_text("secret")
        self.temporary = Path(tempfile.mkdtemp(prefix="sgn-", dir="/tmp"))  # a socket's path may have 107 bytes
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": ENVIRONMENT["PYTHONPATH"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(self.temporary),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def start(self, *options, hidden=None):
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--object-store-memory=80000000"]
        command += options
        if hidden is not None:
            command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden), *command]
        self.processes.append(
            subprocess.Popen(
                command,
                env=self.environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def head(self, num_cpus):
        self.start(
            "--head",
            f"--num-cpus={num_cpus}",
            "--include-dashboard=false",
            "--node-ip-address=127.0.0.1",
            f"--port={self.port}",
        )
        self.wait_for_nodes(1)

    def node(self, num_cpus, **how):
        self.start(f"--address={self.address}", f"--num-cpus={num_cpus}", **how)
        self.wait_for_nodes(len(self.processes))

    def wait_for_nodes(self, count):
        ask = [str(Path(sys.executable).with_name("ray")), "status", f"--address={self.address}"]
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            said = subprocess.run(ask, env=self.environment, capture_output=True, text=True, check=False).stdout
            if said.partition("Active:")[2].partition("Pending:")[0].count(" node_") >= count:
                return
            time.sleep(0.5)
        raise AssertionError(said)

    def launch(self, store, *options):
        job = ROOT / "jobs" / "quickstart.toml"
        command = [sys.executable, "-m", "stitchgrid.cli", "launch", str(job), "--store", str(store)]
        return subprocess.run(
            [*command, "--address", self.address, *options],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )


QUICKER = [
    *("--set", "recipes.convolution.epochs=1", "--set", "recipes.attention.epochs=1"),
    *("--set", "matchers.task_loss.epochs=1", "--set", "data.eval.samples=100"),
]
needs_two_views = pytest.mark.skipif(not can_hide_folders(), reason="no right to give a process its own mounts")


@needs_two_views
def test_a_launch_whose_only_node_does_not_see_the_store_ends_with_one_error_that_says_so(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with RayStart(tmp_path) as ray:
        ray.head(0)
        ray.node(2, hidden=shared)
        ended = ray.launch(shared / "grid")
    assert ended.returncode == 1
    assert f"on node {socket.gethostname()}/" in ended.stderr
    assert str(shared / "grid") in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not list((shared / "grid").rglob("*.safetensors"))


@needs_two_views
def test_a_launch_goes_on_with_the_nodes_that_see_the_store(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with RayStart(tmp_path) as ray:
        ray.head(1)
        ray.node(1, hidden=shared)
        ended = ray.launch(shared / "grid", "--workers", "2", *QUICKER)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("node unfit: ") == 1
    assert "is not" in ended.stderr or "no store" in ended.stderr.lower()
