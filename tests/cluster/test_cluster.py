"""One contract for both executors, then what only Ray can do: deaths, deadlines, addresses, silence."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
from helpers_cluster import FakeWorker, broken_factory, halve, make_unit, python_path

import stitchgrid
from stitchgrid.cluster import call_remotely, cluster_resources, connection, open_executor
from stitchgrid.cluster.connection import Connection, find_cluster, quiet_driver, require_listener
from stitchgrid.cluster.dispatch import sigterm_interrupts
from stitchgrid.cluster.sizing import ClusterSize, check_shares, choose_size
from stitchgrid.cluster.worker_failures import classify_death, in_short
from stitchgrid.errors import (
    BrokenProcessError,
    ClusterError,
    InputError,
    breaks_worker,
    is_hardware_fault,
    is_out_of_memory,
)
from stitchgrid.scheduler import DeadlineRule

ENVIRONMENT = {**os.environ, "PYTHONPATH": python_path(__file__)}


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for several executors; they use it because this process is connected to it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ENVIRONMENT["PYTHONPATH"]  # actors import the fake worker
    with Connection("local", min_cpus=6) as connected:
        yield connected
        connected.keep_logs = False
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def on_ray(cluster, notes):
    with open_executor("local", factory=partial(FakeWorker, str(notes)), workers=2) as executor:
        yield executor


@pytest.fixture(params=["in process", pytest.param("ray", marks=pytest.mark.ray)])
def executor(request):
    if request.param == "ray":
        yield request.getfixturevalue("on_ray")
        return
    with open_executor("none", factory=FakeWorker) as here:
        yield here


class Log(list):
    """What an executor told, in order: journalled attempts and progress."""

    def before_submit(self, attempts):
        self.extend(("journalled", attempt.unit_id) for attempt in attempts)

    def on_event(self, event):
        self.append((event.kind, event.unit.unit_id if event.unit else event.worker))

    def of(self, kind):
        return [name for what, name in self if what == kind]


def names(failures):
    return sorted(failure.unit.unit_id for failure in failures)


def is_running(pid):
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def pids_of(note):
    """Return the processes that have begun a unit."""
    return {int(pid) for pid in note.read_text().split()}


def all_gone(pids, seconds=10.0):
    """Wait for processes to end; return whether they did."""
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(pids) and not any(map(is_running, pids))


# The contract


def test_every_unit_is_run_with_the_context_and_its_report_comes_back(executor):
    outcome = executor.run([make_unit(f"u{i}", num_cells=2) for i in range(7)], "context")
    assert sorted(report.unit_id for report in outcome.finished) == [f"u{i}:finish" for i in range(7)]
    assert {report.part.split("/")[0] for report in outcome.finished} == {"context"}
    assert sum(report.num_cells for report in outcome.finished) == 14
    assert (outcome.failed, outcome.quarantined, outcome.unfinished) == ((), (), ())


def test_nothing_to_run_is_no_work(executor):
    log = Log()
    assert executor.run([], "context", on_event=log.on_event).finished == ()
    assert not log.of("worker_started")


def test_the_same_workers_serve_several_runs_and_are_made_once(executor):
    first = executor.run([make_unit(f"first{i}") for i in range(4)], "one")
    log = Log()
    second = executor.run([make_unit(f"second{i}") for i in range(4)], "two", on_event=log.on_event)
    made = {report.part.split("/")[1] for report in first.finished}
    assert {report.part for report in second.finished} == {f"two/{number}" for number in made}
    assert not log.of("worker_started")


def test_an_error_costs_its_unit_only(executor):
    log = Log()
    units = [make_unit("a"), make_unit("b", "raise"), make_unit("c")]
    outcome = executor.run(units, "context", on_event=log.on_event)
    assert [failure.reason for failure in outcome.failed] == ["ValueError: b:raise went wrong"]
    assert "in run" in outcome.failed[0].traceback
    assert len(outcome.finished) == 2
    assert log.of("failed") == ["b:raise"]
    assert not log.of("worker_died")


def test_a_store_that_is_gone_is_not_the_units_fault_and_it_is_tried_again(executor):
    outcome = executor.run([make_unit("bad", "unwritable"), make_unit("good")], "context")
    assert [one.unit_id for one in outcome.finished] == ["good:finish"]
    assert outcome.failed == ()
    [given_up] = outcome.quarantined
    assert given_up.reason.startswith("unavailable: ")
    assert given_up.reason.endswith("5 times; the last: StoreError: cannot write")


def test_out_of_memory_is_tried_once_more(executor):
    log = Log()
    outcome = executor.run([make_unit("a", "exhaust"), make_unit("b")], "context", on_event=log.on_event)
    assert names(outcome.failed) == ["a:exhaust"]
    assert log.of("submitted").count("a:exhaust") == 2
    assert log.of("retried") == ["a:exhaust"]


def test_fail_fast_leaves_the_rest_unfinished(executor):
    units = [make_unit("bad", "raise", flops=9.0), *(make_unit(f"u{i}") for i in range(20))]
    outcome = executor.run(units, "context", fail_fast=True)
    assert names(outcome.failed) == ["bad:raise"]
    assert len(outcome.finished) + len(outcome.unfinished) == 20
    assert len(outcome.unfinished) > 10


def test_attempts_are_journalled_before_they_start(executor):
    log = Log()
    units = [make_unit("a", "exhaust"), *(make_unit(f"u{i}") for i in range(5))]
    executor.run(units, "context", on_event=log.on_event, before_submit=log.before_submit)
    waiting = []
    for what, name in log:
        if what == "journalled":
            waiting.append(name)
        elif what == "submitted":
            waiting.remove(name)
    assert waiting == []
    assert len(log.of("journalled")) == 7


def test_a_journal_that_cannot_be_written_ends_the_run_before_anything_starts(executor):
    def refuse(attempts):
        raise OSError("disk full")

    log = Log()
    with pytest.raises(OSError, match="disk full"):
        executor.run([make_unit("a")], "context", before_submit=refuse, on_event=log.on_event)
    assert not log.of("submitted")
    assert len(executor.run([make_unit("a")], "context").finished) == 1


def test_a_request_to_stop_lets_what_is_in_flight_finish(executor):
    def stop_at_the_first(event):
        if event.kind == "finished":
            executor.request_stop()

    outcome = executor.run([make_unit(f"u{i}") for i in range(30)], "context", on_event=stop_at_the_first)
    assert 1 <= len(outcome.finished) <= 5
    assert len(outcome.finished) + len(outcome.unfinished) == 30


def test_ticks_come_while_units_take_their_time(executor):
    log = Log()
    executor.run([make_unit("a", "nap")], "context", on_event=log.on_event)
    assert 1 <= len(log.of("tick")) <= 3


def test_an_interrupt_reaches_the_caller(executor):
    def interrupt(event):
        if event.kind == "submitted":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run([make_unit("a", "nap")], "context", on_event=interrupt)
    assert len(executor.run([make_unit("b")], "context").finished) == 1


@pytest.mark.parametrize("kind", ["in process", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_worker_that_finds_nothing_to_work_with_is_held_against_no_unit(request, kind):
    """The path is named, and no unit is tried."""
    address = "none"
    if kind == "ray":
        request.getfixturevalue("cluster")
        address = "local"
    log = Log()
    with (
        open_executor(address, factory=partial(FakeWorker, needs="/nowhere/data"), workers=2) as executor,
        pytest.raises((ClusterError, FileNotFoundError), match="/nowhere/data is not there"),
    ):
        executor.run([make_unit("a"), make_unit("b")], "context", on_event=log.on_event)
    assert not log.of("submitted")
    assert len(log.of("node_unfit")) == (kind == "ray")


def test_what_is_missing_for_a_later_run_is_found_before_its_first_unit(executor):
    assert len(executor.run([make_unit("a")], "context").finished) == 1
    with pytest.raises((ClusterError, FileNotFoundError), match="/gone is not there"):
        executor.run([make_unit("b")], {"needs": "/gone"})
    assert len(executor.run([make_unit("c")], "context").finished) == 1


# In process


def test_a_worker_that_cannot_be_made_in_process_says_why_itself():
    with (
        open_executor("none", factory=broken_factory) as executor,
        pytest.raises(FileNotFoundError, match="no data here"),
    ):
        executor.run([make_unit("a")], "context")


def test_an_exit_within_a_unit_does_not_end_this_process():
    with open_executor("none", factory=FakeWorker) as executor:
        outcome = executor.run([make_unit("a", "exit"), make_unit("b")], "context")
    assert [failure.reason for failure in outcome.failed] == ["SystemExit: 3"]


def test_an_error_whose_message_cannot_be_had_costs_its_unit_alone():
    with open_executor("none", factory=FakeWorker) as executor:
        outcome = executor.run([make_unit("a", "choke"), make_unit("b")], "context")
    assert [failure.reason for failure in outcome.failed] == ["SpeechlessError"]
    assert len(outcome.finished) == 1


def test_a_device_that_is_lost_in_process_ends_the_run_and_says_how_to_go_on():
    log = Log()
    units = [make_unit("a", flops=9.0), make_unit("b", "cuda", flops=5.0), make_unit("c")]
    with (
        open_executor("none", factory=FakeWorker) as executor,
        pytest.raises(
            BrokenProcessError,
            match=r"unit b:cuda broke .*\(RuntimeError: CUDA error: device-side assert .*`stitchgrid resume`",
        ),
    ):
        executor.run(units, "context", on_event=log.on_event)
    assert log.of("finished") == ["a:finish"]
    assert log.of("submitted") == ["a:finish", "b:cuda"]


def test_a_faulty_gpu_in_process_is_named_and_no_unit_is_blamed():
    with (
        open_executor("none", factory=FakeWorker) as executor,
        pytest.raises(
            BrokenProcessError, match=r"^the GPU is faulty \(RuntimeError: CUDA error: uncorrectable ECC"
        ) as caught,
    ):
        executor.run([make_unit("b", "ecc")], "context")
    assert "b:ecc" not in str(caught.value)


def test_a_worker_is_closed_at_the_end(tmp_path):
    with open_executor("none", factory=partial(FakeWorker, str(tmp_path))) as executor:
        executor.run([make_unit("a")], "context")
        assert not list(tmp_path.glob("closed-*"))
    assert len(list(tmp_path.glob("closed-*"))) == 1


def test_importing_the_executors_loads_neither_ray_nor_torch():
    code = "import stitchgrid.cluster, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "numpy"} & set(loaded)


def test_sigterm_is_an_interrupt_within_the_block_and_what_it_was_after_it():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_is_left_to_whoever_handles_it_already():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with sigterm_interrupts():
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


# On Ray: deaths


@pytest.mark.ray
def test_a_unit_that_kills_its_worker_is_cut_until_the_cell_at_fault_is_alone(on_ray):
    log = Log()
    units = [make_unit("bad", "crash", num_cells=4, flops=9.0), *(make_unit(f"u{i}") for i in range(4))]
    outcome = on_ray.run(units, "context", split=halve, on_event=log.on_event, before_submit=log.before_submit)
    assert names(outcome.quarantined) == ["bad/0-0:crash"]
    assert "killed its worker 3 times" in outcome.quarantined[0].reason
    assert "SYSTEM_ERROR" in outcome.quarantined[0].reason
    finished = {report.unit_id for report in outcome.finished}
    assert finished == {"bad/1-1:finish", "bad/2-3:finish", *(f"u{i}:finish" for i in range(4))}
    assert log.of("journalled").count("bad:crash") == 3
    assert log.of("journalled").count("bad/0-1:crash") == 1
    assert log.of("journalled").count("bad/0-0:crash") == 3
    assert log.of("bisected") == ["bad:crash", "bad/0-1:crash"]


@pytest.mark.ray
def test_a_unit_that_hangs_costs_its_worker_after_its_deadline(on_ray, notes):
    log = Log()
    outcome = on_ray.run(
        [make_unit("bad", "hang"), make_unit("good")],
        "context",
        deadlines=DeadlineRule(first=lambda unit: 0.2 if "hang" in unit.unit_id else 60.0, floor_s=0.2),
        on_event=log.on_event,
    )
    assert names(outcome.quarantined) == ["bad:hang"]
    assert "no answer within 1 s" in outcome.quarantined[0].reason
    assert len(outcome.finished) == 1
    assert log.of("worker_died") == ["bad:hang"] * 3
    assert all_gone(pids_of(notes / "bad:hang"))


@pytest.mark.ray
def test_an_interrupt_leaves_no_worker_at_its_unit(on_ray, notes):
    def interrupt(event):
        if event.kind == "tick" and (notes / "left:hang").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ray.run([make_unit("left", "hang")], "context", on_event=interrupt)
    assert all_gone(pids_of(notes / "left:hang"))


@pytest.mark.ray
def test_a_broken_cuda_context_takes_its_process_with_it(on_ray):
    log = Log()
    outcome = on_ray.run([make_unit("bad", "cuda"), make_unit("good")], "context", on_event=log.on_event)
    assert "CUDA error" in outcome.quarantined[0].reason
    assert log.of("worker_died") == ["bad:cuda"] * 3


@pytest.mark.ray
def test_a_faulty_gpu_is_held_against_no_unit(on_ray):
    log = Log()
    outcome = on_ray.run(
        [make_unit("bad", "ecc", num_cells=4), make_unit("good")], "c", split=halve, on_event=log.on_event
    )
    assert names(outcome.quarantined) == ["bad:ecc"], "and it was not cut in two"
    assert (
        "unavailable: its worker or the store was lost 5 times; the last: the GPU of" in outcome.quarantined[0].reason
    )
    assert not log.of("bisected")


@pytest.mark.ray
def test_a_worker_that_died_between_runs_is_held_against_no_unit(on_ray, notes):
    on_ray.run([make_unit("before1", "nap"), make_unit("before2", "nap")], "context")
    (victim,) = pids_of(notes / "before1:nap")
    os.kill(victim, signal.SIGKILL)
    assert all_gone({victim})
    log = Log()
    outcome = on_ray.run([make_unit(f"after{i}") for i in range(4)], "context", on_event=log.on_event)
    assert len(outcome.finished) == 4
    assert not log.of("retried")


@pytest.mark.ray
def test_a_report_that_cannot_be_sent_is_an_error_of_its_unit(on_ray):
    outcome = on_ray.run([make_unit("a", "unsendable"), make_unit("b")], "context")
    assert names(outcome.failed) == ["a:unsendable"]
    assert len(outcome.finished) == 1


@pytest.mark.ray
def test_workers_that_cannot_start_are_a_cluster_error_that_says_why(cluster):
    log = Log()
    with (
        open_executor("local", factory=broken_factory, workers=1) as executor,
        pytest.raises(ClusterError, match=r"No worker could be started.*FileNotFoundError: no data here"),
    ):
        executor.run([make_unit("a")], "context", on_event=log.on_event)
    assert len(log.of("worker_started")) == 3


@pytest.mark.ray
def test_another_version_of_stitchgrid_on_a_node_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(stitchgrid, "__version__", "9.9.9")
    with (
        open_executor("local", factory=FakeWorker, workers=1) as executor,
        pytest.raises(ClusterError, match=r"has stitchgrid 0\..*this command has 9\.9\.9; install the same version"),
    ):
        executor.run([make_unit("a")], "context")


@pytest.mark.ray
def test_a_pool_larger_than_the_cluster_starts_with_what_there_is(cluster):
    """The rest stays pending, and would be used as soon as a node joins."""
    with open_executor("local", factory=FakeWorker, workers=3, cpus_per_worker=2) as executor:
        outcome = executor.run([make_unit(f"u{i}") for i in range(3)], "context")
    assert len(outcome.finished) == 3


@pytest.mark.ray
def test_a_worker_that_never_becomes_ready_is_told_of(cluster, monkeypatch):
    monkeypatch.setattr("stitchgrid.cluster.ray_executor.WAITING_S", 0.5)
    told = []

    def stop_when_told(event):
        if event.kind == "waiting":
            told.append(event.detail)
            raise KeyboardInterrupt

    with (
        open_executor("local", factory=FakeWorker, workers=1, cpus_per_worker=64) as executor,
        pytest.raises(KeyboardInterrupt),
    ):
        executor.run([make_unit("a")], "context", on_event=stop_when_told)
    assert "each asks for 64 CPU and 0 GPU; the cluster has 6" in told[0]


@pytest.mark.ray
def test_a_local_cluster_listens_to_this_machine_only(cluster):
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    assert host == "127.0.0.1"
    socket.create_connection((host, int(port)), timeout=2).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address this machine has
        own = probe.getsockname()[0]
    if own != "127.0.0.1":
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((own, int(port)), timeout=2)


def test_what_an_error_of_ray_says_about_a_death():
    from ray import exceptions

    unavailable = exceptions.ActorUnavailableError("no answer", None)
    died, gone = exceptions.ActorDiedError(), exceptions.ActorDiedError()
    gone.error_msg = "The actor is dead because its node has died."
    gone.args = (gone.error_msg,)
    ask = partial(classify_death, is_node_alive=lambda: True, was_ready=True)
    assert ask(exceptions.OutOfMemoryError("Memory on the node was low")) == "crash"
    assert ask(died) == "crash"
    assert ask(gone) == "infrastructure"
    assert ask(died, is_node_alive=lambda: False) == "infrastructure"
    assert ask(unavailable) == "infrastructure"
    assert ask(unavailable, was_ready=False) == "infrastructure"
    assert ask(exceptions.RuntimeEnvSetupError("no"), was_ready=False) == "init"
    assert ask(exceptions.NodeDiedError("lost")) == "infrastructure"
    died._actor_init_failed = True
    assert ask(died) == "init"


def test_a_long_message_of_ray_becomes_a_line():
    long = "It died.\n\tpid: 3\nWorker exit type: SYSTEM_ERROR Worker exit detail: End of file. Some common causes ..."
    assert in_short(RuntimeError(long)) == "the worker's process ended (SYSTEM_ERROR): End of file."
    assert in_short(ValueError("first\nlast")) == "ValueError: last"


def chained(problem, *, cause=None, context=None):
    problem.__cause__, problem.__context__ = cause, context
    return problem


ASSERT = RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (ASSERT, True),
        (type("AcceleratorError", (RuntimeError,), {})("unspecified launch failure"), True),
        (type("AcceleratorError", (RuntimeError,), {})("CUDA error: out of memory"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), False),
        (ValueError("no luck"), False),
        (chained(ValueError("no luck"), cause=ASSERT), True),
        (chained(ValueError("no luck"), context=ASSERT), True),
    ],
)
def test_what_breaks_a_worker(problem, answer):
    assert breaks_worker(problem) is answer


ECC = RuntimeError("CUDA error: uncorrectable ECC error encountered")


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (ECC, True),
        (RuntimeError("CUDA error: uncorrectable NVLink error detected during the execution"), True),
        (ASSERT, False),
        (RuntimeError("CUDA error: out of memory"), False),
        (chained(ValueError("no luck"), cause=ECC), True),
    ],
)
def test_what_is_a_fault_of_the_hardware(problem, answer):
    assert is_hardware_fault(problem) is answer
    assert breaks_worker(problem) or not answer


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (MemoryError(), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (ValueError("memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(problem, answer):
    assert is_out_of_memory(problem) is answer


# On Ray: remote calls


@pytest.mark.ray
def test_a_remote_call_is_run_in_a_process_with_a_workers_resources(cluster):
    found = call_remotely("local", lambda: (os.getpid(), os.environ["OMP_NUM_THREADS"]), workers=3, cpus_per_worker=1)
    assert found.problem == ""
    assert found.answer[0] != os.getpid()
    assert found.answer[1] == "1"
    assert (found.size.num_workers, found.size.cpus) == (3, 1)


@pytest.mark.ray
def test_a_remote_call_that_raises_or_dies_or_finds_no_place_says_so_and_leaves_nothing_behind(cluster):
    import ray

    free = ray.available_resources().get("CPU", 0)
    assert re.fullmatch(r"on \S+: FileNotFoundError: no data here", call_remotely("local", broken_factory).problem)
    assert call_remotely("local", partial(os._exit, 3)).problem.startswith("the worker was lost: ")
    large = call_remotely("local", os.getpid, workers=1, cpus_per_worker=512, wait_s=0.5)
    assert large.problem == "the cluster had no free resources for a worker (512 CPU, 0 GPU) within 0.5 s"
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) < free and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] >= free


@pytest.mark.ray
def test_a_remote_call_to_another_version_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(stitchgrid, "__version__", "0.0.0")
    assert re.search(
        r"has stitchgrid \S+, this command has 0.0.0; install the same", call_remotely("local", os.getpid).problem
    )


# Whom a worker shares its memory with


@pytest.mark.parametrize(
    ("size", "node", "on_host", "on_gpu"),
    [
        (ClusterSize(num_workers=8, cpus=1, gpus=0), {"CPU": 4}, 4, 4),
        (ClusterSize(num_workers=2, cpus=1, gpus=0), {"CPU": 4}, 2, 2),
        (ClusterSize(num_workers=8, cpus=0.1, gpus=0), {"CPU": 0.3}, 3, 3),
        (ClusterSize(num_workers=8, cpus=0, gpus=1), {"CPU": 4, "GPU": 2}, 2, 1),
        (ClusterSize(num_workers=8, cpus=0, gpus=0.25), {"CPU": 4, "GPU": 2}, 8, 4),
        (ClusterSize(num_workers=3, cpus=0, gpus=0.25), {"CPU": 4, "GPU": 2}, 3, 3),
        (ClusterSize(num_workers=8, cpus=2, gpus=0.5), {"CPU": 4, "GPU": 2}, 2, 2),
        (ClusterSize(num_workers=8, cpus=0, gpus=2), {"CPU": 4, "GPU": 4}, 2, 1),
        (ClusterSize(num_workers=8, cpus=1, gpus=0), {}, 1, 1),
    ],
)
def test_as_many_workers_share_a_node_and_a_gpu_as_find_place_there(size, node, on_host, on_gpu):
    assert (size.on_host(node), size.on_gpu(node)) == (on_host, on_gpu)


@pytest.mark.ray
def test_workers_are_told_how_many_they_are(cluster):
    for options, wanted in (({"workers": 2}, "2 2"), ({"workers": 4, "cpus_per_worker": 3}, "2 2")):
        with open_executor("local", factory=FakeWorker, **options) as executor:
            [report] = executor.run([make_unit("a", "neighbours")], "context").finished
        assert report.part == wanted
    with open_executor("none", factory=FakeWorker) as executor:
        [report] = executor.run([make_unit("a", "neighbours")], "context").finished
    assert report.part == "1 1"


@pytest.mark.ray
def test_what_a_cluster_has_is_told(cluster):
    assert cluster_resources("local")["CPU"] == 6


# How many workers


@pytest.mark.parametrize(
    ("resources", "asked", "size"),
    [
        ({"CPU": 8, "memory": 64e9}, {}, (8, 1, 0)),
        ({"CPU": 8, "memory": 6.1e9}, {}, (4, 1, 0)),
        ({"CPU": 8, "memory": 64e9}, {"cpus_per_worker": 3}, (2, 3, 0)),
        ({"CPU": 8, "memory": 64e9}, {"max_units": 3}, (3, 1, 0)),
        ({"CPU": 8, "memory": 1e9}, {}, (1, 1, 0)),
        ({"CPU": 8, "memory": 1e9}, {"workers": 12}, (12, 1, 0)),
        ({"CPU": 8, "memory": 64e9}, {"workers": 12, "max_units": 5}, (5, 1, 0)),
        ({"CPU": 16, "GPU": 4, "memory": 64e9}, {}, (4, 0, 1)),
        ({"CPU": 16, "GPU": 4, "memory": 64e9}, {"gpus_per_worker": 0.5}, (8, 0, 0.5)),
        ({"CPU": 16, "GPU": 3, "memory": 64e9}, {"gpus_per_worker": 1 / 3}, (9, 0, 1 / 3)),
        ({"CPU": 4, "GPU": 4, "memory": 64e9}, {"cpus_per_worker": 2}, (2, 2, 1)),
        ({"CPU": 16, "GPU": 4, "memory": 64e9}, {"gpus_per_worker": 0}, (16, 1, 0)),
        ({}, {"max_units": 0}, (1, 1, 0)),
    ],
)
def test_the_pool_is_as_large_as_the_cluster_allows_and_the_work_needs(resources, asked, size):
    options = {"workers": None, "cpus_per_worker": None, "gpus_per_worker": None, "max_units": None, **asked}
    chosen = choose_size(resources, is_local=True, **options)
    assert (chosen.num_workers, chosen.cpus, chosen.gpus) == size


def test_gpus_that_a_local_machine_lacks_are_refused_and_awaited_on_a_cluster():
    options = {"workers": None, "cpus_per_worker": None, "gpus_per_worker": 1, "max_units": None}
    with pytest.raises(
        ClusterError,
        match=r"--gpus-per-worker 1 needs more GPUs than the 0 that Ray finds on this machine; leave the option out",
    ):
        choose_size({"CPU": 2}, is_local=True, **options)
    assert choose_size({"CPU": 2}, is_local=False, **options).gpus == 1


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0, None, None), "--workers must be at least 1, got 0"),
        ((None, -1, None), "--cpus-per-worker must be positive .* got -1"),
        ((None, 0, None), "--cpus-per-worker must be positive .* got 0"),
        ((None, 1.5, None), "--cpus-per-worker above 1 must be a whole number, got 1.5"),
        ((None, None, 0.3), "--gpus-per-worker must be a whole number or 1/k .* got 0.3"),
        ((None, None, 1.5), "--gpus-per-worker must be a whole number or 1/k .* got 1.5"),
        ((None, None, -1), "--gpus-per-worker must be a whole number or 1/k .* got -1"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, message):
    with pytest.raises(InputError, match=message):
        check_shares(*shares)


@pytest.mark.parametrize("shares", [(1, 0, 1), (None, 0.5, 0), (None, 4, 1 / 3), (None, None, 2)])
def test_shares_that_can_be_are_accepted(shares):
    check_shares(*shares)


# Addresses and tokens


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    """Make this a machine without any trace of a cluster or a token."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


def test_an_address_where_nothing_listens_is_an_error_at_once(no_cluster, closed_port):
    start = time.perf_counter()
    with (
        pytest.raises(ClusterError, match=rf"No Ray cluster listens at 127.0.0.1:{closed_port} .*ray start --head"),
        open_executor(f"127.0.0.1:{closed_port}", factory=FakeWorker),
    ):
        pass
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("address", ["somewhere", "host:port", "ray://host:10001", ":6379", ""])
def test_what_is_no_address_is_refused_before_anything_is_tried(address):
    with pytest.raises(InputError, match=r"is not an address of a cluster; use local, auto, none or HOST:PORT"):
        open_executor(address, factory=FakeWorker)


def test_auto_without_any_cluster_says_how_to_start_one(no_cluster):
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS is not set.*`ray start --head`"):
        find_cluster("auto")


def test_auto_takes_the_address_from_the_environment_then_from_rays_record(no_cluster, monkeypatch):
    (no_cluster / "ray").mkdir()
    (no_cluster / "ray" / "ray_current_cluster").write_text("10.0.0.7:6379\n")
    assert find_cluster("auto") == "10.0.0.7:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.8:6379")
    assert find_cluster("auto") == "10.0.0.8:6379"
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(InputError, match=r"RAY_ADDRESS=http://127.0.0.1:8265 is not an address of a cluster"):
        find_cluster("auto")


def test_a_token_is_used_where_there_is_one(no_cluster, monkeypatch):
    assert connection._authentication_mode() == "disabled"
    (no_cluster / ".ray").mkdir()
    (no_cluster / ".ray" / "auth_token").write_text("secret")
    assert connection._authentication_mode() == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert connection._authentication_mode() == "disabled"


def test_a_token_that_is_wanted_and_missing_is_an_error_at_once(no_cluster, monkeypatch):
    """Ray would abort the process."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterError, match=r"there is no token; put the cluster's token into ~/.ray/auth_token"):
        connection._authentication_mode()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH names /nowhere/token, which is not a file"):
        connection._authentication_mode()


def test_a_listener_that_is_no_cluster_is_found_out(no_cluster, monkeypatch):
    monkeypatch.setattr(connection, "PROBE_TIMEOUT_S", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        require_listener(target)
        with pytest.raises(ClusterError, match=r"does not answer like a Ray cluster \(no answer within 1 s\)"):
            connection._probe(target)


def test_settings_are_put_back(no_cluster, monkeypatch):
    monkeypatch.setattr(connection, "_read_settings_again", lambda: None)  # other tests have a cluster open
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    with connection.Settings({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, loopback=True):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert "RAY_AUTH_MODE" not in os.environ
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def test_rays_printer_is_put_back():
    import ray._private.worker as driver

    before = driver.print_to_stdstream
    with quiet_driver():
        assert driver.print_to_stdstream is not before
    assert driver.print_to_stdstream is before


# Whole processes

SCRIPT = """
import sys, time
from functools import partial
from helpers_cluster import FakeWorker, make_unit
from stitchgrid.cluster import open_executor

address, folder, *units = sys.argv[1:]
try:
    with open_executor(address, factory=partial(FakeWorker, folder), workers=2) as executor:
        print("open", flush=True)
        outcome = executor.run([make_unit(*unit.split(":")) for unit in units], "context")
        time.sleep(1.5 * bool(outcome.quarantined))  # Ray's messages about deaths come late
except KeyboardInterrupt:
    sys.exit(130)
except Exception as problem:
    sys.exit(f"{type(problem).__name__}: {problem}")
print(len(outcome.finished), len(outcome.quarantined))
"""


def start_script(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", dedent(SCRIPT), *map(str, arguments)],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pids_in(folder):
    return set().union(*map(pids_of, folder.iterdir()))


def processes_that_mention(text):
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and text.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.ray
def test_a_whole_run_prints_nothing_of_rays_writes_no_token_and_leaves_no_process_behind(tmp_path):
    home, temporary, folder = tmp_path / "home", Path(f"/tmp/sg-{os.getpid()}"), tmp_path / "notes"
    for path in (home, temporary, folder):
        path.mkdir()
    try:
        script = start_script(
            "local", folder, "a:finish", "b:crash", "c:print", HOME=str(home), RAY_TMPDIR=str(temporary)
        )
        output, errors = script.communicate(timeout=120)
        assert (script.returncode, output) == (0, "open\n2 1\n"), errors
        assert errors == ""
        assert not list(home.iterdir())
        assert len(pids_in(folder)) >= 3
        assert all_gone(pids_in(folder))
        assert not processes_that_mention(str(temporary))
        logs = list(temporary.glob("stitchgrid-*/ray*/session_*/logs"))
        assert logs, "kept, because a worker crashed"
    finally:
        subprocess.run(["rm", "-rf", str(temporary)], check=True)


@pytest.mark.ray
def test_workers_import_nothing_from_the_current_folder(tmp_path):
    (tmp_path / "helpers_cluster.py").write_text("raise SystemExit('code of the current folder')")
    command = [sys.executable, "-P", "-c", dedent(SCRIPT), "local", str(tmp_path), "a:finish"]
    found = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "open\n1 0\n"), found.stderr


@pytest.mark.ray
def test_sigterm_takes_the_workers_down_and_ends_the_run(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    script = start_script("local", folder, "a:hang", "b:hang")
    while len(list(folder.iterdir())) < 2:
        assert script.poll() is None, script.communicate()
        time.sleep(0.05)
    started = pids_in(folder)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=60)
    assert (script.returncode, output) == (130, "open\n")
    assert all_gone(started)


@pytest.fixture(scope="module")
def head(closed_port_of_head, tmp_path_factory):
    """Start a cluster as `ray start` does, one that wants a token."""
    temporary = Path(f"/tmp/sgh-{os.getpid()}")
    temporary.mkdir()
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("secret")
    environment = {
        **ENVIRONMENT,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(temporary),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ray = Path(sys.executable).with_name("ray")
    options = ["--head", "--block", "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=80000000"]
    process = subprocess.Popen(
        [ray, "start", *options, f"--port={closed_port_of_head}"],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    record = temporary / "ray" / "ray_current_cluster"
    deadline = time.monotonic() + 60
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield temporary, token, record.read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["rm", "-rf", str(temporary)], check=True)


@pytest.fixture(scope="module")
def closed_port_of_head():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.ray
def test_a_running_cluster_is_found_and_joined_with_its_token(head, tmp_path):
    temporary, token, _ = head
    script = start_script(
        "auto", tmp_path, "a:finish", "b:finish", RAY_TMPDIR=str(temporary), RAY_AUTH_TOKEN_PATH=str(token)
    )
    output, errors = script.communicate(timeout=60)
    assert (output, errors) == ("open\n2 0\n", "")


@pytest.mark.ray
@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_TOKEN": "wrong"}])
def test_a_cluster_that_wants_another_token_is_an_error_at_once(head, tmp_path, token):
    _, _, address = head
    start = time.perf_counter()
    script = start_script(address, tmp_path, "a:finish", HOME=str(tmp_path), **token)
    output, errors = script.communicate(timeout=60)
    assert script.returncode == 1
    assert output == ""
    assert errors.startswith(
        f"ClusterError: The Ray cluster at {address} needs a token, and this machine has none or a wrong one"
    )
    assert time.perf_counter() - start < 8


@pytest.mark.ray
def test_a_plan_measures_a_worker_of_the_cluster_at_its_address(head, tmp_path):
    temporary, token, _ = head
    (tmp_path / "job.toml").write_text(
        """
name = "small"
[data]
dataset = "digits"
fit = { split = "train", samples = 16 }
eval = { split = "test", samples = 16 }
[[models]]
name = "net"
architecture = "nets.py:net"
weights = "random"
[[matchers]]
kind = "cka"
"""
    )
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "stitchgrid.cli", "plan", "job.toml", "--address", "auto", "--cpus-per-worker", "2"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "RAY_TMPDIR": str(temporary), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No worker's speed" not in said.stderr
    assert re.search(r"on 1 worker, plus start-up\nmeasured on \S+: cpu \(.+\), 2 threads, fp32", said.stdout)
