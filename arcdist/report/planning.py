"""How many cells are right after each planning step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arcdist.tracking.grids import right_cells
from arcdist.tracking.validation import Rows, ShownQuery


@dataclass(frozen=True, kw_only=True, slots=True)
class StepScore:
    """The answers at one point of planning."""

    after: str
    cell: float
    """Mean over the queries of the share of the target's cells that are right."""
    exact: int
    queries: int


def planning_scores(shown: Sequence[ShownQuery]) -> list[StepScore]:
    """The answers after each planning step, and at last those that are scored; empty without queries."""
    if not shown:
        return []
    steps = max(len(query.steps) for query in shown)
    answers = [
        (f"step {step + 1}", [(query.steps[step], query.target) for query in shown if len(query.steps) > step])
        for step in range(steps)
    ]
    scored = ("the last step, with the solver's memory", [(query.prediction, query.target) for query in shown])
    return [_score(after, pairs) for after, pairs in (*answers, scored)]


def _score(after: str, pairs: Sequence[tuple[Rows, Rows]]) -> StepScore:
    shares = [right_cells(np.array(answer), np.array(target)) / np.size(target) for answer, target in pairs]
    return StepScore(
        after=after,
        cell=sum(shares) / len(shares),
        exact=sum(answer == target for answer, target in pairs),
        queries=len(pairs),
    )
