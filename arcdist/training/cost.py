"""What a run has cost so far."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Cost:
    """Time, by the clock and by device, over interruptions; steps that were lost with one are not counted.

    Args:
        processes: each of which computes on a device of its own.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._seconds_before = 0.0
        self._device_seconds_before = 0.0
        self._tracking_seconds = 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run's first step began."""
        return self._seconds_before + self._seconds_now

    @property
    def device_hours(self) -> float:
        """The same for each device, in hours, added up."""
        return (self._device_seconds_before + self._processes * self._seconds_now) / 3600

    @property
    def _seconds_now(self) -> float:
        return time.perf_counter() - self._began

    def start(self) -> None:
        """Begin to count, or to count on."""
        self._began = time.perf_counter()

    @contextmanager
    def of_tracking(self) -> Iterator[None]:
        """Count the block as time that training waits for numbers and pictures to be kept."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._tracking_seconds += time.perf_counter() - began

    def record(self) -> dict[str, float]:
        """As it is logged."""
        return {
            "time/elapsed_s": self.seconds,
            "time/device_hours": self.device_hours,
            "time/tracking_s": self._tracking_seconds,
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"seconds": self.seconds, "device_seconds": self.device_hours * 3600, "tracking": self._tracking_seconds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()` of another run, on any number of processes."""
        self._seconds_before, self._device_seconds_before = state["seconds"], state["device_seconds"]
        self._tracking_seconds = state["tracking"]
        self.start()
