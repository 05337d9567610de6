"""What is noted while units are done, and how it is read again."""

import logging

import pytest
from click.testing import CliRunner
from helpers_cluster import make_unit

from stitchgrid.cli import cli
from stitchgrid.cluster import Progress
from stitchgrid.display import Display
from stitchgrid.driver.progress import StageProgress
from stitchgrid.errors import StoreError
from stitchgrid.records import TrainNetwork
from stitchgrid.store import Store
from stitchgrid.store.logs import MAX_CHARACTERS
from stitchgrid.worker import Worker
from stitchgrid.worker_logs import taking_notes


@pytest.fixture
def store(tmp_path):
    found = Store.open(tmp_path / "grid", create=True)
    found.write_job("s", {"name": "s"})
    return found


def test_attempts_at_a_unit_are_kept_one_after_the_other(store):
    assert store.read_log("s", "u") is None
    for text in ("first\n", "second\n"):
        store.write_log("s", "u", text)
    assert store.read_log("s", "u") == "first\n\nsecond\n"
    assert store.log_names("s") == ["u"]


def test_of_a_long_log_the_end_is_kept(store):
    store.write_log("s", "u", "x" * MAX_CHARACTERS + "the error")
    assert store.read_log("s", "u").endswith("xthe error")
    assert len(store.read_log("s", "u")) == MAX_CHARACTERS


@pytest.mark.parametrize(("asked", "kept"), [(None, ["INFO"]), ("debug", ["DEBUG", "INFO"]), ("error", ["INFO"])])
def test_notes_are_taken_from_informative_on_or_from_what_is_shown(monkeypatch, asked, kept):
    monkeypatch.delenv("STITCHGRID_LOG", raising=False)
    if asked:
        monkeypatch.setenv("STITCHGRID_LOG", asked)
    log = logging.getLogger("stitchgrid.any")
    with taking_notes() as notes:
        log.debug("one")
        log.info("two")
        logging.getLogger("other").error("not ours")
    log.error("too late")
    assert [line.split()[2] for line in notes.lines] == kept


def test_a_worker_keeps_the_traceback_of_what_it_gave_up(store, monkeypatch):
    worker = Worker(store=store.uri, device="cpu", threads=1)

    class Context:
        name, batch_size, compiles = "s", 1, False

    def fail(unit, context):
        raise ValueError("of no use")

    monkeypatch.setattr(worker, "_shard", fail)
    with pytest.raises(ValueError, match="of no use"):
        worker.run(make_unit("u"), Context())
    found = store.read_log("s", "u:finish") if "u:finish" in store.log_names("s") else None
    assert found is None, "the unit's name is no file name: nothing is kept, nothing escapes"
    unit = TrainNetwork(unit_id="t", spec=None, data=None)
    with pytest.raises(AttributeError):
        worker.run(unit, Context())
    assert "Traceback" in store.read_log("s", "t")
    assert "1 threads" in store.read_log("s", "t")


def test_a_log_that_cannot_be_kept_costs_nothing(store, monkeypatch):
    worker = Worker(store=store.uri, device="cpu", threads=1)

    class Context:
        name = "s"

    def refuse(*_):
        raise StoreError("full")

    monkeypatch.setattr(worker.store, "write_log", refuse)
    monkeypatch.setattr(worker, "_run", lambda unit, context: "report")
    assert worker.run(make_unit("u"), Context()) == "report"


def test_the_driver_notes_how_a_worker_died(store):
    with Display().stage("computing", 1, "cells") as stage:
        watch = StageProgress(store, "s", "launch", stage, num_done=0)
        unit = TrainNetwork(unit_id="t", spec=None, data=None)
        watch.on_event(
            Progress(kind="worker_died", worker="worker-2", unit=unit, detail="killed by signal 9", log="/tmp/ray")
        )
    assert "worker-2 died at this unit: killed by signal 9; its process wrote to /tmp/ray" in store.read_log("s", "t")


def test_workers_and_what_happened_are_told_for_the_heartbeat(store):
    unit = TrainNetwork(unit_id="t", spec=None, data=None)
    with Display().stage("computing", 1, "cells") as stage:
        watch = StageProgress(store, "s", "launch", stage, num_done=0)
        for kind in ("worker_started", "worker_ready", "submitted"):
            watch.on_event(Progress(kind=kind, worker="a", node="n1", unit=unit if kind == "submitted" else None))
        watch.on_event(Progress(kind="worker_started", worker="b"))
        told = watch.tell()
        assert [(one["worker"], one["state"]) for one in told["workers"]] == [("a", "busy"), ("b", "starting")]
        assert [one["unit"] for one in told["running"]] == ["t"]
        watch.on_event(Progress(kind="worker_died", worker="a", unit=unit, detail="gone"))
        watch.on_event(Progress(kind="retried", unit=unit, detail="gone"))
        told = watch.tell()
        assert ([one["worker"] for one in told["workers"]], told["running"]) == (["b"], [])
        assert told["happened"] == {"worker_died": 1, "retried": 1}


@pytest.mark.parametrize("kind", ["failed", "retried", "bisected", "quarantined"])
def test_a_unit_that_a_living_worker_gave_back_is_not_told_as_running(store, kind):
    unit = TrainNetwork(unit_id="t", spec=None, data=None)
    with Display().stage("computing", 1, "cells") as stage:
        watch = StageProgress(store, "s", "launch", stage, num_done=0)
        watch.on_event(Progress(kind="worker_ready", worker="a"))
        watch.on_event(Progress(kind="submitted", worker="a", unit=unit))
        watch.on_event(Progress(kind=kind, unit=unit, detail="out of memory"))
        told = watch.tell()
    assert ([one["state"] for one in told["workers"]], told["running"]) == (["ready"], [])


def ask(store, *arguments):
    return CliRunner().invoke(cli, ["logs", *arguments, "--store", store.uri])


def test_logs_are_listed_and_shown_by_the_beginning_of_an_id(store):
    store.write_log("s", "3f2a", "all well\n")
    store.write_log("s", "77aa", "not so well\n")
    assert ask(store, "s").output == "3f2a\n77aa\n"
    assert ask(store, "s", "3f").output == "all well\n\n"
    refused = ask(store, "s", "zz")
    assert (refused.exit_code, "no log of a shard 'zz' in sweep 's'" in refused.output) == (2, True)
    assert "no sweep 't'" in ask(store, "t").output


def test_without_logs_it_says_so(store):
    assert ask(store, "s").output == "No logs yet.\n"
