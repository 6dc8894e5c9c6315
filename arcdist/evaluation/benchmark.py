"""Scores as the benchmark counts them: two attempts a test input, exact grids, a mean over tasks."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

from arcdist.data import Pair, Task
from arcdist.evaluation.predict import GridTuple, grid_tuple
from arcdist.evaluation.vote import ATTEMPTS
from arcdist.rng import RESAMPLES, bootstrap, percentile_interval

# N tasks.

SIZES = (10, 20, 30)
"""Longest sides of the puzzles that are counted apart: small ones are solved first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedOutput:
    """How a test output whose answer is known was answered."""

    task_id: str
    at_1: bool
    at_2: bool
    oracle: bool
    """Whether it is among all the candidates."""


def compare(task_id: str, target: UInt8[np.ndarray, "h w"], ranked: Sequence[GridTuple]) -> SolvedOutput:
    """Compare the candidates for a test output, the best first, with its answer; none is a wrong answer."""
    right = [grid == grid_tuple(target) for grid in ranked]
    return SolvedOutput(task_id=task_id, at_1=any(right[:1]), at_2=any(right[:ATTEMPTS]), oracle=any(right))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Solved test outputs, and the benchmark's means over tasks with their 95 % intervals."""

    tasks: int
    outputs: int
    solved_at_1: int
    solved_at_2: int
    oracle: int
    tasks_solved: int
    """Tasks of which every test output is solved at two attempts."""
    pass_at_1: float
    pass_at_2: float
    interval_at_1: tuple[float, float]
    interval_at_2: tuple[float, float]


def score_outputs(solved: Iterable[SolvedOutput]) -> Score:
    """Count what was solved. A task counts by the share of its test outputs that are solved.

    The intervals are percentiles over resampled tasks (bootstrap), the same for the same outcomes.
    """
    by_task: dict[str, list[SolvedOutput]] = {}
    for output in solved:
        by_task.setdefault(output.task_id, []).append(output)
    outputs = [output for of_task in by_task.values() for output in of_task]
    # In the order of ids, so that equal outcomes have equal intervals.
    shares = np.array(
        [
            (np.mean([output.at_1 for output in by_task[name]]), np.mean([output.at_2 for output in by_task[name]]))
            for name in sorted(by_task)
        ]
    ).reshape(-1, 2)
    at_1, at_2 = shares.mean(axis=0).tolist() if len(shares) else (0.0, 0.0)
    return Score(
        tasks=len(by_task),
        outputs=len(outputs),
        solved_at_1=sum(output.at_1 for output in outputs),
        solved_at_2=sum(output.at_2 for output in outputs),
        oracle=sum(output.oracle for output in outputs),
        tasks_solved=int((shares[:, 1] == 1.0).sum()),
        pass_at_1=at_1,
        pass_at_2=at_2,
        interval_at_1=_interval(shares[:, 0]),
        interval_at_2=_interval(shares[:, 1]),
    )


def _interval(shares: Float[np.ndarray, " N"]) -> tuple[float, float]:
    if not len(shares):
        return 0.0, 0.0
    values, counts = np.unique(shares, return_counts=True)
    # Tasks with the same share are interchangeable: how many of each are drawn is all that matters.
    drawn = bootstrap().multinomial(len(shares), counts / len(shares), size=RESAMPLES)
    return percentile_interval(drawn @ values / len(shares))


def by_size(solved: Sequence[SolvedOutput], tasks: Mapping[str, Task]) -> dict[str, Score]:
    """The scores of small, middle and large puzzles apart, by their longest side; together they are all outputs.

    The last are larger than any that a model is given.
    """
    bounds = (0, *SIZES)
    names = [f"{shorter + 1}-{longest}" for shorter, longest in pairwise(bounds)] + [f"over {SIZES[-1]}"]
    within: dict[str, list[SolvedOutput]] = {name: [] for name in names}
    for output in solved:
        within[names[bisect_left(SIZES, tasks[output.task_id].longest_side)]].append(output)
    return {name: score_outputs(outputs) for name, outputs in within.items()}


def floors(tasks: Iterable[Task]) -> dict[str, Score]:
    """What answers without any learning score: the input as it is, and the input on a grid of the size by rule."""
    solved: dict[str, list[SolvedOutput]] = {"copy the input": [], "size by rule, input copied": []}
    for task in tasks:
        for pair in task.tests:
            if pair.output is None:
                continue
            for copies, grid in zip(solved.values(), (pair.input, _copied(task, pair)), strict=True):
                copies.append(compare(task.id, pair.output, [grid_tuple(grid)]))
    return {name: score_outputs(copies) for name, copies in solved.items()}


def _copied(task: Task, test: Pair) -> UInt8[np.ndarray, "h w"]:
    """The input, cut off or filled with the background, on the size that the demonstrations' rule gives."""
    shapes = [(pair.input.shape, pair.output.shape) for pair in task.demonstrations if pair.output is not None]
    height, width = test.input.shape
    if len({after for _, after in shapes}) == 1 and any(before != after for before, after in shapes):
        height, width = shapes[0][1]
    else:
        ratios = {(after[0] / before[0], after[1] / before[1]) for before, after in shapes}
        if len(ratios) == 1:
            (ratio,) = ratios
            height, width = max(1, round(height * ratio[0])), max(1, round(width * ratio[1]))
    copied = np.zeros((height, width), dtype=np.uint8)
    kept = test.input[:height, :width]
    copied[: kept.shape[0], : kept.shape[1]] = kept
    return copied
