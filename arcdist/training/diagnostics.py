"""`--profile`: some steps of a run under PyTorch's profiler, and where their time went, as two files."""

import gzip
import json
import logging
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch.profiler import ProfilerActivity, schedule

from arcdist.files import replacing
from arcdist.regions import DATA, PREFIX, STEP, recorded_regions
from arcdist.tracking.console import log_table, table_text

_logger = logging.getLogger(__name__)

REST = "the rest, on the host"
"""The time of a step outside its regions."""

_LAUNCHES = ("cuda_runtime", "cuda_driver")
_ON_THE_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Milliseconds a step, a mean over the steps of a trace."""

    steps: int
    wall: Mapping[str, float]
    """By region, on the thread that trains; the time of an inner region counts there only. The sum is the step's."""
    device: Mapping[str, float]
    """Of the GPU's work, by the region that it was launched in; empty without a GPU."""


@dataclass(slots=True)
class _Region:
    """A part of the training thread's time, in microseconds."""

    name: str
    start: float
    end: float
    own: float
    """Without the time of inner regions."""
    outer: "_Region | None" = None

    @property
    def title(self) -> str:
        return REST if self.name == STEP else self.name


def step_times(trace: Mapping[str, Any]) -> StepTimes:
    """Times by region from a trace in Chrome's format, as torch.profiler exports it.

    What was launched by other threads (autograd's) belongs to the region that the training thread was in.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    regions = _nested(events)
    steps = sum(region.name == STEP for region in regions)
    scale = 1e-3 / max(steps, 1)
    wall: dict[str, float] = defaultdict(float)
    for region in regions:
        wall[region.title] += region.own * scale

    device: dict[str, float] = defaultdict(float)
    launches = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    for event in events:
        launch = launches.get(event.get("args", {}).get("correlation"))
        if event.get("cat") not in _ON_THE_DEVICE or launch is None:
            continue
        if around := _innermost(regions, launch):
            title = "communication" if event["name"].startswith("nccl") else around.title
            device[title] += float(event["dur"]) * scale
    return StepTimes(steps=steps, wall=dict(wall), device=dict(device))


def _nested(events: Sequence[Mapping[str, Any]]) -> list[_Region]:
    """The regions of steps and of the waits before them, by their start."""
    ours = [event for event in events if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)]
    threads = {event["tid"] for event in ours if event["name"] == PREFIX + STEP}
    of_training = [event for event in ours if event["tid"] in threads]
    kept: list[_Region] = []
    around: list[_Region] = []
    for event in sorted(of_training, key=lambda event: (event["ts"], -event["dur"])):
        start, length = float(event["ts"]), float(event["dur"])
        # By the middle: times are rounded, so that neighbours may seem to overlap.
        while around and around[-1].end < start + length / 2:
            around.pop()
        region = _Region(event["name"].removeprefix(PREFIX), start, start + length, length)
        if around:
            region.outer = around[-1]
            region.outer.own -= length
        around.append(region)
        if around[0].name in (STEP, DATA):
            kept.append(region)
    return kept


def _innermost(regions: Sequence[_Region], time: float) -> _Region | None:
    index = bisect_right(regions, time, key=attrgetter("start"))
    region = regions[index - 1] if index else None
    while region and region.end < time:
        region = region.outer
    return region


def times_table(times: StepTimes) -> Table:
    """Times by region, the longest first, and their sum; beside them those of the GPU, if there are any."""
    columns = {"": times.wall} | ({"GPU ": times.device} if times.device else {})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("where a step's time goes", "a step")
    totals = [sum(parts.values()) for parts in columns.values()]
    for title, total in zip(columns, totals, strict=True):
        table.add_column(f"{title}ms", f"{total:,.2f}", justify="right")
        table.add_column("%", f"{100 * total / (total or 1):.1f}", justify="right")
    names = sorted({*times.wall, *times.device} - {REST}, key=lambda name: -times.wall.get(name, 0.0))
    for name in (*names, REST):
        cells = []
        for parts, total in zip(columns.values(), totals, strict=True):
            part = parts.get(name, 0.0)
            cells += [f"{part:,.2f}", f"{100 * part / (total or 1):.1f}"]
        table.add_row(name, *cells)
    return table


class StepProfiler:
    """Records steps once some have warmed up, and writes and shows where their time went; a context manager.

    Nothing of the training changes but its pace, and that only while steps are recorded.

    Args:
        folder: of the run.
        steps: to record; with 0 nothing happens.
        ahead: steps that the run has still to take; if they are few, fewer warm up, at least one. None if it ends by
            time.
        device: that the run computes on.
    """

    def __init__(self, folder: Path, steps: int, ahead: int | None, device: torch.device) -> None:
        self.folder = folder / "profile"
        self.steps = steps
        self.warm_up = 5 if ahead is None else max(1, min(5, ahead - steps))
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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
        """Count a step that took so many seconds, the wait for its data included."""
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
        trace = self.folder / "trace.json.gz"
        with TemporaryDirectory(dir=self.folder) as plain:
            profile.export_chrome_trace(f"{plain}/trace.json")
            content = Path(plain, "trace.json").read_bytes()
        with replacing(trace) as partial:
            # The profiler's own compression takes several times as long, for a tenth less.
            partial.write_bytes(gzip.compress(content, compresslevel=5))
        times, during = step_times(json.loads(content)), self._seconds[self.warm_up :]
        missing = f" of {self.steps}, the run had no more" if times.steps < self.steps else ""
        notes = [
            f"Recorded: {times.steps} steps{missing}. To warm up: {self.warm_up}.",
            f"They took {1e3 * min(during):,.1f} to {1e3 * max(during):,.1f} ms, with what recording takes itself.",
        ]
        if self._device.type == "cuda" and not times.device:
            notes.append("The GPU's times are missing: CUPTI recorded nothing, and says why on the console, if at all.")
        report = Group(times_table(times), *notes, f"Trace: {trace}")
        with replacing(self.folder / "table.txt") as table:
            table.write_text(table_text(report), encoding="utf-8")
        log_table(report)
