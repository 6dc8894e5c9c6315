"""Which of the candidates for a query are given as its attempts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcdist.evaluation.predict import Candidate, GridTuple, Origin

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

    A candidate has its origin's weight as a vote. The weight of Qwen's score is shared out over the grids by how
    probable it finds each of them against the others. Among equals the likelier goes first, a cell of it on average,
    then the one that was proposed first. A candidate whose origin has no weight is left out.
    """
    grids: dict[GridTuple, list[Candidate]] = {}
    scored: dict[GridTuple, float] = {}
    for candidate in candidates:
        if weights.get(candidate.origin, 0.0) > 0:
            if candidate.origin == "qwen_score":
                scored[candidate.grid] = candidate.log_prob
            else:
                grids.setdefault(candidate.grid, []).append(candidate)
    if not grids:  # Qwen's score alone.
        grids = {candidate.grid: [candidate] for candidate in candidates if candidate.grid in scored}
    best = max(scored.values(), default=0.0)
    shares = {grid: math.exp(log_prob - best) for grid, log_prob in scored.items()}
    of_score = weights.get("qwen_score", 0.0) / (sum(shares.values()) or 1.0)
    ranked = [
        Ranked(
            grid=grid,
            score=sum(weights[candidate.origin] for candidate in alike if candidate.origin != "qwen_score")
            + of_score * shares.get(grid, 0.0),
            log_prob=max(candidate.log_prob for candidate in alike) / (len(grid) * len(grid[0])),
            origins={
                origin: sum(candidate.origin == origin for candidate in alike)
                for origin in dict.fromkeys(candidate.origin for candidate in alike)
            },
        )
        for grid, alike in grids.items()
    ]
    return sorted(ranked, key=lambda each: (-each.score, -each.log_prob))
