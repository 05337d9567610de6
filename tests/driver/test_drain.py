"""What signals do to a run: finish what is in flight, give it up, or end at once."""

import signal
import time

import pytest
from helpers_cluster import FakeWorker, make_unit

from stitchgrid.cluster import open_executor
from stitchgrid.driver.shutdown import Shutdown

UNITS = [make_unit(f"unit-{i}", "nap", flops=9.0 - i) for i in range(3)]  # 1.1 s each, in this order


class Run:
    """Three units in this process, and signals at chosen moments."""

    def __init__(self, seconds, *, on_submit=None):
        self.said, self.finished = [], []
        self.drain = Shutdown(seconds, self.said.append)
        self.on_submit = on_submit or {}

    def on_event(self, event):
        if event.kind == "submitted":
            for number in self.on_submit.pop(event.unit.unit_id.split(":")[0], ()):
                signal.raise_signal(number)
        if event.kind == "finished":
            self.finished.append(event.unit.unit_id)

    def __call__(self):
        with (
            open_executor("none", factory=FakeWorker) as executor,
            self.drain.listening(),
            self.drain.stopping(executor),
        ):
            executor.run(UNITS, "context", on_event=self.on_event)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_unit_in_flight_finish(number):
    run = Run(60, on_submit={"unit-1": [number]})
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.finished == ["unit-0:nap", "unit-1:nap"]
    assert "what is in flight has 60 s to finish" in run.said[0]


def test_a_unit_that_takes_longer_than_it_was_given_is_given_up():
    run = Run(0.2, on_submit={"unit-1": [signal.SIGTERM]})
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.finished == ["unit-0:nap"]


def test_a_second_signal_ends_it_at_once():
    run = Run(60, on_submit={"unit-0": [signal.SIGINT, signal.SIGINT]})
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.finished == []


def test_no_time_to_drain_ends_it_at_the_first_signal():
    run = Run(0, on_submit={"unit-0": [signal.SIGTERM]})
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (run.finished, run.said) == ([], [])


def test_without_a_run_a_signal_is_an_interrupt():
    drain = Shutdown(60, print)
    with pytest.raises(KeyboardInterrupt), drain.listening():
        signal.raise_signal(signal.SIGTERM)


def test_a_run_that_nothing_interrupts_ends_as_usual_and_handlers_are_put_back():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    run = Run(60)
    run()
    assert len(run.finished) == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == handlers


def test_no_alarm_is_left_when_the_run_ends_within_its_time():
    run = Run(1.5, on_submit={"unit-0": [signal.SIGTERM]})
    with pytest.raises(KeyboardInterrupt):
        run()
    time.sleep(0.6)  # the alarm would have ended this test, and with it everything


def test_a_run_can_be_stopped_from_outside_without_a_signal():
    run = Run(60)
    run.on_event = lambda event: run.drain.stop() if event.kind == "submitted" else None
    run()  # no interrupt: whoever stopped it knows why
    assert not run.drain.is_draining
