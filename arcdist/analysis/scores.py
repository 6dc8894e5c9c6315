"""Best and last value of each measure, a run each and as mean and deviation over the seeds of a group."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from string import ascii_uppercase
from typing import Any

import numpy as np
from jaxtyping import Float

from arcdist.analysis.record import RunRecord
from arcdist.analysis.tables import Line, Sheet, Unit, spread
from arcdist.errors import ConfigError


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """A number of an epoch or a logged step; none where it is missing or not finite."""
    value = entry.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def numbers(entries: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """Those that are there, in their order."""
    return [value for entry in entries if (value := number(entry, key)) is not None]


MOST_RUNS = len(ascii_uppercase)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run of a comparison."""

    letter: str
    """What it is called in tables and legends: `A`, `B`, ..."""
    name: str
    """That of the run; where several have it, the place that it was read from."""
    record: RunRecord

    @property
    def called(self) -> str:
        """Letter and name, as a sentence calls it."""
        return f"{self.letter} ({self.name})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Runs that repeat each other but for the seed, or one run alone."""

    runs: tuple[Run, ...]

    @property
    def letters(self) -> str:
        """Such as `A C`."""
        return " ".join(run.letter for run in self.runs)

    @property
    def called(self) -> str:
        """What a sentence calls it."""
        return self.runs[0].called if len(self.runs) == 1 else f"the mean of {', '.join(self.letters.split())}"


def letter_runs(records: Sequence[RunRecord]) -> tuple[Run, ...]:
    """Runs with their letters, in their order.

    Raises:
        ConfigError: there are more runs than letters.
    """
    if len(records) > MOST_RUNS:
        raise ConfigError(f"{len(records)} runs are too many to tell apart: name at most {MOST_RUNS}.")
    names = [record.identity.name for record in records]
    return tuple(
        Run(letter=letter, name=name if names.count(name) == 1 else record.place, record=record)
        for letter, name, record in zip(ascii_uppercase, names, records, strict=False)
    )


def groups(runs: Sequence[Run]) -> tuple[Side, ...]:
    """The runs by their group, in the order of each group's first run."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.record.identity.group, []).append(run)
    return tuple(Side(runs=tuple(members)) for members in together.values())


def sides(runs: Sequence[Run]) -> tuple[Side, ...]:
    """What is held against each other: the groups; of a single group, its runs."""
    grouped = groups(runs)
    return grouped if len(grouped) > 1 else tuple(Side(runs=(run,)) for run in runs)


def same_questions(runs: Sequence[Run]) -> bool:
    """Whether all are validated on the same tasks, so that their scores can be compared as they are."""
    return len({run.record.identity.data.get("validation") for run in runs}) == 1


# T tasks, S runs of a side, D draws, K kinds of tasks.

DRAWS = 10_000
LEVEL = 0.95
_SEED = 0


def paired_interval(
    first: Float[np.ndarray, "T S1"], second: Float[np.ndarray, "T S2"], queries: Float[np.ndarray, " T"]
) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two sides in the share of queries that are exact.

    Tasks are drawn with replacement, all queries of a task and all runs on it together, so that what makes a task easy
    for both does not count as chance. Of a side with several runs these are drawn as well: the interval then holds
    what another seed may change, though of two or three seeds it knows too little of that.

    Args:
        first: how many queries of each task each run of the first side answered exactly.
        second: the same for the second side.
        queries: how many queries each task has.

    Returns:
        Lower and upper end of first − second, between -1 and 1; the same for the same numbers, in any order of tasks.
    """
    random = np.random.default_rng(_SEED)
    # Tasks with the same outcome are as good as each other: drawing kinds of tasks by how many there are is the same
    # draw, of a few numbers in place of one a task.
    kinds, sizes = np.unique(np.column_stack([first, second, queries]), axis=0, return_counts=True)
    drawn = random.multinomial(len(queries), sizes / len(queries), size=DRAWS)  # [D, K]
    totals = drawn @ kinds  # [D, S1 + S2 + 1]
    shares = totals[:, :-1] / totals[:, -1:]
    runs = first.shape[1]
    difference = _mean_of_drawn(shares[:, :runs], random) - _mean_of_drawn(shares[:, runs:], random)
    low, high = np.quantile(difference, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _mean_of_drawn(shares: Float[np.ndarray, "D S"], random: np.random.Generator) -> Float[np.ndarray, " D"]:
    runs = shares.shape[1]
    weights = random.multinomial(runs, np.full(runs, 1 / runs), size=len(shares)) / runs
    return (shares * weights).sum(axis=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measure:
    key: str
    label: str
    unit: Unit
    lowest_is_best: bool = False
    comparable: bool = True
    """Whether a better value means a better run, whatever the configurations."""


MEASURES = (
    _Measure(key="val/exact", label="exact grids, %", unit="percent"),
    _Measure(key="val/cell", label="cells, %", unit="percent"),
    _Measure(key="val/size", label="grid sizes, %", unit="percent"),
    _Measure(key="val/accuracy_delta", label="refinement gains, %", unit="percent"),
    _Measure(key="train/exact", label="training exact, %", unit="percent"),
    _Measure(key="train/loss", label="training loss", unit="number", lowest_is_best=True, comparable=False),
    _Measure(key="reward/mean", label="mean reward", unit="number", comparable=False),
    _Measure(key="pairs_per_s", label="pairs/s", unit="number"),
)
_FLOORS = (("floor/copy_exact", "copying: exact, %"), ("floor/copy_cell", "copying: cells, %"))


def score_sheet(runs: Sequence[Run]) -> Sheet:
    """Best and last value of each measure by epoch, a column a run; at the end what copying the input scores."""
    lines = []
    for measure in MEASURES:
        better = _better(measure, runs)
        for which in ("best", "last"):
            values = tuple(value_of(run.record, measure, which) for run in runs)
            if any(value is not None for value in values):
                lines.append(_line(measure, which, values, better))
    for key, label in _FLOORS:
        floors = tuple(next(reversed(numbers(run.record.epochs, key)), None) for run in runs)
        if any(floor is not None for floor in floors):
            lines.append(Line(key=key, label=label, values=floors, unit="percent"))
    note = (
        "Best: the best value of any epoch, each measure by itself. Copying: the input given as the answer. "
        "Green: the highest of its row, by chance or not. "
        + ("" if same_questions(runs) else "The runs have different validation tasks: only the verdict compares.")
    ).strip()
    columns = tuple(run.letter for run in runs)
    return Sheet(key="scores", title="Scores", columns=columns, lines=tuple(lines), note=note)


def group_sheet(runs: Sequence[Run]) -> Sheet | None:
    """Mean ± sample deviation over the seeds of each group; none where every run is a group of its own."""
    sides = groups(runs)
    if len(sides) == len(runs):
        return None
    lines = []
    for measure in MEASURES:
        for which in ("best", "last"):
            values = tuple(spread([value_of(run.record, measure, which) for run in side.runs]) for side in sides)
            if any(value is not None for value in values):
                lines.append(_line(measure, which, values, _better(measure, runs)))
    return Sheet(
        key="groups",
        title="Means over seeds",
        columns=tuple(side.letters for side in sides),
        lines=tuple(lines),
        note="Mean ± sample deviation over the runs of a recipe that differ in seed or machine only. "
        "In brackets: how many of them have the number, where not all do.",
    )


def value_of(record: RunRecord, measure: _Measure, which: str) -> float | None:
    """The best or the last value of a measure over the epochs; none where no epoch has one."""
    values = numbers(record.epochs, measure.key)
    if not values:
        return None
    if which == "last":
        return values[-1]
    return min(values) if measure.lowest_is_best else max(values)


def _line(measure: _Measure, which: str, values: tuple[object, ...], better: bool) -> Line:
    return Line(
        key=f"{measure.key} {which}",
        label=f"{measure.label}, {which}",
        values=values,
        unit=measure.unit,
        better=("lower" if measure.lowest_is_best else "higher") if better else None,
    )


def _better(measure: _Measure, runs: Sequence[Run]) -> bool:
    return measure.comparable and (same_questions(runs) or not measure.key.startswith("val/"))


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
