"""Tables of a comparison: terminal, page and file show the same ones, so that no two say different numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal, TypeAlias

from arcdist.formatting import DASH, hundredths, significant

Unit: TypeAlias = Literal["percent", "number", "yes or no", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean and sample deviation over the runs of a group."""

    mean: float
    deviation: float | None
    """None for a single run."""
    runs: int
    """Those that have the number."""
    of: int
    """All of the group."""


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and deviation of the known values of a group; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = stdev(known) if len(known) > 1 else None
    return Spread(mean=mean(known), deviation=deviation, runs=len(known), of=len(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One quantity of all columns."""

    key: str
    """What scripts find it by, such as `val/exact`."""
    label: str
    values: Sequence[Any]
    """One for each column; None if unknown. Shares lie between 0 and 1."""
    unit: Unit = "number"
    highest_is_best: bool = False
    """Whether the highest value is marked."""

    @property
    def is_known(self) -> bool:
        """Whether any column has a value."""
        return any(value is not None for value in self.values)

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as they are shown."""
        return tuple(show_value(value, self.unit) for value in self.values)

    @property
    def marks(self) -> tuple[bool, ...]:
        """Whether each value is the highest of several that differ, and that is best."""
        if not self.highest_is_best:
            return (False,) * len(self.values)
        numbers = [value.mean if isinstance(value, Spread) else value for value in self.values]
        known = {number for number in numbers if number is not None}
        return tuple(len(known) > 1 and number == max(known) for number in numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A row for each quantity, a column for each run or group of runs."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    note: str = ""
    """What a reader has to know about the numbers."""


def show_value(value: Any, unit: Unit) -> str:
    """A value as tables show it; shares in percent, without the sign.

    A mean says how many runs have the number, if not all do; its deviation, known from a few runs only, has two digits.
    """
    if value is None:
        return DASH
    if isinstance(value, Spread):
        text = show_value(value.mean, unit)
        if value.deviation is not None:
            text += f" ± {hundredths(value.deviation) if unit == 'percent' else significant(value.deviation, 2)}"
        return text if value.runs == value.of else f"{text} ({value.runs} of {value.of})"
    if unit == "percent":
        return hundredths(value)
    if unit == "number":
        return significant(value, 4)
    if unit == "yes or no":
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
