"""What `status` says of a launch that runs, ran, or was killed."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from helpers_store import SWEEP, make_synthetic_store

from stitchgrid.catalog.progress import SHOWN, read_progress
from stitchgrid.cli import cli


@pytest.fixture
def store(tmp_path):
    return make_synthetic_store(tmp_path / "grid").store


def worker(number, **more):
    return {"worker": f"worker-{number}", "node": "box/abc", "state": "ready", "num_units": 3, **more}


def busy(number):
    since = (datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=number)).isoformat()
    return worker(number, state="busy", unit=f"u{number}", shard=f"u{number}", since=since)


def beat(store, workers, *, launch="first", ago=0, **more):
    at = datetime.now(UTC) - timedelta(seconds=ago)
    told = {
        "at": at.isoformat(),
        "launch": launch,
        "host": "box",
        "is_over": False,
        "stage": "computing cells",
        "running": [one for one in workers if one["state"] == "busy"],
        "workers": workers,
        "happened": {"worker_died": 2, "retried": 1},
        "num_done": 30,
        "num_failed": 0,
        "num_total": 120,
        "seconds": 10.0,
        "noun": "cells",
        **more,
    }
    store.write_heartbeat(SWEEP, told)


def shown(store, *options):
    return CliRunner().invoke(cli, ["status", SWEEP, "--store", store.uri, *options]).stdout


def test_a_running_launch_tells_its_pace_its_workers_and_what_happened(store):
    beat(store, [busy(2), busy(1), worker(3), worker(4, state="starting")])
    text = shown(store)
    assert "computing cells on box, 2 workers busy, 3.0 cells/s, 0:00:30 left" in text
    assert text.index("worker-1 on box/abc: u1 since") < text.index("worker-2 on box/abc: u2 since")
    assert "1 ready, 1 starting, 1 retried, 2 worker died" in text


def test_the_same_in_json(store):
    beat(store, [busy(1), worker(3)])
    [found] = json.loads(shown(store, "--format", "json"))
    assert (found["per_second"], found["seconds_left"], found["num_workers"]) == (3.0, 30.0, 1)
    assert (found["launch"], [one["state"] for one in found["workers"]]) == ("first", ["busy", "ready"])
    assert found["happened"] == {"worker_died": 2, "retried": 1}


def test_of_many_workers_those_longest_at_their_unit_are_shown(store):
    beat(store, [busy(number) for number in range(SHOWN + 5)])
    text = shown(store)
    assert text.count("since") == SHOWN
    assert "u0 since" in text
    assert "... and 5 more" in text


@pytest.mark.parametrize(("more", "running"), [({}, True), ({"ago": 600}, False), ({"is_over": True}, False)])
def test_a_launch_runs_as_long_as_it_is_heard_of_and_has_not_ended(store, more, running):
    beat(store, [busy(1)], **more)
    [found] = read_progress(store, SWEEP)
    assert found.is_running is running
    assert found.heard_seconds_ago is not None


CLAIM = "import sys; from stitchgrid.store import Store; Store.open(sys.argv[1]).leases.claim(sys.argv[2], 'first')"


def test_a_launch_that_was_killed_on_this_machine_does_not_run_however_fresh_its_heartbeat(store):
    subprocess.run([sys.executable, "-c", CLAIM, store.uri, SWEEP], check=True)
    beat(store, [busy(1)])
    [found] = read_progress(store, SWEEP)
    assert not found.is_running
    assert found.counts.get("running", 0) == 0


def test_a_launch_between_its_stages_is_preparing(store):
    store.write_heartbeat(
        SWEEP, {"at": datetime.now(UTC).isoformat(), "launch": "first", "host": "box", "is_over": False, "running": []}
    )
    assert "preparing on box, 0 workers busy" in shown(store)
