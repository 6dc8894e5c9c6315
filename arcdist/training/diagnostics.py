"""`--profile`: some steps of a run under PyTorch's profiler, and what it saw of them as two files."""

import gzip
import json
import logging
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch.profiler import ProfilerActivity, schedule

from arcdist.files import replacing
from arcdist.regions import DATA, PREFIX, STEP, recorded_regions
from arcdist.tracking.console import log_table, table_text

REST = "the rest, on the host"
"""What of a step lies in none of its regions."""

_LAUNCHES = ("cuda_runtime", "cuda_driver")
_ON_THE_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_COLLECTIVE = "nccl"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Milliseconds a step, a mean over the steps of a trace."""

    steps: int
    wall: Mapping[str, float]
    """By region, on the thread that trains; what lies in an inner region counts there only. The sum is the step's."""
    device: Mapping[str, float]
    """Of the GPU's work, by the region that it was launched in; empty without a GPU."""


@dataclass(slots=True)
class _Region:
    name: str
    start: float
    end: float
    outer: "_Region | None" = None
    own: float = 0.0


def step_times(trace: Mapping[str, Any]) -> StepTimes:
    """Times by region from a trace in Chrome's format, as torch.profiler exports it. Times in there are microseconds.

    What was launched by other threads (autograd's) belongs to the region that the training thread was in.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    regions = _nested(events)
    steps = sum(region.name == STEP for region in regions)
    scale = 1e-3 / max(steps, 1)
    wall: dict[str, float] = defaultdict(float)
    for region in regions:
        wall[_title(region)] += region.own * scale
    device: dict[str, float] = defaultdict(float)
    for name, launch, duration in _device_work(events):
        if around := _innermost(regions, launch):
            device["communication" if name.startswith(_COLLECTIVE) else _title(around)] += duration * scale
    return StepTimes(steps=steps, wall=dict(wall), device=dict(device))


def times_table(times: StepTimes) -> Table:
    """Times by region, the longest first, and their sum; with those of the GPU beside them where there are any."""
    columns = {"": times.wall} | ({"GPU ": times.device} if times.device else {})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("where a step's time goes", "a step")
    for which, parts in columns.items():
        total = sum(parts.values())
        table.add_column(f"{which}ms", f"{total:,.2f}", justify="right")
        table.add_column("%", f"{100 * total / (total or 1):.1f}", justify="right")
    names = sorted({*times.wall, *times.device} - {REST}, key=lambda name: -times.wall.get(name, 0.0))
    for name in (*names, REST):
        cells = []
        for parts in columns.values():
            part, total = parts.get(name, 0.0), sum(parts.values())
            cells += [f"{part:,.2f}", f"{100 * part / (total or 1):.1f}"]
        table.add_row(name, *cells)
    return table


def _nested(events: Sequence[Mapping[str, Any]]) -> list[_Region]:
    """The regions of steps and of the waits before them, by their start."""
    ours = [event for event in events if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)]
    threads = {event["tid"] for event in ours if event["name"] == PREFIX + STEP}
    regions = [
        _Region(event["name"].removeprefix(PREFIX), float(event["ts"]), float(event["ts"] + event["dur"]))
        for event in sorted(ours, key=lambda event: (event["ts"], -event["dur"]))
        if event["tid"] in threads
    ]
    kept: list[_Region] = []
    around: list[_Region] = []
    for region in regions:
        length = region.end - region.start
        # By its middle: times are rounded, so that neighbours may seem to overlap.
        while around and around[-1].end < region.start + length / 2:
            around.pop()
        region.outer = around[-1] if around else None
        region.own = length
        if region.outer:
            region.outer.own -= length
        around.append(region)
        if around[0].name in (STEP, DATA):
            kept.append(region)
    return kept


def _device_work(events: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, float, float]]:
    """Name, time of the launch and duration of all that the GPU did."""
    launched = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") in _ON_THE_DEVICE and event.get("args", {}).get("correlation") in launched:
            yield event["name"], launched[event["args"]["correlation"]], float(event["dur"])


def _innermost(regions: Sequence[_Region], time: float) -> _Region | None:
    place = bisect_right(regions, time, key=attrgetter("start"))
    region = regions[place - 1] if place else None
    while region and region.end < time:
        region = region.outer
    return region


def _title(region: _Region) -> str:
    return REST if region.name == STEP else region.name


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
