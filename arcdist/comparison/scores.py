"""Best and last value of each measure, a run each and as mean and deviation over the seeds of a group."""

from collections.abc import Sequence
from dataclasses import dataclass

from arcdist.comparison.logged import numbers
from arcdist.comparison.runs import Run, groups, same_questions
from arcdist.comparison.sheet import Line, Sheet, Unit, spread
from arcdist.tracking.run_record import RunRecord


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
