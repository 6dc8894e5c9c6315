"""Which side is better, by how much, and how far that may be chance."""

# T tasks, S runs of a side.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from arcdist.comparison.bootstrap import paired_interval
from arcdist.comparison.runs import Run, Side, sides
from arcdist.comparison.validations import MOMENTS, Moment, exact_at
from arcdist.tracking.validation import task_of

FEWEST_DIFFERING = 6
"""Tasks in which two sides must differ before any difference counts: five may all favour one side by chance, in more
than one of twenty cases (2 · 2^-5 > 0.05)."""

_ROUNDING = 1e-9
"""Means over several runs of equal shares may differ by this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """The leading side against another one, on the same queries."""

    leader: Side
    rival: Side
    queries: int
    tasks: int
    differing: int
    """Tasks of which the sides solved unequal shares."""
    leader_exact: float
    """Share of exact queries, of several runs their mean."""
    rival_exact: float
    low: float
    """Lower end of the 95 % interval of the difference, leader − rival."""
    high: float

    @property
    def difference(self) -> float:
        """Leader − rival."""
        return self.leader_exact - self.rival_exact

    @property
    def level(self) -> bool:
        """Whether both solve equally many."""
        return self.difference < _ROUNDING

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond what another choice of tasks may make of it."""
        return self.low > 0 and self.differing >= FEWEST_DIFFERING


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The leading side against each other one, the closest rival first; empty where nothing can be compared."""

    moment: Moment
    contests: tuple[Contest, ...]
    asked: int
    """Queries that any of the sides compared was asked; of them `queries` of a contest were asked of all."""
    without_validation: tuple[Run, ...]
    apart: tuple[Side, ...]
    """Sides that were asked other queries than those compared."""


def rankings(runs: Sequence[Run]) -> tuple[Ranking, ...]:
    """By the last validation of each run, and by its best one."""
    return tuple(rank(runs, moment) for moment in MOMENTS)


def rank(runs: Sequence[Run], moment: Moment) -> Ranking:
    """Compare the sides on the queries that all were asked.

    Where no query is common to all, the sides with the least in common with the others stand apart.
    """
    exact = {run.letter: exact_at(run.record, moment) for run in runs}
    missing = tuple(run for run in runs if not exact[run.letter])
    all_sides = sides([run for run in runs if exact[run.letter]])
    compared = list(all_sides)
    while compared and not _common(compared, exact):
        compared.remove(min(reversed(compared), key=lambda side: _shared(side, compared, exact)))
    common = sorted(_common(compared, exact))
    asked = {name for side in compared for run in side.runs for name in exact[run.letter]}
    return Ranking(
        moment=moment,
        contests=_contests(compared, common, exact) if len(compared) > 1 else (),
        asked=len(asked),
        without_validation=missing,
        apart=tuple(side for side in all_sides if side not in compared),
    )


def _contests(
    compared: Sequence[Side], common: Sequence[str], exact: Mapping[str, Mapping[str, bool]]
) -> tuple[Contest, ...]:
    names, task = np.unique([task_of(query) for query in common], return_inverse=True)
    queries = np.bincount(task, minlength=len(names)).astype(float)
    solved = [_solved(side, common, task, exact) for side in compared]
    shares = [float(counts.sum() / counts.shape[1] / len(common)) for counts in solved]
    order = sorted(range(len(compared)), key=lambda index: -shares[index])
    first = order[0]
    contests = []
    for other in order[1:]:
        low, high = paired_interval(solved[first], solved[other], queries)
        apart = np.abs(solved[first].mean(axis=1) - solved[other].mean(axis=1)) > _ROUNDING
        contests.append(
            Contest(
                leader=compared[first],
                rival=compared[other],
                queries=len(common),
                tasks=len(names),
                differing=int(apart.sum()),
                leader_exact=shares[first],
                rival_exact=shares[other],
                low=low,
                high=high,
            )
        )
    return tuple(contests)


def _solved(
    side: Side, common: Sequence[str], task: np.ndarray, exact: Mapping[str, Mapping[str, bool]]
) -> Float[np.ndarray, "T S"]:
    """How many queries of each task each run of a side answered exactly."""
    tasks = int(task.max()) + 1
    answers = [np.array([exact[run.letter][query] for query in common], dtype=float) for run in side.runs]
    return np.stack([np.bincount(task, weights=answer, minlength=tasks) for answer in answers], axis=1)


def _common(compared: Sequence[Side], exact: Mapping[str, Mapping[str, bool]]) -> set[str]:
    asked = [set(exact[run.letter]) for side in compared for run in side.runs]
    return set.intersection(*asked) if asked else set()


def _shared(side: Side, others: Sequence[Side], exact: Mapping[str, Mapping[str, bool]]) -> int:
    return sum(len(_common([side, other], exact)) for other in others if other is not side)
