"""What answers come to: the attempts by vote, their scores with those of each part, and the submission."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arcdist.data import MAX_SIDE, NUM_COLORS, Pair, Task, TaskSet
from arcdist.evaluation.benchmark import SolvedOutput, by_size, compare, floors, score_outputs
from arcdist.evaluation.predict import ORIGINS, Candidate, GridTuple, Origin
from arcdist.evaluation.vote import ATTEMPTS, Ranked, vote

WEIGHTS: dict[Origin, float] = {
    "agent": 1.0,
    "steps": 0.3,
    "consensus": 1.0,
    "unadapted": 0.3,
    "memory": 0.3,
    "refiner": 0.3,
    "demonstrations": 1.0,
    "qwen": 0.1,
    "agent_score": 4.0,
    "qwen_score": 4.0,
}
"""Of the candidates' votes, by where they come from; that of a score is shared out over the grids."""
NO_ANSWER: GridTuple = ((0,),)
"""What a submission holds where there is none: the format knows no empty attempt."""
_KEPT = 10
"""Candidates of an output in `results.json`, the best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """How a task was answered."""

    outputs: list[list[Candidate]]
    """The candidates for each of its test pairs."""
    failed: str | None
    """Why there are none, or none for some of them; None if there are."""
    seconds: float
    """Of one process."""
    not_held_out: str | None = None
    """What it has that nothing was learned from its demonstrations though that was asked for; None if it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A test output with the answers to it."""

    task: Task
    index: int
    pair: Pair
    ranked: list[Ranked]
    """Different grids, the best first."""
    candidates: list[Candidate]

    @property
    def attempts(self) -> list[GridTuple]:
        """The grids that are given as its answers; none if there is none."""
        return [each.grid for each in self.ranked[:ATTEMPTS]]

    def solved(self, ranked: Sequence[GridTuple]) -> SolvedOutput:
        """How grids, the best first, compare with the target, which is known."""
        assert self.pair.output is not None
        return compare(self.task.id, self.pair.output, ranked)


def outputs_of(tasks: TaskSet, answers: Mapping[str, Answers]) -> list[Output]:
    """The test outputs of all tasks, in their order."""
    found = []
    for task in tasks.tasks:
        given = answers.get(task.id)
        of_task = given.outputs if given else [[] for _ in task.tests]
        for index, (pair, candidates) in enumerate(zip(task.tests, of_task, strict=True)):
            ranked = vote(candidates, WEIGHTS)
            found.append(Output(task=task, index=index, pair=pair, ranked=ranked, candidates=candidates))
    return found


def parts_of(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """What each part proposes alone; the agent in one view is what validation in training scores."""
    parts = {"agent, one view": [each for each in candidates if each.origin == "agent" and each.view == 0]}
    for origin in ORIGINS:
        parts[origin] = [each for each in candidates if each.origin == origin]
    return {name: alone for name, alone in parts.items() if alone}


def results(
    tasks: TaskSet,
    outputs: Sequence[Output],
    answers: Mapping[str, Answers],
    protocol: Mapping[str, Any],
    max_side: int,
) -> dict[str, Any]:
    """The content of `results.json`."""
    known = [output for output in outputs if output.pair.output is not None]
    by_task: dict[str, list[Output]] = {task.id: [] for task in tasks.tasks}
    for output in outputs:
        by_task[output.task.id].append(output)
    solved = [output.solved([each.grid for each in output.ranked]) for output in known]
    # An output that a part has nothing for, or that was not answered, is wrong.
    proposed = [parts_of(output.candidates) for output in known]
    parts = {
        part: asdict(
            score_outputs(
                output.solved([each.grid for each in vote(of_output.get(part, ()), dict.fromkeys(ORIGINS, 1.0))])
                for output, of_output in zip(known, proposed, strict=True)
            )
        )
        for part in {part: None for of_output in proposed for part in of_output}
    }
    return {
        "protocol": dict(protocol),
        **asdict(score_outputs(solved)),
        "unknown_outputs": len(outputs) - len(known),
        "parts": parts,
        "sizes": {name: asdict(score) for name, score in by_size(solved, {t.id: t for t in tasks.tasks}).items()},
        "floors": {name: asdict(score) for name, score in floors(tasks.tasks).items()},
        "left_out": _left_out(tasks, answers, max_side),
        "not_held_out": {name: given.not_held_out for name, given in answers.items() if given.not_held_out},
        "without_tests": [task.id for task in tasks.tasks if not task.tests],
        "seconds": sum(given.seconds for given in answers.values()),
        "results": {
            name: [
                [{"rank": rank, **asdict(each)} for rank, each in enumerate(output.ranked[:_KEPT], start=1)]
                for output in of_task
            ]
            for name, of_task in by_task.items()
        },
    }


def submission(tasks: TaskSet, outputs: Sequence[Output]) -> dict[str, list[dict[str, GridTuple]]]:
    """Kaggle's format: two attempts for each test input of every task."""
    given: dict[str, list[dict[str, GridTuple]]] = {task.id: [] for task in tasks.tasks}
    for output in outputs:
        grids = output.attempts or [NO_ANSWER]
        grids += grids[:1] * (ATTEMPTS - len(grids))
        given[output.task.id].append({f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)})
    return given


def check_submission(given: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Check that a submission is one that Kaggle takes.

    Raises:
        ValueError: it is not; the message says where.
    """
    keys = {f"attempt_{number}" for number in range(1, ATTEMPTS + 1)}
    if given.keys() != {task.id for task in tasks}:
        raise ValueError("the submission does not hold each task once")
    for task in tasks:
        if len(given[task.id]) != len(task.tests):
            raise ValueError(f"task {task.id} has {len(given[task.id])} answers for {len(task.tests)} test inputs")
        for index, pair in enumerate(given[task.id]):
            if pair.keys() != keys:
                raise ValueError(f"task {task.id}, answer {index}: not {' and '.join(sorted(keys))}, but {list(pair)}")
            for name, grid in pair.items():
                sides = (len(grid), *{len(row) for row in grid})
                if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
                    raise ValueError(f"task {task.id}, answer {index}, {name}: no grid with sides of 1 to {MAX_SIDE}")
                if not all(type(color) is int and 0 <= color < NUM_COLORS for row in grid for color in row):
                    raise ValueError(f"task {task.id}, answer {index}, {name}: a cell is no colour")


def _left_out(tasks: TaskSet, answers: Mapping[str, Answers], max_side: int) -> dict[str, str]:
    """Why a task has no answers, or not all."""
    reasons = {}
    for task in tasks.tasks:
        given, side = answers.get(task.id), task.without_answers().longest_side
        if given is not None:
            if given.failed is not None:
                reasons[task.id] = given.failed
        elif side > max_side:
            reasons[task.id] = f"its longest side is {side}, and {max_side} is the limit"
        else:
            reasons[task.id] = "left out by data.max_tasks"
    return reasons
