"""Signals that end a run at a step's end, not in its middle."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from arcdist.distributed import world_size

_SAME_SIGNAL_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a process and its launcher, and torchrun hands its own on: one wish, two signals."""

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What batch systems send before they take the machine away, and a terminal that is closed."""


class Interrupt:
    """While the block runs, signals only set what is asked for; a second Ctrl-C interrupts at once.

    `accelerate launch` hands no signal on to a single process. That its launcher is gone is then the signal.
    """

    def __init__(self) -> None:
        self._stop = False
        self._preempted = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        launched_alone = world_size() == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched_alone else None

    @property
    def requested(self) -> bool:
        """Whether the run is to end, by Ctrl-C or to be preempted."""
        return self._stop or self.preempted

    @property
    def preempted(self) -> bool:
        """Whether this is no wish of the user's: the run will be resumed."""
        return self._preempted or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> "Interrupt":
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop_at_step)
        for number in PREEMPTIONS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # The run was started with nohup, to outlive its terminal.
            self._previous[number] = signal.signal(number, self._preempt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop_at_step(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stop and now - self._since > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        self._since = now if not self._stop else self._since
        self._stop = True

    def _preempt(self, _number: int, _frame: FrameType | None) -> None:
        self._preempted = True
