"""The runs of a comparison, each by a letter, and the sides that they take: seeds of one recipe stand together."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from arcdist.errors import ConfigError
from arcdist.tracking.run_record import RunRecord

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
