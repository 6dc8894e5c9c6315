"""`--profile`: some steps of a run under PyTorch's profiler, and what it saw of them as two files."""

import gzip
import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Group
from torch.profiler import ProfilerActivity, schedule

from arcdist.regions import recorded_regions
from arcdist.tracking.atomic import replacing
from arcdist.tracking.log import log_table, table_text
from arcdist.tracking.step_times import step_times, times_table

FOLDER = "profile"
WARM_UP_STEPS = 5

_TRACE = "trace.json.gz"
_TABLE = "table.txt"

_logger = logging.getLogger(__name__)


class StepProfiler:
    """Records steps once some have warmed up, and writes and shows where their time went; a context manager.

    Nothing of the training changes but its pace, and that only while steps are recorded.

    Args:
        folder: of the run.
        steps: to record; with 0 nothing happens.
        ahead: steps that the run has still to take; where they are few, fewer warm up, one at least.
        device: that the run computes on.
    """

    def __init__(self, folder: Path, steps: int, ahead: int, device: torch.device) -> None:
        self.folder = folder / FOLDER
        self.steps = steps
        self.warm_up = max(1, min(WARM_UP_STEPS, ahead - steps))
        self._device = device
        self._seconds: list[float] = []
        self._profile: torch.profiler.profile | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "StepProfiler":
        if not self.steps:
            return self
        if self._device.type == "cpu":
            # Kineto's notes on its start and stop are no errors, but go to stderr; CUPTI's errors are wanted.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        on_gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        self._profile = torch.profiler.profile(
            activities=[ProfilerActivity.CPU, *on_gpu],
            schedule=schedule(wait=self.warm_up - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._report,
        )
        self._stack.enter_context(recorded_regions())
        self._stack.enter_context(self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_well = kind is None or issubclass(kind, KeyboardInterrupt)
        recorded = len(self._seconds) > self.warm_up
        if self._profile is not None and not (ended_well and recorded):
            self._profile.on_trace_ready = None
            if ended_well:
                _logger.warning(
                    "--profile %d: nothing was recorded, because the run ended within the steps that warm up (%d).",
                    *(self.steps, self.warm_up),
                )
        self._end()

    def step(self, seconds: float) -> None:
        """Say that a step has ended, and what it took, the wait for its data included."""
        if self._profile is None:
            return
        self._seconds.append(seconds)
        self._profile.step()
        if len(self._seconds) == self.warm_up + self.steps:
            self._end()

    def _end(self) -> None:
        self._stack.close()
        self._profile = None

    def _report(self, profile: torch.profiler.profile) -> None:
        _logger.info("Writing the profile.")
        try:
            self._write(profile)
        except (OSError, ValueError) as error:
            # A run of hours is worth more than its profile.
            _logger.warning("The profile could not be written into %s: %s.", self.folder, error)

    def _write(self, profile: torch.profiler.profile) -> None:
        self.folder.mkdir(exist_ok=True)
        trace, plain = self.folder / _TRACE, self.folder / f".{_TRACE}.plain"
        try:
            profile.export_chrome_trace(str(plain))
            content = plain.read_bytes()
        finally:
            plain.unlink(missing_ok=True)
        with replacing(trace) as partial:
            # The profiler's own compression takes several times as long, for a tenth less.
            partial.write_bytes(gzip.compress(content, compresslevel=5))
        times = step_times(json.loads(content))
        report = Group(times_table(times), *self._notes(times.steps, bool(times.device)), f"Trace: {trace}")
        with replacing(self.folder / _TABLE) as table:
            table.write_text(table_text(report), encoding="utf-8")
        log_table(report)

    def _notes(self, recorded: int, has_device_times: bool) -> list[str]:
        during = self._seconds[self.warm_up :]
        missing = f" of {self.steps}, the run had no more" if recorded < self.steps else ""
        notes = [
            f"Recorded: {recorded} steps{missing}. To warm up: {self.warm_up}.",
            f"They took {1e3 * min(during):,.1f} to {1e3 * max(during):,.1f} ms, with what recording takes itself.",
        ]
        if self._device.type == "cuda" and not has_device_times:
            notes.append("The GPU's times are missing: CUPTI recorded nothing, and says why on the console, if at all.")
        return notes
