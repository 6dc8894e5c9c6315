"""The tables of a comparison that have a column for each run: scores, cost, EFE terms, what differs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from string import ascii_uppercase
from typing import Any

from arcdist.analysis.record import RunRecord, finite_value, finite_values
from arcdist.analysis.tables import Row, Table, Unit, spread
from arcdist.config.schema import EFE_TERMS
from arcdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run of a comparison."""

    letter: str
    """What tables and legends call it: `A`, `B`, ..."""
    name: str
    """That of the run; if several have it, the place that it was read from."""
    record: RunRecord

    @property
    def called(self) -> str:
        """Letter and name, as a sentence calls it."""
        return f"{self.letter} ({self.name})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that repeat each other but for the seed, or a single run."""

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
    if len(records) > len(ascii_uppercase):
        raise ConfigError(f"{len(records)} runs are too many to tell apart: name at most {len(ascii_uppercase)}.")
    names = [record.identity.name for record in records]
    return tuple(
        Run(letter=letter, name=name if names.count(name) == 1 else record.place, record=record)
        for letter, name, record in zip(ascii_uppercase, names, records, strict=False)
    )


def group_runs(runs: Sequence[Run]) -> tuple[Group, ...]:
    """The runs by the group of their identity, in the order of each group's first run."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.record.identity.group, []).append(run)
    return tuple(Group(runs=tuple(members)) for members in together.values())


def have_same_tasks(runs: Sequence[Run]) -> bool:
    """Whether all are validated on the same tasks, so that their scores can be compared as they are."""
    return len({run.record.identity.data.get("validation") for run in runs}) == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measure:
    key: str
    label: str
    unit: Unit = "percent"
    lowest_is_best: bool = False
    comparable: bool = True
    """Whether a better value means a better run, even if the configurations differ."""

    def value(self, record: RunRecord, which: str) -> float | None:
        """The `best` or the `last` value over the epochs; None if no epoch has one."""
        values = finite_values(record.epochs, self.key)
        choose = itemgetter(-1) if which == "last" else min if self.lowest_is_best else max
        return choose(values) if values else None


_MEASURES = (
    _Measure(key="val/exact", label="exact grids, %"),
    _Measure(key="val/cell", label="cells, %"),
    _Measure(key="val/size", label="grid sizes, %"),
    _Measure(key="val/accuracy_delta", label="refinement gains, %"),
    _Measure(key="train/exact", label="training exact, %"),
    _Measure(key="train/loss", label="training loss", unit="number", lowest_is_best=True, comparable=False),
    _Measure(key="reward/mean", label="mean reward", unit="number", comparable=False),
    _Measure(key="pairs_per_s", label="queries/s", unit="number"),
)


def score_table(runs: Sequence[Run]) -> Table:
    """Best and last value of each measure over the epochs, a column a run; at the end what copying the input scores."""
    rows = _measured_rows(runs, [Group(runs=(run,)) for run in runs], itemgetter(0))
    for key, label in (("floor/copy_exact", "copying: exact, %"), ("floor/copy_cell", "copying: cells, %")):
        floors = [next(reversed(finite_values(run.record.epochs, key)), None) for run in runs]
        rows.append(Row(key=key, label=label, values=floors, unit="percent"))
    note = (
        "Best: the best value of any epoch, each measure by itself. Copying: the input given as the answer. "
        "Green: the highest of its row, by chance or not."
    )
    if not have_same_tasks(runs):
        note += " The runs have different validation tasks: only the verdict compares."
    return _table(runs, "scores", "Scores", [row for row in rows if row.is_known], note)


def group_table(runs: Sequence[Run]) -> Table | None:
    """Mean ± sample deviation over the seeds of each group; None if no group has two."""
    groups = group_runs(runs)
    if len(groups) == len(runs):
        return None
    return Table(
        key="groups",
        title="Means over seeds",
        columns=tuple(group.letters for group in groups),
        rows=[row for row in _measured_rows(runs, groups, spread) if row.is_known],
        note="Mean ± sample deviation over the runs of a recipe that differ in seed or machine only. "
        "In brackets: how many of them have the number, if not all do.",
    )


def _measured_rows(
    runs: Sequence[Run], groups: Sequence[Group], summarize: Callable[[list[float | None]], Any]
) -> list[Row]:
    return [
        Row(
            key=f"{measure.key} {which}",
            label=f"{measure.label}, {which}",
            values=[summarize([measure.value(run.record, which) for run in group.runs]) for group in groups],
            unit=measure.unit,
            highest_is_best=measure.comparable and (have_same_tasks(runs) or not measure.key.startswith("val/")),
        )
        for measure, which in product(_MEASURES, ("best", "last"))
    ]


def cost_table(runs: Sequence[Run]) -> Table:
    """Device-hours, pace, and exact grids for a device-hour; dashes for a run of a version that took no times."""
    records = [run.record for run in runs]
    unit = "device-hour" if any(record.identity.device == "cpu" for record in records) else "GPU-hour"

    def row(key: str, label: str, value: Callable[[RunRecord], Any], **options: Any) -> Row:
        return Row(key=key, label=label, values=[value(record) for record in records], **options)

    rows = [
        row("device", "device", lambda record: record.identity.device, unit="text"),
        row("processes", "processes", lambda record: record.identity.processes),
        row("device_hours", f"{unit}s", lambda record: record.device_hours),
        row("hours", "hours passed", lambda record: None if record.elapsed is None else record.elapsed / 3600),
        row("pairs_per_s", "queries/s, median", lambda record: record.pace),
        row("exact_grids", "exact grids, last", lambda record: record.exact_queries),
        row(
            "exact_per_device_hour",
            f"exact per {unit}",
            lambda record: record.exact_per_device_hour,
            highest_is_best=have_same_tasks(runs),
        ),
    ]
    return _table(runs, "cost", "Cost", rows, "Device-hours: hours × processes. Exact grids of the last validation.")


def efe_table(runs: Sequence[Run]) -> Table:
    """Share of each term in the weighted total, a column a run."""
    shares = [last_shares(run.record) or {} for run in runs]
    rows = [
        Row(key=term, label=f"{term}, %", values=[known.get(term) for known in shares], unit="percent")
        for term in EFE_TERMS
    ]
    note = "Share of λ · term in their sum, in the last epoch; before the first one ends, in the last logged step."
    return _table(runs, "efe_shares", "EFE terms", rows, note)


def last_shares(record: RunRecord) -> dict[str, float] | None:
    """The shares in the last epoch, or in the last logged step of a run without one; None if no terms are known."""
    weights = {term: record.config.get(f"efe.{key.name}") for term, key in EFE_TERMS.items()}
    for entry in (*reversed(record.epochs), *reversed(record.steps)):
        terms = {term: value for term in EFE_TERMS if (value := finite_value(entry, f"efe/{term}")) is not None}
        if len(terms) == len(EFE_TERMS):
            return shares_of(terms, weights)
    return None


def shares_of(terms: Mapping[str, float], weights: Mapping[str, Any]) -> dict[str, float] | None:
    """|λ · term| over the sum of these: 1 over all terms. None if the sum is 0 or a weight is not known."""
    if any(weights.get(term) is None for term in terms):
        return None
    parts = {term: abs(float(weights[term]) * value) for term, value in terms.items()}
    total = sum(parts.values())
    return {term: part / total for term, part in parts.items()} if total > 0 else None


def difference_table(runs: Sequence[Run]) -> Table:
    """A row for each property in which at least two runs differ; a dash for a run that does not have it."""
    properties = [_properties(run.record) for run in runs]
    rows = []
    for name in dict.fromkeys(name for known in properties for name in known):
        values = [known.get(name) for known in properties]
        if any(value != values[0] for value in values):
            rows.append(Row(key=name, label=name, values=values, unit="text"))
    note = "" if rows else "Configuration, data, device and versions are the same."
    return _table(runs, "differences", "What differs", rows, note)


def _properties(record: RunRecord) -> dict[str, Any]:
    """Properties by name; a null is `none`, as None means that there is no such property."""
    identity = record.identity
    commit, changes, _ = (identity.git_commit or "none").partition("+changes")
    properties = {
        "recipe": identity.recipe,
        **{name: value for name, value in record.config.items() if name != "output.dir"},
        **{f"{role} tasks": checksum[:10] for role, checksum in identity.data.items()},
        "device": identity.device,
        "processes": identity.processes,
        "ZeRO stage": identity.zero_stage,
        "git commit": commit[:7] + changes,
        **{f"version of {package}": version for package, version in identity.versions.items()},
    }
    return {name: "none" if value is None else value for name, value in properties.items()}


def _table(runs: Sequence[Run], key: str, title: str, rows: Sequence[Row], note: str) -> Table:
    return Table(key=key, title=title, columns=tuple(run.letter for run in runs), rows=rows, note=note)
