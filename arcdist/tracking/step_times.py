"""Where a step's time goes: its regions in a profiler's trace, each with what is its own."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from rich import box
from rich.table import Table

from arcdist.regions import DATA, PREFIX, STEP

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
