"""Ctrl-C at a step's end, not in its middle."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

_SAME_SIGNAL_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a process and its launcher, and torchrun hands its own on: one wish, two signals."""


class Interrupt:
    """While the block runs, the first SIGINT only raises `requested`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._since > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        self._since = now if not self.requested else self._since
        self.requested = True
