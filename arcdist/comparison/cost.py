"""What the runs took, and what they got for it."""

from collections.abc import Sequence
from statistics import median

from arcdist.comparison.logged import numbers
from arcdist.comparison.runs import Run, same_questions
from arcdist.comparison.sheet import Line, Sheet
from arcdist.tracking.run_record import RunRecord

_SECONDS_PER_HOUR = 3600


def cost_sheet(runs: Sequence[Run]) -> Sheet:
    """Device-hours, pace, and exact grids for a device-hour; a run of a version that took no times has dashes."""
    records = [run.record for run in runs]
    device_hours = [_latest(record, "time/device_hours") for record in records]
    exact = [exact_grids(record) for record in records]
    gained = [
        None if hours is None or hours <= 0 or grids is None else grids / hours
        for grids, hours in zip(exact, device_hours, strict=True)
    ]
    unit = "GPU-hour" if all(is_gpu(record.identity.device) for record in records) else "device-hour"
    lines = (
        Line(key="device", label="device", values=tuple(record.identity.device for record in records), unit="text"),
        Line(key="processes", label="processes", values=tuple(record.identity.processes for record in records)),
        Line(key="device_hours", label=f"{unit}s", values=tuple(device_hours)),
        Line(key="hours", label="hours passed", values=tuple(map(_hours, records))),
        Line(key="pairs_per_s", label="pairs/s, median", values=tuple(map(_pace, records))),
        Line(key="exact_grids", label="exact grids, last", values=tuple(exact)),
        Line(
            key="exact_per_device_hour",
            label=f"exact per {unit}",
            values=tuple(gained),
            better="higher" if same_questions(runs) else None,
        ),
    )
    columns = tuple(run.letter for run in runs)
    note = "Device-hours: hours × processes. Exact grids of the last validation."
    return Sheet(key="cost", title="Cost", columns=columns, lines=lines, note=note)


def is_gpu(device: str) -> bool:
    """Whether what a process computes on is an accelerator."""
    return device != "cpu"


def exact_grids(record: RunRecord) -> int | None:
    """Queries that the last validation found answered exactly."""
    if not record.validations:
        return None
    return sum(result.exact for result in record.validations[-1].results.values())


def _latest(record: RunRecord, key: str) -> float | None:
    """The highest of all epochs and logged steps, as the clock does not go back."""
    return max(numbers((*record.steps, *record.epochs), key), default=None)


def _hours(record: RunRecord) -> float | None:
    seconds = _latest(record, "time/elapsed_s")
    return None if seconds is None else seconds / _SECONDS_PER_HOUR


def _pace(record: RunRecord) -> float | None:
    paces = numbers(record.steps, "pairs_per_s") or numbers(record.epochs, "pairs_per_s")
    return median(paces) if paces else None
