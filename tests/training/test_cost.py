"""Time and device-hours of a run, over interruptions."""

from contextlib import suppress

import pytest

from arcdist.training import cost
from arcdist.training.cost import Cost


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(cost.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_every_process_counts_as_a_device(clock):
    spent = Cost(processes=4)
    clock.now = 150.0
    spent.start()
    clock.now = 150.0 + 1800
    assert spent.record() == {"time/elapsed_s": 1800.0, "time/device_hours": 2.0, "time/tracking_s": 0.0}


def test_what_training_waits_for_its_numbers_is_counted_even_where_that_fails(clock):
    spent = Cost(processes=1)
    for seconds in (2.0, 3.0):
        with suppress(OSError), spent.of_tracking():
            clock.now += seconds
            raise OSError
    clock.now += 20
    assert spent.record()["time/tracking_s"] == 5.0
    resumed = Cost(processes=1)
    resumed.load_state(spent.state())
    assert resumed.record()["time/tracking_s"] == 5.0


def test_a_resumed_run_counts_on_with_the_processes_that_it_has_then(clock):
    spent = Cost(processes=4)
    clock.now += 3600
    state = spent.state()
    clock.now += 10**6  # while nothing runs
    resumed = Cost(processes=1)
    resumed.load_state(state)
    clock.now += 1800
    assert resumed.seconds == 5400.0
    assert resumed.device_hours == pytest.approx(4.5)
