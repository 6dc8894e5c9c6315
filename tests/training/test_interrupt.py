import os
import signal
import time

import pytest

from arcdist.training.interrupt import PREEMPTIONS, Interrupt


@pytest.fixture
def clock(monkeypatch):
    """Set the seconds that the module's clock shows."""
    shown = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: shown[0])
    return lambda seconds: shown.__setitem__(0, seconds)


def test_the_first_ctrl_c_asks_and_the_second_interrupts(clock):
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        clock(101.5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_same_ctrl_c_by_way_of_the_launcher_is_no_second_one(clock):
    # A terminal signals the process and its launcher, which hands its own on.
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        for moment in (100.0, 100.3, 101.0):
            clock(moment)
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        # The second is counted from the first signal, not from its echoes.
        clock(101.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_of_before_is_put_back_whatever_ends_the_block():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="broken"), Interrupt():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_batch_systems_and_closed_terminals_send_is_known():
    assert set(PREEMPTIONS) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", PREEMPTIONS)
def test_a_batch_system_s_signal_asks_to_make_room_however_often(number, clock):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert (interrupt.requested, interrupt.preempted) == (False, False)
        for moment in (100.0, 105.0):
            clock(moment)
            signal.raise_signal(number)
            assert (interrupt.requested, interrupt.preempted) == (True, True)
    assert signal.getsignal(number) is before


def test_ctrl_c_is_no_preemption():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert (interrupt.requested, interrupt.preempted) == (True, False)


def test_all_handlers_of_before_are_put_back():
    def mine(_number, _frame):
        pass

    numbers = (signal.SIGINT, *PREEMPTIONS)
    before = {number: signal.signal(number, mine) for number in numbers}
    try:
        with Interrupt():
            assert all(signal.getsignal(number) is not mine for number in numbers)
        assert all(signal.getsignal(number) is mine for number in numbers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def launcher(monkeypatch):
    """Be the one process of `accelerate launch`; what is returned has the launcher end."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return lambda: monkeypatch.setattr(os, "getppid", lambda: 1)


def test_the_end_of_its_launcher_counts_as_the_signal_that_it_did_not_hand_on(launcher):
    with Interrupt() as interrupt:
        assert (interrupt.requested, interrupt.preempted) == (False, False)
        launcher()
        assert (interrupt.requested, interrupt.preempted) == (True, True)


@pytest.mark.parametrize(("name", "value"), [("ACCELERATE_MIXED_PRECISION", None), ("WORLD_SIZE", "2")])
def test_whoever_else_started_the_process_may_end(launcher, monkeypatch, name, value):
    # A shell, say; or torchrun, which hands signals on and ends its processes itself.
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with Interrupt() as interrupt:
        launcher()
        assert (interrupt.requested, interrupt.preempted) == (False, False)
