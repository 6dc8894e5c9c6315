"""Tables of a comparison: terminal, page and file show the same ones, so that no two say different numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from arcdist.formatting import DASH, hundredths, significant

Unit = Literal["percent", "number", "yes or no", "text"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row: one quantity of all columns."""

    key: str
    """What scripts find it by, such as `val/exact`."""
    label: str
    values: tuple[Any, ...]
    """A column each; None where it is not known. Shares lie between 0 and 1."""
    unit: Unit = "number"
    better: Literal["higher", "lower"] | None = None
    """Which of its values are marked as the best; none where they cannot be compared."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as they are shown."""
        return tuple(show_value(value, self.unit) for value in self.values)

    @property
    def marks(self) -> tuple[bool, ...]:
        """Whether each value is the best of several that differ."""
        numbers = [value.mean if isinstance(value, Spread) else value for value in self.values]
        known = [number for number in numbers if number is not None]
        if self.better is None or len(set(known)) < 2:
            return (False,) * len(numbers)
        best = max(known) if self.better == "higher" else min(known)
        return tuple(number == best for number in numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table with a row a quantity, a column a run or a group of runs."""

    key: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str = ""
    """What a reader has to know of the numbers."""


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and deviation of the values of a group that are known; none where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = stdev(known) if len(known) > 1 else None
    return Spread(mean=mean(known), deviation=deviation, runs=len(known), of=len(values))


def show_value(value: Any, unit: Unit) -> str:
    """A value as tables show it; shares in percent, without the sign."""
    if value is None:
        return DASH
    if isinstance(value, Spread):
        return _show_spread(value, unit)
    if unit == "percent":
        return hundredths(value)
    if unit == "number":
        return significant(value, 4)
    if unit == "yes or no":
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _show_spread(spread: Spread, unit: Unit) -> str:
    """How many runs have the number is said where not all have it."""
    known = f" ({spread.runs} of {spread.of})" if spread.runs < spread.of else ""
    deviation = "" if spread.deviation is None else f" ± {_show_deviation(spread.deviation, unit)}"
    return f"{show_value(spread.mean, unit)}{deviation}{known}"


def _show_deviation(deviation: float, unit: Unit) -> str:
    """With two digits: it is itself known from a few runs only."""
    return hundredths(deviation) if unit == "percent" else significant(deviation, 2)
