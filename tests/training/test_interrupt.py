import signal
import time

import pytest

from arcdist.training.interrupt import Interrupt


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
