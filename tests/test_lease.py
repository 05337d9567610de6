"""Two launches on one store: who has the sweep, who may take it, and who notices."""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from helpers_flow import at_once

from stitchgrid.driver.pulse import Pulse
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


@pytest.mark.parametrize(("ago", "free"), [(5, False), (80, False), (100, True)])
def test_a_claim_from_another_machine_stands_as_long_as_its_heartbeat_is_fresh(store, ago, free):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    beat(store, "first", ago=ago)
    assert (store.leases.holder("s") is None) == free


def test_the_heartbeat_of_an_earlier_launch_says_nothing_of_this_one(store):
    store.leases.claim("s", "first")
    from_elsewhere(store, 1)
    beat(store, "an earlier one", ago=1e6, is_over=True)
    assert store.leases.holder("s").launch == "first"
    from_elsewhere(store, 1, at=(datetime.now(UTC) - timedelta(hours=1)).isoformat())
    assert store.leases.holder("s") is None


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
    beat(store, "first")
    with pytest.raises(LeaseError, match="launch unknown"):
        store.leases.claim("s", "second")


def test_a_heartbeat_says_what_it_is_told_and_that_it_is_over(store):
    claim = store.leases.claim("s", "first")
    with Pulse(store, "s", claim, on_lost=pytest.fail) as pulse:
        with pulse.telling(lambda: {"stage": "computing", "num_done": 3}):
            assert store.read_heartbeat("s")["num_done"] == 3
        assert store.read_heartbeat("s")["is_over"] is False
    assert store.read_heartbeat("s")["is_over"] is True
    assert store.leases.holder("s") is None


def test_a_launch_whose_sweep_is_taken_over_stops_and_says_so(store, monkeypatch):
    monkeypatch.setattr("stitchgrid.driver.pulse.HEARTBEAT_SECONDS", 0.02)
    lost = threading.Event()
    claim = store.leases.claim("s", "first")
    with Pulse(store, "s", claim, on_lost=lost.set) as pulse:
        pulse.require_lease()
        store.leases.claim("s", "second", force=True)
        beat(store, "second")
        assert lost.wait(5)
        with pytest.raises(StoreError, match="taken over by launch second"):
            pulse.require_lease()
    assert store.read_heartbeat("s")["launch"] == "second", "a launch that was replaced is silent"


def test_a_heartbeat_that_cannot_be_written_for_a_while_does_no_harm(store, monkeypatch):
    monkeypatch.setattr("stitchgrid.driver.pulse.HEARTBEAT_SECONDS", 0.02)
    claim = store.leases.claim("s", "first")
    tried = threading.Event()

    def refuse(*_):
        tried.set()
        raise StoreError("cannot write")

    with Pulse(store, "s", claim, on_lost=pytest.fail), monkeypatch.context() as patch:
        patch.setattr(store, "write_heartbeat", refuse)
        assert tried.wait(5)
    assert store.read_heartbeat("s")["is_over"] is True
