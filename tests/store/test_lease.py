"""Two launches on one store: who has the sweep, who may take it, and who notices."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from helpers_flow import at_once

from stitchgrid.driver.heartbeat import Heartbeat
from stitchgrid.errors import StoreError
from stitchgrid.store import LeaseError, Store
from stitchgrid.store import lease as lease_module


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "grid", create=True)


def beat(store, launch, *, ago=0.0, **more):
    at = datetime.now(UTC) - timedelta(seconds=ago)
    store.write_heartbeat("s", {"at": at.isoformat(), "launch": launch, "is_over": False, **more})


def from_elsewhere(store, number, **changes):
    """Make a claim one of another machine."""
    path = store.files.path(f"sweeps/s/claims/{number:06d}.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere", "process": "b/p/1", **changes}))


def test_a_sweep_that_nobody_is_at_can_be_claimed(store):
    assert store.leases.holder("s") is None
    claim = store.leases.claim("s", "first")
    assert (claim.number, store.leases.holder("s")) == (1, claim)
    assert claim.pid == os.getpid()


def test_a_claimed_sweep_is_refused_with_whose_it_is_and_what_to_do(store):
    claim = store.leases.claim("s", "first")
    with pytest.raises(LeaseError, match=r"launch first \(.*@.*process \d+\).*--force") as caught:
        store.leases.claim("s", "second")
    assert claim.host in str(caught.value)
    assert store.leases.last_number("s") == 1


def test_other_sweeps_of_the_store_are_free(store):
    store.leases.claim("s", "first")
    assert store.leases.claim("t", "second").number == 1


def test_a_launch_that_said_it_was_over_holds_nothing(store):
    store.leases.claim("s", "first")
    beat(store, "first", is_over=True)
    assert store.leases.claim("s", "second").number == 2


@contextmanager
def beating(store, launch, *, ago=0.0):
    """Let a launch of another machine say every few milliseconds that it is alive, by a clock that is off."""
    over = threading.Event()

    def keep_beating():
        count = 0
        while not over.wait(0.02):
            beat(store, launch, ago=ago, num_done=(count := count + 1))

    thread = threading.Thread(target=keep_beating)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("ago", [0, 300, 1e7, -300])
def test_a_launch_of_another_machine_is_alive_while_its_heartbeat_changes_whatever_its_clock(store, ago):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    with beating(store, "first", ago=ago):
        assert store.leases.holder("s").launch == "first"
        with pytest.raises(LeaseError) as caught:
            store.leases.claim("s", "second")
    skew = re.search(r"whose clock is (\d+) s (behind|ahead of) this machine's", str(caught.value))
    assert (
        (skew is None)
        if ago == 0
        else (float(skew[1]), skew[2])
        == (
            pytest.approx(abs(ago), abs=5),
            "behind" if ago > 0 else "ahead of",
        )
    )


@pytest.mark.parametrize("ago", [0, 300, -300])
def test_a_launch_of_another_machine_that_says_nothing_new_is_gone_and_that_is_waited_for(store, ago):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    beat(store, "first", ago=ago)
    said = []
    assert store.leases.claim("s", "second", say=said.append).number == 2
    assert re.fullmatch(
        r"Sweep 's' was claimed by launch first \(.*@elsewhere, .*to see whether that launch is alive\.", said[0]
    )


def test_a_launch_of_another_machine_that_says_it_is_over_is_not_waited_for(store, monkeypatch):
    monkeypatch.setattr(lease_module, "SILENCE_S", 60.0)
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    beat(store, "first", is_over=True)
    assert store.leases.claim("s", "second").number == 2


def test_who_claims_while_another_is_waited_for_counts(store):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)

    def claim():
        time.sleep(0.05)
        store.leases.claim("s", "second", force=True)

    (thread := threading.Thread(target=claim)).start()
    assert store.leases.holder("s").launch == "second"
    thread.join()


def test_the_heartbeat_of_an_earlier_launch_says_nothing_of_this_one(store):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    beat(store, "an earlier one", ago=1e6, is_over=True)
    said = []
    assert store.leases.holder("s", say=said.append) is None
    assert said, "it was not known before"


def test_one_waits_for_the_end_of_a_launch_as_long_as_it_takes(store):
    claim = store.leases.claim("s", "first")
    said = []
    with Heartbeat(store, "s", claim, on_lost=pytest.fail):
        thread = threading.Thread(target=store.leases.wait_until_free, args=("s",), kwargs={"say": said.append})
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(5)
    assert not thread.is_alive()
    assert said == [f"Waiting until {claim} has finished sweep 's'."]


def test_a_sweep_whose_clock_is_off_is_seen_to_run_at_a_second_look(store):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    now = datetime.now(UTC)
    beat(store, "first", ago=600)
    assert store.leases.heartbeats(["s"], now) == {}
    with beating(store, "first", ago=600):
        assert store.leases.heartbeats(["s"], now)["s"]["launch"] == "first"


CLAIM = "import sys; from stitchgrid.store import Store; print(Store.open(sys.argv[1]).leases.claim('s', 'first'))"


def test_a_claim_dies_with_its_process_on_the_same_machine_however_fresh_its_heartbeat(store):
    subprocess.run([sys.executable, "-c", CLAIM, store.uri], check=True)
    beat(store, "first")
    assert store.leases.holder("s") is None
    assert store.leases.claim("s", "second").number == 2


def test_a_process_is_not_taken_for_another_that_had_its_number(store, monkeypatch):
    claim = store.leases.claim("s", "first")
    assert lease_module.is_here(claim)
    assert lease_module.is_running(claim)
    machine, _, started = claim.process.rpartition("/")
    from_elsewhere(store, 1, process=f"{machine}/{int(started) - 1}")
    assert store.leases.holder("s") is None


def test_a_process_that_the_system_hides_from_other_users_is_not_taken_for_dead(store, monkeypatch):
    """Where /proc is mounted with `hidepid`, it shows no process of others, and a signal to one is forbidden."""
    monkeypatch.setattr(lease_module, "SILENCE_S", 2.0)
    with subprocess.Popen(["sleep", "60"]) as other:
        store.leases.claim("s", "first")
        from_elsewhere(store, 1, pid=other.pid, process=lease_module._process(other.pid))
        read_text, kill = lease_module.Path.read_text, os.kill

        def hides(path, *rest, **more):
            if path == lease_module.Path(f"/proc/{other.pid}/stat"):
                raise FileNotFoundError(2, "No such file or directory")
            return read_text(path, *rest, **more)

        def forbids(pid, signal):
            if pid == other.pid:
                raise PermissionError(1, "Operation not permitted")
            kill(pid, signal)

        monkeypatch.setattr(lease_module.Path, "read_text", hides)
        monkeypatch.setattr(lease_module.os, "kill", forbids)
        with beating(store, "first"):
            with pytest.raises(LeaseError, match="first"):
                store.leases.claim("s", "second")
            assert store.leases.heartbeats(["s"], datetime.now(UTC))
        assert store.leases.claim("s", "second").number == 2  # it beats no more
        monkeypatch.undo()
        other.kill()


def test_force_takes_a_sweep_from_a_launch_that_is_alive(store):
    first = store.leases.claim("s", "first")
    second = store.leases.claim("s", "second", force=True)
    assert second.number == 2
    assert store.leases.successor("s", first) == second
    assert store.leases.successor("s", second) is None


def test_of_many_at_once_one_gets_the_sweep(store):
    won, lost = [], []

    def claim(number):
        try:
            won.append(store.leases.claim("s", f"launch-{number}"))
        except LeaseError:
            lost.append(number)

    at_once(12, claim)
    assert (len(won), len(lost)) == (1, 11)
    assert store.leases.holder("s") == won[0]


def test_a_damaged_claim_counts_while_somebody_is_heard_of(store):
    store.leases.claim("s", "first")
    store.files.path("sweeps/s/claims/000001.json").write_text("{")
    assert store.leases.holder("s") is None
    with beating(store, "first"), pytest.raises(LeaseError, match="launch unknown"):
        store.leases.claim("s", "second")


def test_a_heartbeat_says_what_it_is_told_and_that_it_is_over(store):
    claim = store.leases.claim("s", "first")
    with Heartbeat(store, "s", claim, on_lost=pytest.fail) as pulse:
        with pulse.telling(lambda: {"stage": "computing", "num_done": 3}):
            assert store.read_heartbeat("s")["num_done"] == 3
        assert store.read_heartbeat("s")["is_over"] is False
    assert store.read_heartbeat("s")["is_over"] is True
    assert store.leases.holder("s") is None


def test_a_launch_whose_sweep_is_taken_over_stops_and_says_so(store, monkeypatch):
    monkeypatch.setattr("stitchgrid.driver.heartbeat.HEARTBEAT_SECONDS", 0.02)
    lost = threading.Event()
    claim = store.leases.claim("s", "first")
    with Heartbeat(store, "s", claim, on_lost=lost.set) as pulse:
        pulse.require_lease()
        store.leases.claim("s", "second", force=True)
        beat(store, "second")
        assert lost.wait(5)
        with pytest.raises(StoreError, match="taken over by launch second"):
            pulse.require_lease()
    assert store.read_heartbeat("s")["launch"] == "second", "a launch that was replaced is silent"


def test_a_heartbeat_that_cannot_be_written_for_a_while_does_no_harm(store, monkeypatch):
    monkeypatch.setattr("stitchgrid.driver.heartbeat.HEARTBEAT_SECONDS", 0.02)
    claim = store.leases.claim("s", "first")
    tried = threading.Event()

    def refuse(*_):
        tried.set()
        raise StoreError("cannot write")

    with Heartbeat(store, "s", claim, on_lost=pytest.fail), monkeypatch.context() as patch:
        patch.setattr(store, "write_heartbeat", refuse)
        assert tried.wait(5)
    assert store.read_heartbeat("s")["is_over"] is True
