"""Which of the candidates for a query are given as its attempts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcdist.evaluation.predict import SCORES, Candidate, GridTuple, Origin

ATTEMPTS = 2
"""That the benchmark allows for a test input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A grid with all votes for it."""

    grid: GridTuple
    score: float
    """Sum of the weights of the candidates that are this grid."""
    log_prob: float
    """The highest of theirs, a cell: in nats over its number of cells."""
    origins: dict[Origin, int]
    """How many of them came from where."""


def vote(candidates: Sequence[Candidate], weights: Mapping[Origin, float]) -> list[Ranked]:
    """The different grids among the candidates, the one with most votes first.

    A candidate has its origin's weight as a vote. The weight of a score is shared out over the grids by how probable it
    finds each of them against the others. Among equals the likelier goes first, a cell of it on average, then the one
    that was proposed first. A candidate whose origin has no weight is left out.
    """
    counted = [candidate for candidate in candidates if weights.get(candidate.origin, 0.0) > 0]
    grids: dict[GridTuple, list[Candidate]] = {}
    only_scores = all(candidate.origin in SCORES for candidate in counted)
    for candidate in counted:
        # Scores propose nothing, unless there is nothing else to rank.
        if only_scores or candidate.origin not in SCORES:
            grids.setdefault(candidate.grid, []).append(candidate)
    shares: dict[GridTuple, float] = {}
    for origin in SCORES:
        scored = {candidate.grid: candidate.log_prob for candidate in counted if candidate.origin == origin}
        best = max(scored.values(), default=0.0)
        odds = {grid: math.exp(log_prob - best) for grid, log_prob in scored.items()}
        for grid, each in odds.items():
            shares[grid] = shares.get(grid, 0.0) + weights[origin] * each / sum(odds.values())
    ranked = [
        Ranked(
            grid=grid,
            score=sum(weights[candidate.origin] for candidate in alike if candidate.origin not in SCORES)
            + shares.get(grid, 0.0),
            log_prob=max(candidate.log_prob for candidate in alike) / (len(grid) * len(grid[0])),
            origins={
                origin: sum(candidate.origin == origin for candidate in alike)
                for origin in dict.fromkeys(candidate.origin for candidate in alike)
            },
        )
        for grid, alike in grids.items()
    ]
    return sorted(ranked, key=lambda each: (-each.score, -each.log_prob))
